"""Reads what the other stages left in a run folder: results, metrics, recorded arrays; None for
what is not there.

E episodes, F filmed ones, K decisions, T environment steps, R solver rounds, M energy maps, G grid
side, N strips, H horizon."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run

STAGES = (
    "collect",
    "pretrain",
    "features",
    "dynamics",
    "heads",
    "plan",
)  # the order they are run in

# array name -> its axes; a letter stands for one size throughout a file
EPISODES = {
    "goal_frame": "E h w 3",
    "frames": "E K+1 h w 3",
    "positions": "E K+1 2",
    "goal_position": "E 2",
    "distance": "E T+1",
    "success_final": "E",
    "success_any": "E",
    "cost": "E K R",
    "radius": "",
}
ENERGY = {
    "learned": "M G G",
    "raw": "M G G",
    "xs": "G",
    "ys": "G",
    "frame": "M h w 3",
    "goal": "M 2",
}
FILM = {"frames": "F K h w 3", "earned": "F"}
STRIPS = {"true": "N H+1 h w 3", "imagined": "N H+1 h w 3", "shuffled": "N H+1 h w 3"}


@dataclass(frozen=True)
class Episodes:
    """Planned episodes as they were recorded; lengths in `unit`."""

    goal_frame: np.ndarray  # [E, h, w, 3] uint8
    frames: np.ndarray  # [E, K+1, h, w, 3] uint8: the start, then what each decision led to
    positions: np.ndarray  # [E, K+1, 2] x, y
    goal_position: np.ndarray  # [E, 2]
    distance: np.ndarray  # [E, T+1] to the goal, at every environment step
    success_final: np.ndarray  # [E] bool: within the radius at the end
    success_any: np.ndarray  # [E] bool: within the radius at any step
    cost: np.ndarray  # [E, K, R] of the best plan after each solver round
    radius: np.ndarray  # one number
    unit: str = ""  # of all lengths; "" where it is not known


@dataclass(frozen=True)
class Energy:
    """Energy of the agent standing at (xs[j], ys[i]), as the planner sees it, against one goal
    each."""

    learned: np.ndarray  # [M, G, G], rows are y
    raw: np.ndarray  # [M, G, G]
    xs: np.ndarray  # [G] px
    ys: np.ndarray  # [G] px
    frame: np.ndarray  # [M, h, w, 3] uint8
    goal: np.ndarray  # [M, 2] px


# curves of the page -> what the training loop calls them
METRICS = {"pretrain": "pretrain", "dynamics": "dynamics_dynamics"}


@dataclass(frozen=True)
class Strips:
    """Real frames nearest to what was imagined; [N, H+1, h, w, 3] uint8 each."""

    true: np.ndarray
    imagined: np.ndarray
    shuffled: np.ndarray


@dataclass(frozen=True)
class Film:
    """The first episodes that were played for reward."""

    frames: np.ndarray  # [F, K, h, w, 3] uint8: what each decision saw
    earned: np.ndarray  # [F]


@dataclass(frozen=True)
class RunArtifacts:
    """Everything the report is made from."""

    results: Mapping[str, Mapping[str, Any]]  # of the finished stages
    metrics: Mapping[str, list[dict[str, Any]]]  # of pretrain and dynamics
    episodes: Episodes | None
    energy: Energy | None
    film: Film | None
    strips: Strips | None

    @classmethod
    def read(cls, run: Run) -> RunArtifacts:
        """Raises UserError naming a file that is damaged or of a shape that does not fit."""
        results = {
            stage: result for stage in STAGES if (result := run.finished(stage)) is not None
        }
        metrics = {stage: read_metrics(run.path, name) for stage, name in METRICS.items()}
        episodes, energy, film, strips = (
            _arrays(run.path / stage / f"{name}.npz", axes)
            for stage, name, axes in (
                ("plan", "episodes", EPISODES),
                ("plan", "energy", ENERGY),
                ("plan", "film", FILM),
                ("report", "strips", STRIPS),
            )  # fmt: skip
        )
        return cls(
            results=results,
            metrics=metrics,
            episodes=Episodes(**episodes, unit=unit_of(results.get("plan"))) if episodes else None,
            energy=Energy(**energy) if energy else None,
            film=Film(**film) if film else None,
            strips=Strips(**strips) if strips else None,
        )


def unit_of(plan: Mapping[str, Any] | None) -> str:
    """The unit of distances to a goal by the plan's result; "" where it does not say."""
    return str(((plan or {}).get("success") or {}).get("unit") or "")


def _arrays(path: Path, axes: Mapping[str, str]) -> dict[str, np.ndarray] | None:
    """The named arrays of an npz, checked; None if there is no file or there is nothing in its
    arrays."""
    if not path.exists():
        return None
    remedy = f"delete it and run 'jepa-wm {path.parent.name}' again"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in axes}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    sizes: dict[str, int] = {}
    for name, wanted in axes.items():
        if not _fits(arrays[name].shape, wanted, sizes):
            known = ", ".join(f"{letter}={size}" for letter, size in sizes.items())
            raise UserError(
                f"{path}: {name!r} has shape {arrays[name].shape}, not [{wanted}] ({known}); {remedy}"
            )
    return arrays if all(array.size for array in arrays.values()) else None


def _fits(shape: tuple[int, ...], wanted: str, sizes: dict[str, int]) -> bool:
    """Whether a shape has the wanted axes; letters met for the first time are entered into
    `sizes`."""
    names = wanted.split()
    if len(names) != len(shape):
        return False
    for name, size in zip(names, shape, strict=True):
        letter, _, more = name.partition("+")
        expected = (
            int(letter) if letter.isdigit() else sizes.setdefault(letter, size - int(more or 0))
        )
        if size != expected + int(more or 0):
            return False
    return True
