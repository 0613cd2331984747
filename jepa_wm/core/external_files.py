"""Files outside of a run that its stages read, and whether they still hold what they held when a
stage was begun.

runs/two_rooms/<stage>/reads.json     path -> fingerprint of its content
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jepa_wm.core.config import Settings, pick
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import fingerprint, write_atomic

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
                f"{file}: holds something else than when {folder} was made of it. Put back what it held, choose "
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
