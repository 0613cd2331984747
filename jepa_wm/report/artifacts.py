"""What the report is made from: results, metrics and recorded arrays of a run's stages, None for
what is not there; and the film strips, which it makes itself of the trained model.

E episodes, F filmed ones, K decisions, T environment steps, P numbers of a position, I solver
iterations, M energy maps, G grid side, C clips of a strip, H horizon, N latent tokens of width
D."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.commands import stages
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import WindowSampler, usual_steps
from jepa_wm.world_model.latents import Recording
from jepa_wm.world_model.world_model import WorldModel

# curves of the page -> what the training loop calls them
METRICS = {"pretrain": "pretrain", "dynamics": "dynamics_dynamics"}
CLIPS, HORIZON = 4, 8  # of the film strips
BANK = 3000  # real frames, one of which stands for an imagined latent

Arrays = TypeVar("Arrays")

# The classes below are files of arrays, each declared with its axes; a letter stands for one size
# throughout a file.


@dataclass(frozen=True)
class Episodes:
    """Planned episodes as they were recorded; lengths in `unit`."""

    goal_frame: Annotated[np.ndarray, "E h w 3"]  # uint8
    frames: Annotated[np.ndarray, "E K+1 h w 3"]  # the start, then what each decision led to
    positions: Annotated[np.ndarray, "E K+1 P"]  # P = 2: x, y in the frames; more are not drawn
    goal_position: Annotated[np.ndarray, "E P"]
    distance: Annotated[np.ndarray, "E T+1"]  # to the goal, at every environment step
    success_final: Annotated[np.ndarray, "E"]  # bool: within the radius at the end
    success_any: Annotated[np.ndarray, "E"]  # bool: within the radius at any step
    cost: Annotated[np.ndarray, "E K I"]  # of the best plan after each solver iteration
    radius: Annotated[np.ndarray, ""]  # one number
    unit: str = ""  # of all lengths; "" where it is not known


@dataclass(frozen=True)
class Energy:
    """Cost of the agent at (xs[j], ys[i]), as the planner sees it, against one goal each; lengths
    as in the frames."""

    learned: Annotated[np.ndarray, "M G G"]  # rows are y
    raw: Annotated[np.ndarray, "M G G"]
    xs: Annotated[np.ndarray, "G"]
    ys: Annotated[np.ndarray, "G"]
    frame: Annotated[np.ndarray, "M h w 3"]  # uint8
    goal: Annotated[np.ndarray, "M 2"]  # x, y


@dataclass(frozen=True)
class Strips:
    """Real frames nearest to what was imagined, uint8."""

    true: Annotated[np.ndarray, "C H+1 h w 3"]
    imagined: Annotated[np.ndarray, "C H+1 h w 3"]
    shuffled: Annotated[np.ndarray, "C H+1 h w 3"]


@dataclass(frozen=True)
class Film:
    """The first episodes that were played for reward."""

    frames: Annotated[np.ndarray, "F K h w 3"]  # uint8: what each decision saw
    earned: Annotated[np.ndarray, "F"]


@dataclass(frozen=True)
class RunArtifacts:
    """Everything the report is made from."""

    results: Mapping[str, Mapping[str, Any]]  # of the finished stages, the report aside
    metrics: Mapping[str, list[dict[str, Any]]]  # of pretrain and dynamics
    # (linear, its result), ... of frozen features
    evaluations: Sequence[tuple[str, Mapping[str, Any]]]
    diagnoses: Sequence[Mapping[str, Any]]  # results of `eval diagnose`, by their settings
    offline: Sequence[Mapping[str, Any]]  # the same of `eval offline`
    offsets: Sequence[Mapping[str, Any]]  # rows of `eval offsets`, each of an offset and settings
    episodes: Episodes | None
    energy: Energy | None
    film: Film | None
    strips: Strips | None

    @classmethod
    def read(cls, run: Run) -> RunArtifacts:
        """Raises UserError naming a file that is damaged or of a shape that does not fit."""
        finished = {stage: run.finished(stage) for stage in stages() if stage != "report"}
        results = {stage: result for stage, result in finished.items() if result is not None}
        success = results.get("plan", {}).get("success") or {}
        plan = run.path / "plan"
        # What is not there is None or empty, and the page says which command makes it; evaluations
        # keep a result for each of their settings, and not all have the same keys.
        return cls(
            results=results,
            metrics={stage: read_metrics(run.path, name) for stage, name in METRICS.items()},
            evaluations=[
                (name, result)
                for name, result in read_results(run.path, "eval_*/*/result.json")
                if "evaluated" in result
            ],
            diagnoses=[
                result for _, result in read_results(run.path, "eval_diagnose/*/result.json")
            ],
            offsets=[
                result
                for _, result in read_results(run.path, "eval_offsets/*/result.json")
                if "curve" in result
            ],
            offline=[result for _, result in read_results(run.path, "eval_offline/*/result.json")],
            episodes=_arrays(Episodes, plan / "episodes.npz", unit=success.get("unit") or ""),
            energy=_arrays(Energy, plan / "energy.npz"),
            film=_arrays(Film, plan / "film.npz"),
            strips=_arrays(Strips, run.path / "report" / "strips.npz"),
        )


def read_results(run: Path, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the evaluation's name, its result) of the files in a run's folder; UserError where one is
    damaged."""
    for file in sorted(run.glob(pattern)):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: is damaged ({error}); delete {file.parent} and evaluate again"
            ) from None
        yield file.relative_to(run).parts[0].removeprefix("eval_"), result


def _arrays(kind: type[Arrays], path: Path, **more: str) -> Arrays | None:
    """The arrays of an npz, checked; None if there is no file or there is nothing in its
    arrays."""
    if not path.exists():
        return None
    hints = get_type_hints(kind, include_extras=True).items()
    axes = {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}
    remedy = f"delete it and run 'jepa-wm {path.parent.name}' again"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in axes}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None

    # Every letter has the size that it was first met with.
    sizes: dict[str, int] = {}
    for name, expected in axes.items():
        if not _fits(arrays[name].shape, expected, sizes):
            known = ", ".join(f"{letter}={size}" for letter, size in sizes.items())
            raise UserError(
                f"{path}: {name!r} has shape {arrays[name].shape}, not [{expected}] ({known}); "
                f"{remedy}"
            )
    return kind(**arrays, **more) if all(array.size for array in arrays.values()) else None


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


def make_strips(
    run: Path, heldout: Path, path: Path, *, context_frames: int, frameskip: int
) -> None:
    """Write `Strips` of held-out episodes, imagined by the trained run in the folder `run`.

    All three start at the same real frame, up to which the model has observed as many as when an
    agent acts; `shuffled` imagines with another window's actions."""
    data, model = Trajectories(heldout), WorldModel.load(run)

    # Windows of as many observed frames as an agent has, and as long a future as there is.
    steps = usual_steps(data.lengths, frameskip)
    observed = min(context_frames, steps)
    horizon = min(HORIZON, steps - observed + 1)
    sampler = WindowSampler(
        data, frames=observed + horizon, frameskip=frameskip, stride=1, seed=1,
        setting="film strips: frames seen and imagined",
    )  # fmt: skip
    episode, frame, actions = sampler.batch(0, CLIPS)
    rows = data.offsets[episode] + frame  # [C, observed + H]
    recording = Recording(data, model.latent_model)
    blocks = recording.blocks(episode, frame, actions).to(model.device)

    # The latents of the observed frames, as an agent believes them that has observed them all.
    seen = [
        model.encode(torch.from_numpy(data.frames[at]), recording.at_rows(at))
        for at in rows[:, :observed].T
    ]
    context = model.latent.believed_together(torch.stack(seen, 1))  # [C, observed, N, D]

    # Each imagined latent is shown as the real frame whose latent lies nearest.
    spread = np.linspace(0, len(data.actions) - 1, min(BANK, len(data.actions)))
    bank_rows = np.unique(spread.astype(np.int64))
    bank = model.latent.compared(model.encode(torch.from_numpy(data.frames[bank_rows])))
    bank = bank.flatten(1).cpu()
    true = data.frames[rows[:, observed - 1 :]]
    past, strips = blocks[:, : observed - 1], {"true": true}
    for name, taken in (("imagined", blocks), ("shuffled", blocks.roll(1, 0))):
        plans = taken[:, None, observed - 1 :]
        latents = model.latent.compared(model.imagine(context, past, plans)).flatten(0, 2)
        shown = data.frames[bank_rows[nearest(latents.flatten(1).cpu(), bank)]]
        shown = shown.reshape(len(rows), horizon, *true.shape[2:])
        strips[name] = np.concatenate([true[:, :1], shown], 1)
    np.savez_compressed(path, **strips)


def nearest(latents: Tensor, bank: Tensor) -> np.ndarray:
    """[C*H] which of a bank [R, N*D] lies nearest to each latent [C*H, N*D]; ValueError for
    values that are not finite."""
    # Measured directly: |a|^2 - 2ab + |b|^2 is inexact for near neighbours.
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(latents.float(), bank.float(), compute_mode=exact)
    if not distance.isfinite().all():
        raise ValueError("latents: hold values that are not finite; check what made them")
    return distance.argmin(1).numpy()
