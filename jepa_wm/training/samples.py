"""What trainings draw as pure functions of the step: clips for pretraining; for heads, latents of
a trajectory file beside the columns it has.

B samples, T frames, R distant frames, px side of a picture of C channels, h x w px as stored; E
episodes, C context frames, N latent tokens of width D, F flattened latent width, k
frameskip, A = action size a x k, Y state numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.data.clips import ClipSource
from jepa_wm.data.images import augment, draw_augmentation, to_input
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import FrameSampler, GoalSampler, StepSampler
from jepa_wm.features.cache import Features
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.jepa import Batch
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.masks import draw_masks
from jepa_wm.world_model.latents import Latents

AT_ONCE = 2**15  # tokens imagined together, which bounds the memory


@dataclass(frozen=True)
class BatchReader:
    """Batches as functions of (step, rows). All that is random is drawn for the whole batch, then
    cut: so the union over ranks is what one process would have drawn."""

    source: ClipSource
    data: DataSettings
    encoder: EncoderSettings
    jepa: JepaSettings
    seed: int

    def read(self, step: int, rows: slice) -> Batch:
        """The samples `rows` of the batch of a step, where this process computes."""
        sample, device = self.source.sample(step, rows), dist().device
        grid = self.data.image_size // self.encoder.patch_size
        shape = (self.source.batch.clips, self.data.num_frames // self.encoder.tubelet_size, grid)
        masks = draw_masks(self.jepa, shape, self._generator(step))
        images = self._images(sample.frames, step, rows)
        return Batch(
            clip=images[:, : self.data.num_frames],
            distant=images[:, self.data.num_frames :],
            masks=[mask.of(rows).to(device) for mask in masks],
            actions=sample.displacement.to(device),
            episode=sample.episode.to(device),
            time=sample.rows.to(device),
        )

    def _images(self, frames: Tensor, step: int, rows: slice) -> Tensor:
        """[B, T + R, C, px, px] in -1..1 from uint8 frames [B, T + R, h, w, C]."""
        device, settings = dist().device, self.data.augment
        if settings is None:
            return to_input(frames.to(device), self.data.image_size)
        # One view for the clip and its distant frames, since what lasts is at the same place.
        generator = self._generator(step + 2**40)
        u = draw_augmentation(self.source.batch.clips, generator)[:, rows]
        return augment(frames, settings, self.data.image_size, u).to(device)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


@dataclass
class Samples:
    """Latents of a trajectory file and its columns, drawn as pure functions of the step."""

    data: Trajectories
    latents: Latents
    model: LatentModel
    precision: str
    columns: dict[str, np.ndarray]
    model_steps: StepSampler
    pairs: GoalSampler
    frames: FrameSampler

    @classmethod
    def of(
        cls,
        features: Features,
        model: LatentModel,
        *,
        policy_steps: int,
        seed: int,
        precision: str,
    ) -> Samples:
        """Of a trajectory file's frozen features."""
        data, skip, stride = features.data, model.frameskip, features.stride
        columns = teaching_columns(data)
        taken, ended = ends(data, columns.get("terminated"))
        # One seed for all: each sampler mixes in a number of its own, so that none follows
        # another.
        return cls(
            data, Latents(model, features), model, precision, columns,
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
        # The whole batch is drawn and a part of it kept: how a batch is cut up, over ranks or to
        # fit the memory, changes none of its samples.
        episode, frame, rows, taken, blocks = (
            drawn[part] for drawn in self.model_steps.batch(step, batch)
        )
        actions = self.model.scaled(on_device(blocks))
        before = on_device(self.latents.flat(episode, frame))
        after = self._imagined(episode, frame, actions)

        # Rows of actions after an end repeat the last one taken: its reward must not count again,
        # and an end is an end however often it is said.
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
        model = self.model
        counts = np.minimum(frame // model.frameskip + 1, model.context_frames)  # [B]
        most = max(1, AT_ONCE // (model.latent.tokens * model.context_frames))  # samples
        after = torch.empty(len(frame), model.flat_width, device=actions.device)
        # Near the start of an episode there are fewer frames to see: samples that have the same
        # number of them are imagined together, no more at a time than the memory is for.
        for count in np.unique(counts).tolist():
            of_count = np.flatnonzero(counts == count)
            for part in np.array_split(of_count, -(-len(of_count) // most)):
                context, past = self._context(episode[part], frame[part], count)
                with autocast(actions.device, self.precision):
                    imagined = model.dynamics.rollout_one(context, past, actions[part][:, None])
                after[part] = model.flat(imagined[:, 0].float())
        return after

    def _context(
        self, episode: np.ndarray, frame: np.ndarray, count: int
    ) -> tuple[Tensor, Tensor]:
        """(latents [B, C, N, D] of the C = `count` frames up to frames [B], with the static
        numbers believed at the last, scaled blocks [B, C-1, A] between them)."""
        skip = self.model.frameskip
        earlier = frame[:, None] + skip * np.arange(1 - count, 1)  # [B, C]
        episodes = np.broadcast_to(episode[:, None], earlier.shape)
        context = self.latents.at(episodes, earlier, belief_at=earlier[:, -1:])
        first = (self.data.offsets[episodes] + earlier)[:, :-1, None]  # [B, C-1, 1] rows
        past = self.data.actions[first + np.arange(skip)]  # [B, C-1, k, a]
        blocks = on_device(past.reshape(len(frame), count - 1, self.model.block))
        return on_device(context), self.model.scaled(blocks)

    def states(self, step: int, batch: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(latents [B, F], states [B, Y]) of single frames of batch `step`, or of some of its
        samples."""
        episode, frame = (drawn[part] for drawn in self.frames.batch(step, batch))
        state = self.columns["state"][self.data.offsets[episode] + frame]
        return on_device(self.latents.flat(episode, frame)), on_device(state)

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
    # What comes after the first end is no part of the episode, whatever the file holds there.
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
    if not cut:
        return sums
    shorter = total[-1] - total[max(0, len(rewards) - skip + 1) : -1]
    return np.concatenate([sums, shorter])


def teaching_columns(data: Trajectories) -> dict[str, np.ndarray]:
    """Those of reward [rows], terminated [rows] and state [rows, Y] that the file has; UserError
    for a broken one."""
    columns = {}
    for name in ("reward", "terminated", "state"):
        if name not in data:
            continue
        values = data.column(name).astype(np.float32).reshape(len(data.actions), -1)
        # One such row would make every weight of its head NaN.
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
