"""At which commit the code stands that makes a result: rows of one table are to be of one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

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
