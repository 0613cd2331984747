"""One run, one folder: its config, one sub-folder a stage, and results that are never mixed with
another config's.

runs/two_rooms/config.yaml            the resolved config of the last command
runs/two_rooms/<stage>/config.yaml    the settings it was begun with, and those of stages before it
runs/two_rooms/<stage>/result.json    written when the stage is finished
runs/two_rooms/<stage>/seconds.json   what an unfinished stage has taken so far

A stage that is done for several settings or data beside each other has a folder for each:
<stage>/<which>/..."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from jepa_wm.core.config import (
    as_plain,
    config_diff,
    digest,
    nested,
    pick,
    save_config,
    with_defaults,
)
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import FORBIDDEN, finite, locked, write_atomic
from jepa_wm.core.precision import resolve_precision, set_threads
from jepa_wm.core.provenance import clock, code_commit, note_files, refuse_other_files
from jepa_wm.core.stage import ALSO, EVAL, SHARD, STAGES, Result, Stage, recorded_keys
from jepa_wm.core.yaml_source import read_yaml, write_yaml

PRECISION = "train.precision"  # the setting that is resolved where a run began
DIGEST_KEY = "config_digest"  # of the settings a result depends on, stored inside it


class Run:
    """A run folder that this process alone works in, with its checked config; a context manager.

    A stage's settings may change freely until it is begun. Afterwards a config that differs in
    them is refused."""

    def __init__(self, path: Path, config: BaseModel, lock: int) -> None:
        self.path, self._config, self._lock = path, config, lock

    @classmethod
    def open(cls, path: str | Path, config: BaseModel, *, shared: bool = False) -> Run:
        """Make or reopen the folder and lock it; its config.yaml then holds `config`.

        `shared`: others that open it so may work there too, each at a share of a stage that it
        does not finish.

        Raises UserError if another process works there, if a stage there was begun with settings
        that differ in what it depends on (all differing keys named), or if the path is no folder.
        """
        path = Path(path)
        if not dist().first:
            dist().broadcast(None)  # rank 0 has opened the folder, checked and locked it
            return cls(path, config, -1)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{path}: is not a folder; choose another --run") from None
        except OSError as error:
            if error.errno not in FORBIDDEN:
                raise
            raise UserError(
                f"{path}: may not be written to ({error.strerror}); choose another --run"
            ) from None
        run = cls(path, config, locked(path, shared=shared))
        with ExitStack() as on_failure:
            on_failure.callback(run.close)
            run._refuse_other_config()
            if not _same_yaml(path / "config.yaml", config):
                save_config(config, path / "config.yaml")
            dist().broadcast(None)
            on_failure.pop_all()
        return run

    def stage_dir(self, stage: str) -> Path:
        """The folder of a stage, made on first use together with a record of the settings it is
        begun with.

        Raises UserError if it was begun with others.
        """
        folder = self.path / stage
        if not dist().first:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "config.yaml").exists():
            self._refuse_other_config(stage)
            refuse_other_files(folder, self._config, self._reads(stage))
        else:
            note_files(folder, self._config, self._reads(stage))
            write_yaml(nested(self.recorded(stage)), folder / "config.yaml")
        return folder

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The stored result of a finished stage, None if it is not finished.

        Raises UserError naming the differing keys if it was made with other settings.
        """
        file = self.path / stage / "result.json"
        if not file.exists():
            return None
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: is damaged ({error}); delete it and run {stage!r} again"
            ) from None
        self._refuse_other_config(stage)
        if not isinstance(result, dict) or result.pop(DIGEST_KEY, None) != self.digest(stage):
            raise UserError(
                f"{file}: does not belong to {file.parent / 'config.yaml'}; "
                f"{self._remedy([stage])}"
            )
        return result

    def write_result(self, stage: str, result: Mapping[str, Any]) -> Path:
        """Store a finished stage's result, atomically; numbers that are not finite become null."""
        file = self.stage_dir(stage) / "result.json"
        stored = {**finite(result), DIGEST_KEY: self.digest(stage)}
        write_atomic(file, json.dumps(stored, indent=1, allow_nan=False) + "\n")
        return file

    def once(self, stage: str, work: Callable[[Run], dict[str, object]]) -> dict[str, object]:
        """The stored result of a finished stage; else what `work` makes of it, with its `seconds`
        and `commit`, stored. UserError if it was made with other settings, or of files that hold
        something else now."""
        if dist().first:
            refuse_other_files(self.path / stage, self._config, self._reads(stage))
        done = dist().broadcast(self.finished(stage) if dist().first else None)
        if done is not None:
            return done
        if not dist().first:
            return work(self)  # to help with it; what is made of it rank 0 stores
        with self.clock(stage) as spent:
            result = {"commit": code_commit(), **work(self)}
            result["seconds"] = spent()
            self.write_result(stage, result)
        return result

    def clock(self, stage: str) -> AbstractContextManager[Callable[[], float]]:
        """Counts the seconds of a stage over all processes that work on it; gives a function that
        tells them."""
        return clock(self.path / stage / "seconds.json")

    def digest(self, stage: str) -> str:
        """The digest of the settings a stage was begun with; of this config's, if it was not
        begun."""
        begun = self.path / stage / "config.yaml"
        return digest(
            pick(read_yaml(begun).data if begun.exists() else self._config, self.depends(stage))
        )

    def depends(self, stage: str) -> tuple[str, ...]:
        """The dotted keys that a stage and all its upstream stages depend on."""
        return recorded_keys(stage.partition("/")[0], type(self._config))

    def recorded(self, stage: str) -> dict[str, Any]:
        """{dotted key: section or value} of this config's settings that a stage depends on."""
        return pick(self._config, self.depends(stage))

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *how: object) -> None:
        self.close()

    def _reads(self, stage: str) -> tuple[str, ...]:
        return STAGES.get(stage).reads if stage in STAGES else ()

    def _refuse_other_config(self, *stages: str) -> None:
        """Compare with the settings the stages (default: all in the folder) were begun with.

        A key that was not there yet when a stage was begun had what is its default now.
        """
        differing: dict[str, None] = {}
        begun = []
        for stage in stages or sorted(
            file.parent.name for file in self.path.glob("*/config.yaml")
        ):
            file = self.path / stage / "config.yaml"
            if not file.exists():
                continue
            keys = self.depends(stage)
            then = with_defaults(read_yaml(file).data, self._config)
            changes = config_diff(pick(then, keys), pick(self._config, keys))
            if changes:
                differing.update(dict.fromkeys(changes))
                begun.append(stage)
        if begun:
            listed = "\n".join(f"  {line}" for line in differing)
            raise UserError(
                f"{self.path}: was made with another config:\n{listed}\n{self._remedy(begun)}"
            )

    def _remedy(self, stages: list[str]) -> str:
        folders = " ".join(str(self.path / stage) for stage in stages)
        return (
            "Choose another --run, keep the old settings "
            f"(--config {self.path / 'config.yaml'}), or delete what was made with them: {folders}"
        )


def run_stage(
    name: str,
    run: Run | Path | str,
    config: BaseModel | None = None,
    *,
    shard: tuple[int, int] | None = None,
) -> Result:
    """Do a stage in an open run, or in the folder of one that is opened with `config`; returns its
    result, which is stored, with its `seconds` and `commit`.

    A finished stage is not done again. `shard` (k, n): only the k-th of n parts, which the stage
    itself then finds done. Raises UserError for a stage that is not there, settings other than
    those it was begun with, and whatever the stage refuses."""
    if not isinstance(run, Run):
        assert config is not None, "a folder is opened with a config"
        with Run.open(run, config, shared=shard is not None) as opened:
            return run_stage(name, opened, shard=shard)
    stage = STAGES.get(name)
    if shard is not None:
        if not stage.in_shards:
            raise UserError(f"{name}: cannot be done in shards; leave out --shard")
        return _carry_out(stage, run, {SHARD: shard})
    if stage.keep == "own":
        return _carry_out(stage, run)
    if stage.keep == "once":
        return run.once(name, lambda run: _carry_out(stage, run))
    result = _carry_out(stage, run)
    run.write_result(name, result)
    return result


def evaluate(name: str, run: Run | Path | str, config: BaseModel | None = None) -> Result:
    """One evaluation of a trained run, as `jepa-wm eval NAME`; see `run_stage`."""
    return run_stage(ALSO.get(name, EVAL + name), run, config)


def _carry_out(stage: Stage, run: Run, more: Mapping[str, Any] | None = None) -> Result:
    """Call a stage's function with its settings; threads, precision and the seed are settled
    here, and nowhere in a stage."""
    config: Any = run._config
    set_threads(config.train.threads)
    fixed = {}
    if PRECISION in stage.keys(type(config)):
        fixed[PRECISION] = resolve_precision(config.train.precision, run.path)
    settings = stage.settings(config, fixed)
    torch.manual_seed(config.seed + stage.seed_offset)
    return stage(run, **settings, **(more or {}))


def _same_yaml(file: Path, config: BaseModel) -> bool:
    """False also for a file that is not there; one that cannot be read raises UserError."""
    return file.exists() and read_yaml(file).data == as_plain(config)
