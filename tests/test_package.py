"""The package: quick to import, and whole when it is installed from a wheel in a folder far from
the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import jepa_wm

ROOT = Path(__file__).resolve().parents[1]


def test_import_is_light():
    script = (
        "import sys, time; began = time.perf_counter(); import jepa_wm; "
        "print(time.perf_counter() - began); print(*sys.modules)"
    )
    seconds, modules = subprocess.check_output(
        [sys.executable, "-c", script], text=True
    ).splitlines()
    assert float(seconds) < 0.5
    assert not {"torch", "numpy", "pydantic", "yaml", "rich"} & set(modules.split())


def test_public_names_are_fetched_when_used():
    assert jepa_wm.UserError.__module__ == "jepa_wm.core.errors"
    assert set(jepa_wm.__all__) <= set(dir(jepa_wm))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = jepa_wm.nonsense


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], f"jepa-wm {jepa_wm.__version__}\nFalse\n"),
        (
            ["launch", "pretrain", "--dry-run", "--cluster", "slurm"],
            "#SBATCH --job-name=jepa-wm-pretrain\n",
        ),
        (
            ["launch", "pipeline", "--dry-run", "--cluster", "slurm"],
            "#SBATCH --job-name=jepa-wm-dynamics\n",
        ),
    ],
)
def test_help_and_launching_need_no_heavy_import(words, said, tmp_path):
    script = f"import sys; sys.argv = ['jepa-wm', *{words}]\nfrom jepa_wm.cli import main\n"
    script += "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    printed = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=tmp_path)
    assert printed.endswith("\nFalse\n") and said in printed
    assert words[0] != "--version" or printed == said


def test_launch_is_a_program_of_its_own(tmp_path):
    command = [sys.executable, "-m", "jepa_wm.launch", "nonsense", "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no job 'nonsense'" in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The scripts folder of a new environment that holds our wheel, and sees the libraries of this
    one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = (
        folder / "source"
    )  # a copy: building leaves a build/ behind whose stale files reach the next wheel
    for room in ("jepa_wm", "evals", "launch", "configs"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, source / file)
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = folder.glob("jepa_wm-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    scripts = folder / "env" / "bin"
    python = scripts / "python"
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
    ).strip()
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel],
        check=True,
    )
    # Adds the libraries but, unlike the folder's own start, none of its .pth files: no editable
    # jepa_wm.
    (Path(site) / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return scripts


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.run(
        [installed / "jepa-wm", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_wheel_holds_every_room_and_config(installed, tmp_path):
    script = (
        "import importlib, importlib.resources as r, jepa_wm\n"
        "[importlib.import_module(f'jepa_wm.{room}') for room in ('evals', 'launch', 'configs')]\n"
        "print(jepa_wm.__file__)\n"
        "print(*sorted(f.name for f in r.files('jepa_wm.configs').iterdir()))\n"
        "print(*(f.name for f in (r.files('jepa_wm.report') / 'templates').iterdir()))"
    )
    where, names, templates = subprocess.check_output(
        [installed / "python", "-c", script], text=True, cwd=tmp_path
    ).splitlines()
    assert where.startswith(str(installed.parent)), "the checkout was imported, not the wheel"
    assert {file.name for file in (ROOT / "configs").glob("*.yaml")} <= set(names.split())
    own = {file.name for file in (ROOT / "jepa_wm" / "report" / "templates").iterdir()}
    assert own and own == set(templates.split())


@pytest.mark.slow
def test_the_wheel_runs_a_verb_in_any_folder(installed, tmp_path):
    assert "pretrain" in run(installed, tmp_path, "--help").stdout
    mistake = run(installed, tmp_path, "collect", "--config", "debug", "world.nonsense=1")
    assert mistake.returncode == 2 and "unknown key 'world.nonsense'" in mistake.stderr
    done = run(installed, tmp_path, "collect", "--config", "debug", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "runs" / "debug" / "collect" / "result.json").exists()
