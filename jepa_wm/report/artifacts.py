"""What the stages of a run have stored: results, metrics, recorded arrays; None for what is not
there.

E episodes, F filmed ones, K decisions, T environment steps, I solver iterations, M energy maps,
G grid side, C clips of a strip, H horizon."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.commands import stages
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run

# curves of the page -> what the training loop calls them
METRICS = {"pretrain": "pretrain", "dynamics": "dynamics_dynamics"}
# array name -> its axes; a letter stands for one size throughout a file
EPISODES = {
    "goal_frame": "E h w 3",
    "frames": "E K+1 h w 3",
    "positions": "E K+1 2",
    "goal_position": "E 2",
    "distance": "E T+1",
    "success_final": "E",
    "success_any": "E",
    "cost": "E K I",
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
STRIPS = dict.fromkeys(("true", "imagined", "shuffled"), "C H+1 h w 3")


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
    cost: np.ndarray  # [E, K, I] of the best plan after each solver iteration
    radius: np.ndarray  # one number
    unit: str = ""  # of all lengths; "" where it is not known


@dataclass(frozen=True)
class Energy:
    """Cost of the agent at (xs[j], ys[i]), as the planner sees it, against one goal each; lengths
    as in the frames."""

    learned: np.ndarray  # [M, G, G], rows are y
    raw: np.ndarray  # [M, G, G]
    xs: np.ndarray  # [G]
    ys: np.ndarray  # [G]
    frame: np.ndarray  # [M, h, w, 3] uint8
    goal: np.ndarray  # [M, 2] x, y


@dataclass(frozen=True)
class Strips:
    """Real frames nearest to what was imagined; [C, H+1, h, w, 3] uint8 each."""

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

    results: Mapping[str, Mapping[str, Any]]  # of the finished stages, the report aside
    metrics: Mapping[str, list[dict[str, Any]]]  # of pretrain and dynamics
    evaluations: Sequence[tuple[str, Mapping[str, Any]]]  # (linear, its result), ...
    episodes: Episodes | None
    energy: Energy | None
    film: Film | None
    strips: Strips | None

    @classmethod
    def read(cls, run: Run) -> RunArtifacts:
        """Raises UserError naming a file that is damaged or of a shape that does not fit."""
        results = {}
        for stage in stages():
            result = None if stage == "report" else run.finished(stage)
            if result is not None:
                results[stage] = result
        episodes = _arrays(run.path / "plan" / "episodes.npz", EPISODES)
        energy = _arrays(run.path / "plan" / "energy.npz", ENERGY)
        film = _arrays(run.path / "plan" / "film.npz", FILM)
        strips = _arrays(run.path / "report" / "strips.npz", STRIPS)
        unit = unit_of(results.get("plan"))
        return cls(
            results=results,
            metrics={stage: read_metrics(run.path, name) for stage, name in METRICS.items()},
            evaluations=list(_evaluations(run.path)),
            episodes=Episodes(**episodes, unit=unit) if episodes else None,
            energy=Energy(**energy) if energy else None,
            film=Film(**film) if film else None,
            strips=Strips(**strips) if strips else None,
        )


def unit_of(plan: Mapping[str, Any] | None) -> str:
    """The unit of distances to a goal by the plan's result; "" where it does not say."""
    return str(((plan or {}).get("success") or {}).get("unit") or "")


def _evaluations(run: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every frozen evaluation that says what it was made of."""
    for file in sorted(run.glob("eval_*/*/result.json")):
        result = read_result(file, "evaluate again")
        yield file.parent.parent.name.removeprefix("eval_"), result


def read_result(file: Path, remedy: str) -> dict[str, Any]:
    """What a result.json holds; UserError with the remedy where it is damaged."""
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: is damaged ({error}); delete {file.parent} and {remedy}"
        ) from None
    return result


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
    for name, expected in axes.items():
        if not _fits(arrays[name].shape, expected, sizes):
            known = ", ".join(f"{letter}={size}" for letter, size in sizes.items())
            raise UserError(
                f"{path}: {name!r} has shape {arrays[name].shape}, not [{expected}] ({known}); "
                f"{remedy}"
            )
    return arrays if all(array.size for array in arrays.values()) else None


def _fits(shape: tuple[int, ...], axes: str, sizes: dict[str, int]) -> bool:
    """Whether a shape has these axes; letters met for the first time are entered into `sizes`."""
    names = axes.split()
    if len(names) != len(shape):
        return False
    for name, size in zip(names, shape, strict=True):
        # "3" is a number, "H" a letter, "H+1" a letter and what is added to it
        letter, _, more = name.partition("+")
        added = int(more or 0)
        expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size - added)
        if size != expected + added:
            return False
    return True
