"""What a stage was made of and how long it took: the commit of the code, the files outside of the
run that it read, the seconds over all processes that were interrupted at it.

runs/two_rooms/<stage>/reads.json     path -> fingerprint of its content
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jepa_wm.core.config import Settings, pick
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import fingerprint, write_atomic

ROOMS = ("jepa_wm", "evals", "launch", "configs")  # what is code, in a checkout


def git(folder: Path, *words: str) -> str | None:
    """What git says there; None where there is no checkout, or no git."""
    try:
        output = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    return output.stdout.rstrip("\n")


def code_commit(package: Path | None = None) -> str | None:
    """The commit of this package's code, with "+changed" behind it where files differ from it;
    None if unknown.

    A job's snapshot has it in its record; an installed package that git does not track has none.
    """
    package = package or Path(__file__).resolve().parents[1]
    record = package.parent.parent / "git.json"
    if package.parent.name == "code" and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        paths = (line[3:] for line in (kept["changed"] or "").splitlines())
        commit, changed = kept["commit"], any(path.split("/")[0] in ROOMS for path in paths)
    elif git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    else:
        commit = git(package, "rev-parse", "HEAD")
        changed = bool(
            git(package, "status", "--porcelain", "--", *(f":/{room}" for room in ROOMS))
        )
    return None if commit is None else commit + ("+changed" if changed else "")


PARTS = ("train.h5", "heldout.h5")  # of a folder that is given as data.path


def note_files(folder: Path, config: Settings, keys: Sequence[str]) -> None:
    """Write down in a stage's folder what the files hold that the settings at `keys` name, where
    there are any."""
    fingerprints = {str(file): fingerprint(file) for file in _files(config, keys)}
    if fingerprints:
        write_atomic(folder / "reads.json", json.dumps(fingerprints, indent=1))


def refuse_other_files(folder: Path, config: Settings, keys: Sequence[str]) -> None:
    """UserError naming a file that holds something else than when the stage was begun; one that is
    gone is none of these, since what a stage has read it does not need again."""
    noted = folder / "reads.json"
    if not noted.exists():
        return
    known = json.loads(noted.read_text(encoding="utf-8"))
    for file in _files(config, keys):
        if known.get(str(file), now := fingerprint(file)) != now:
            raise UserError(
                f"{file}: holds something else than when {folder} was made of it. Put back what "
                "it held, choose "
                f"another --run, or delete what was made with it: {folder} and what came after"
            )


def _files(config: Settings, keys: Sequence[str]) -> list[Path]:
    """The files that are there, and the weights in a folder; what else another run's folder has
    goes on changing."""
    paths = [Path(value) for value in pick(config, keys).values() if isinstance(value, str)]
    paths += [
        path.parent for path in paths if path.name.endswith(".index.json")
    ]  # of weights in several files
    files = [
        file
        for path in paths
        for file in (path, *(path / part for part in PARTS), *path.glob("*.safetensors*"))
    ]
    return [file for file in files if file.is_file()]


@contextmanager
def clock(file: Path) -> Iterator[Callable[[], float]]:
    """Gives a function that tells the seconds spent so far, those of earlier attempts included.

    A block that is left by an exception keeps its seconds in `file`, if the folder is there, for
    the next attempt; a block that is finished removes it. A process that is killed outright counts
    for nothing."""
    before = (
        float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.exists() else 0.0
    )
    began = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - began

    try:
        yield spent
    except BaseException:
        if file.parent.is_dir():
            with suppress(
                OSError
            ):  # a full disk, say: what went wrong matters more than the time it took
                write_atomic(file, json.dumps({"seconds": spent()}))
        raise
    file.unlink(missing_ok=True)
