"""Training V-JEPA 2's action-conditioned predictor on a frozen encoder: tokens and poses of a
robot's hand.

B windows, T frames, N tokens a frame, D width, H horizon; poses and actions have 7 numbers, see
`dynamics.poses`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.data.datasets import open_data
from jepa_wm.data.windows import WindowSampler, usual_steps
from jepa_wm.features.cache import Features
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.action_predictor import ActionPredictor
from jepa_wm.models.poses import difference
from jepa_wm.models.settings import DynamicsSettings
from jepa_wm.training.loop import Execution, TrainingTask, fit
from jepa_wm.training.settings import TrainMotion
from jepa_wm.world_model.saved import save_action_predictor
from jepa_wm.world_model.vjepa2_ac_rollout import imagine_poses, normalised

WINDOWS, HORIZON = 100, 8  # of the rollout error


@dataclass(frozen=True)
class Recipe:
    """The settings that make up such a training."""

    seed: int
    data_path: str | None
    dynamics: DynamicsSettings
    train: TrainMotion


class Windows:
    """Windows of a features file as the predictor is trained on them: LayerNorm'd tokens, poses,
    and the actions between them, which are the differences of the poses."""

    def __init__(
        self, run: Path, recipe: Recipe, part: Literal["train", "heldout"], frames: int
    ) -> None:
        self.data = open_data(run, recipe.data_path, part)
        self.features = Features(run / "features" / part, self.data)
        self.encoder = FrozenEncoder.load(run / "features")
        self.sampler = WindowSampler(
            self.data, frames=frames, frameskip=recipe.dynamics.frameskip, stride=self.features.stride,
            seed=recipe.seed,
        )  # fmt: skip
        self.states = self.data.column("state").astype(np.float32)
        if self.states.shape[1:] != (7,):
            raise UserError(
                f"{self.data.path}: 'state' has shape {self.states.shape[1:]}; dynamics.kind "
                "vjepa2_ac wants 7 numbers "
                "a frame: place, Euler angles, opening of the gripper"
            )
        if not np.isfinite(self.states).all():
            raise UserError(
                f"{self.data.path}: 'state' is not finite in some rows; mend it, or leave such "
                "episodes out"
            )

    def reach(self) -> tuple[list[float], list[float]]:
        """The least and the largest of each of the 7 numbers by which the pose changes in an
        environment step."""
        low, high = torch.full((7,), torch.inf), torch.full((7,), -torch.inf)
        for first, count in zip(self.data.offsets, self.data.lengths, strict=True):
            poses = torch.from_numpy(self.states[first : first + count])
            if count > 1:
                steps = difference(poses[:-1], poses[1:])
                low, high = torch.minimum(low, steps.amin(0)), torch.maximum(high, steps.amax(0))
        return low.tolist(), high.tolist()

    def batch(self, step: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens [B, T, N, D], poses [B, T, 7], actions [B, T-1, 7])."""
        episode, frame, _ = self.sampler.batch(step, batch)
        seen = (
            self.features.tokens(episode, frame).float() * self.encoder.scale + self.encoder.mean
        )  # before standardising
        poses = torch.from_numpy(self.states[self.data.offsets[episode] + frame])
        return normalised(seen), poses, difference(poses[:, :-1], poses[:, 1:])


def train(run: Run, recipe: Recipe, how: Execution) -> dict[str, object]:
    """The `dynamics` stage where `dynamics.kind` is vjepa2_ac; interrupted, it goes on from the
    newest checkpoint."""
    settings, d = recipe.train, recipe.dynamics
    windows = Windows(run.path, recipe, "train", settings.frames)
    grid = round(windows.encoder.tokens_per_frame**0.5)
    model = ActionPredictor(
        encoder_width=windows.encoder.width, grid=grid, width=d.width, depth=d.depth, num_heads=d.num_heads
    )  # fmt: skip
    model.extrinsics.requires_grad_(False)  # of the released layout; no camera is placed here

    def losses_of(step: int, some: slice) -> dict[str, Tensor]:
        tokens, poses, actions = (
            drawn[some].to(dist().device) for drawn in windows.batch(step, settings.batch)
        )
        with autocast(tokens.device, how.precision):
            return losses(model, tokens, poses, actions, rollout=settings.rollout)

    seconds = fit(
        run,
        TrainingTask("dynamics", model.to(dist().device), losses_of, part="dynamics"),
        settings,
        how,
    )
    if dist().first:
        save_action_predictor(run.stage_dir("dynamics"), model, d, *windows.reach())
    return {"rollout": heldout_errors(run.path, recipe, model), "training_seconds": seconds}


def heldout_errors(
    run: Path, recipe: Recipe, model: ActionPredictor
) -> list[dict[str, float | int]]:
    """`rollout_errors` of the run's held-out trajectories, over as much of the horizon as half of
    them have."""
    longest = usual_steps(
        open_data(run, recipe.data_path, "heldout").lengths, recipe.dynamics.frameskip
    )
    heldout = Windows(run, recipe, "heldout", min(HORIZON, longest) + 1)
    tokens, poses, actions = (drawn.to(dist().device) for drawn in heldout.batch(0, WINDOWS))
    return rollout_errors(model, tokens, poses, actions)


def losses(
    model: ActionPredictor, tokens: Tensor, poses: Tensor, actions: Tensor, *, rollout: float
) -> dict[str, Tensor]:
    """Mean absolute errors of windows [B, T, N, D] with poses [B, T, 7] and actions [B, T-1, 7]
    (Assran et al., 2025).

    `forced`: each next frame from the true ones before it; `rollout`: the second frame after the
    first two steps, the first of which is imagined. Guesses are LayerNorm'd as the frames are."""
    ahead = normalised(model(tokens[:, :-1], actions, poses[:, :-1]))
    found = {"forced": (ahead - tokens[:, 1:]).abs().mean()}
    found["loss"] = found["forced"]
    if rollout and tokens.shape[1] > 2:
        seen = torch.cat([tokens[:, :1], ahead[:, :1]], 1)
        second = normalised(model(seen, actions[:, :2], poses[:, :2])[:, -1])
        found["rollout"] = (second - tokens[:, 2]).abs().mean()
        found["loss"] = found["forced"] + rollout * found["rollout"]
    return found


@torch.no_grad()
def rollout_errors(
    model: ActionPredictor, tokens: Tensor, poses: Tensor, actions: Tensor
) -> list[dict[str, float | int]]:
    """One row a horizon: mean |imagined - true| over mean |first - true|, with true actions and
    another window's."""
    truth, first = tokens[:, 1:], tokens[:, :1]
    copying = (first - truth).abs().mean((0, 2, 3))
    relative = []
    for acts in (actions, actions.roll(1, 0)):
        imagined = imagine_poses(model, tokens[:, 0], poses[:, 0], acts[:, None])[0][:, 0]
        relative.append(((imagined - truth).abs().mean((0, 2, 3)) / copying).tolist())
    return [
        {
            "horizon": h + 1,
            "relative_error": relative[0][h],
            "relative_error_shuffled": relative[1][h],
        }
        for h in range(truth.shape[1])
    ]
