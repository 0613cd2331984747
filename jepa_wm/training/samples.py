"""What teaches heads: latents of a trajectory file beside the columns it has, drawn as pure
functions of the step.

B samples, E episodes, C frames seen, N latent tokens of width D, F flattened latent width, H model
steps, k frameskip, A = action size a x k, Y state numbers."""

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
from jepa_wm.data.datasets import open_data
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import FrameSampler, GoalSampler, StepSampler
from jepa_wm.features.cache import Features
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.world_model.latents import Latents

AT_ONCE = 2**15  # tokens imagined together, which bounds the memory


@dataclass
class Samples:
    """Latents of a trajectory file and the columns that teach heads, drawn as pure functions of
    the step."""

    data: Trajectories
    latents: Latents
    model: LatentModel
    precision: str
    columns: dict[str, np.ndarray]
    model_steps: StepSampler
    goals: GoalSampler
    frames: FrameSampler

    @classmethod
    def of_run(
        cls, run: Path, data_path: str | None, model: LatentModel,
        part: Literal["train", "heldout"], *, policy_steps: int, seed: int, precision: str,
    ) -> Samples:  # fmt: skip
        data = open_data(run, data_path, part)
        features = Features(run / "features" / part, data)
        columns = teaching_columns(data)
        taken, ended = ends(data, columns.get("terminated"))
        skip, stride = model.frameskip, features.stride
        return cls(
            data, Latents(model, features, precision), model, precision, columns,
            StepSampler(data, taken=taken, ended=ended, frameskip=skip, stride=stride, seed=seed),
            GoalSampler(data, steps=policy_steps, frameskip=skip, stride=stride, seed=seed),
            FrameSampler(data, stride=stride, seed=seed),
        )  # fmt: skip

    def steps(
        self, step: int, batch: int, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(before [B, F], after [B, F], scaled blocks [B, A], {"reward": [B] earned in the model
        step, "terminated": [B] whether the episode ended in it}) of batch `step`, or of some of
        its samples.

        `after` is what the dynamics imagine, as in planning: of a step in which an episode ends
        there is no frame k actions later, and were an earlier one to stand in for it, that it has
        come less far would tell the end."""
        episode, frame, rows, taken, blocks = (
            drawn[part] for drawn in self.model_steps.batch(step, batch)
        )
        actions = self.model.scaled(on_device(blocks))
        before, after = (
            on_device(self.latents.flat(episode, frame)),
            self._imagined(episode, frame, actions),
        )
        truth = {}
        if "reward" in self.columns:
            truth["reward"] = on_device((self.columns["reward"][rows] * taken).sum(1))
        if "terminated" in self.columns:
            truth["terminated"] = on_device(self.columns["terminated"][rows].any(1)).float()
        return before, after, actions, truth

    @torch.no_grad()
    def _imagined(self, episode: np.ndarray, frame: np.ndarray, actions: Tensor) -> Tensor:
        """[B, F] latents a model step with scaled blocks [B, A] after frames [B] of episodes,
        imagined from as many frames as an agent has seen that began with the episode."""
        skip, model = self.model.frameskip, self.model
        seen = np.minimum(frame // skip + 1, model.context_frames)  # [B]
        most = max(1, AT_ONCE // (model.latent.tokens * model.context_frames))  # samples
        after = torch.empty(len(frame), model.flat_width, device=actions.device)
        for count in np.unique(seen).tolist():
            of_count = np.flatnonzero(seen == count)
            for part in np.array_split(of_count, -(-len(of_count) // most)):
                earlier = frame[part, None] + skip * np.arange(1 - count, 1)  # [b, C]
                of = np.broadcast_to(episode[part, None], earlier.shape)
                context = on_device(self.latents.at(of, earlier, belief_at=earlier[:, -1:]))
                past = (self.data.offsets[of] + earlier)[:, :-1, None] + np.arange(
                    skip
                )  # [b, C-1, k]
                blocks = on_device(
                    self.data.actions[past].reshape(len(part), count - 1, model.block)
                )
                with autocast(actions.device, self.precision):
                    imagined = model.dynamics.rollout_one(
                        context, model.scaled(blocks), actions[part][:, None]
                    )
                after[part] = model.flat(imagined[:, 0].float())
        return after

    def states(self, step: int, batch: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(latents [B, F], states [B, Y]) of single frames of batch `step`, or of some of its
        samples."""
        episode, frame = (drawn[part] for drawn in self.frames.batch(step, batch))
        state = self.columns["state"][self.data.offsets[episode] + frame]
        return on_device(self.latents.flat(episode, frame)), on_device(state)

    def ways(
        self, step: int, batch: int, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(start [B, F], goal [B, F], scaled blocks [B, H, A], which of them count [B, H]) of
        batch `step`, or of some of its samples."""
        episode, frames, blocks, counts = self.goals.batch(step, batch)
        flat = on_device(self.latents.toward(episode[part], frames[:, part]))
        return (
            flat[0],
            flat[1],
            self.model.scaled(on_device(blocks[part])),
            on_device(counts[part]),
        )

    def step_rewards(self) -> np.ndarray:
        """What each model step that may be drawn earns, in no particular order."""
        skip, reward = self.model.frameskip, self.columns["reward"]
        sums = []
        for offset, taken, ended in zip(
            self.data.offsets, self.model_steps.taken, self.model_steps.ended, strict=True
        ):
            sums.append(block_sums(reward[offset : offset + taken], skip, cut=bool(ended)))
        return np.concatenate(sums)


def on_device(values: np.ndarray | Tensor) -> Tensor:
    """The values where this process computes."""
    return torch.as_tensor(values).to(dist().device)


def ends(data: Trajectories, terminated: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(taken [E], ended [E]): how many actions of each episode were taken up to its end, from its
    first on, and whether the last of them ended it.

    The first row that says `terminated` [rows] is the end: also an episode's last one, where a
    format stores no frame after it. Without such a row the recording merely stopped, and its last
    action leads nowhere. Without the column nothing tells the two apart, and what was earned up to
    a recording's end then counts as the end's."""
    taken = data.lengths - 1
    if terminated is None:
        return taken, taken > 0
    taken, ended = taken.copy(), np.zeros(data.episodes, bool)
    for e, (offset, length) in enumerate(zip(data.offsets, data.lengths, strict=True)):
        at = np.flatnonzero(terminated[offset : offset + length])
        if len(at):
            taken[e], ended[e] = at[0] + 1, True
    return taken, ended


def block_sums(rewards: np.ndarray, skip: int, *, cut: bool) -> np.ndarray:
    """Sums over every `skip` consecutive rewards of an episode's taken actions; with `cut` also
    over the fewer that are left at its end."""
    total = np.concatenate([[0], np.cumsum(rewards, dtype=np.float64)])
    sums = total[skip:] - total[:-skip]
    return (
        np.concatenate([sums, total[-1] - total[max(0, len(rewards) - skip + 1) : -1]])
        if cut
        else sums
    )


def teaching_columns(data: Trajectories) -> dict[str, np.ndarray]:
    """Those of reward [rows], terminated [rows] and state [rows, Y] that the file has; UserError
    for a broken one."""
    columns = {}
    for name in ("reward", "terminated", "state"):
        if name not in data:
            continue
        values = data.column(name).astype(np.float32).reshape(len(data.actions), -1)
        if not np.isfinite(values).all():
            raise UserError(
                f"{data.path}: column '{name}' is not finite in some rows; mend it, or leave "
                "it out"
            )
        if name != "state" and values.shape[1] != 1:
            raise UserError(
                f"{data.path}: column '{name}' holds {values.shape[1]} numbers a row; give one"
            )
        columns[name] = values if name == "state" else values[:, 0]
    return columns
