"""What a job runs on, kept in its record: the code, its state in git, and the resolved config."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

from pydantic import BaseModel

from jepa_wm.core.config import save_config
from jepa_wm.core.files import write_atomic
from jepa_wm.core.provenance import git

PACKAGE = "jepa_wm"
AT_THE_TOP = ("evals", "launch", "configs")  # rooms that lie beside the package in a checkout
KEPT = (".py", ".yaml", ".typed")


def take(record: Path, config: BaseModel) -> None:
    """Write `code/`, `git.json`, `git.diff` and `config.yaml` into a new record."""
    save_config(config, record / "config.yaml")
    source = _folder(PACKAGE)
    _copy(source, record / "code" / PACKAGE)
    for room in AT_THE_TOP:
        _copy(_folder(f"{PACKAGE}.{room}"), record / "code" / PACKAGE / room)
    state = {
        "commit": git(source, "rev-parse", "HEAD"),
        "changed": git(source, "status", "--porcelain"),
    }
    write_atomic(record / "git.json", json.dumps(state, indent=1) + "\n")
    write_atomic(record / "git.diff", git(source, "diff", "HEAD") or "")


def _folder(package: str) -> Path:
    module = importlib.import_module(package)
    assert module.__file__ is not None, f"{package} has no files to copy"
    return Path(module.__file__).resolve().parent


def _copy(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        rooms = file.relative_to(source).parts
        if (
            file.is_file()
            and file.suffix in KEPT
            and "__pycache__" not in rooms
            and rooms[0] not in AT_THE_TOP
        ):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
