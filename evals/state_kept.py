"""What of the state each stage of a trained model keeps: the same small reader on frozen features,
on the latent as an agent believes it, and on latents that are imagined.

B held-out windows, b of them at a time, C frames seen, H horizon, R rows of frames, N tokens of
width D, X state numbers, Y the same unrolled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.scaling import own_scale
from jepa_wm.data.held_out import check_same_state
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.windows import FrameSampler, WindowSampler
from jepa_wm.features.cache import Features
from jepa_wm.features.probes import (
    MAX_NORM,
    AttentiveProbe,
    Head,
    TargetScale,
    attentive_loss,
    fit_attentive,
    seeded,
    train_heads,
)
from jepa_wm.models.blocks import mlp
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.world_model.latents import Latents, Recording
from jepa_wm.world_model.rollout_error import (
    NUMBERS,
    PROBE_FRAMES,
    encoded_windows,
    feature_decoder,
    span,
)
from jepa_wm.worlds.tasks import Episodes, Task

WINDOWS = 600  # held-out windows whose last frames are read
HELD = 2**28  # numbers of training frames that are held at once
WIDTH, RATE, DECAY = 256, 2e-3, 1e-2  # of a reader of one token, and how it is trained
MAP_WEIGHT = 16  # numbers that a map counts as, however many it has
MOVES = 1e-6  # a change of distance that is one


class FlatReader(nn.Module):
    """An MLP on all numbers of a latent, each with mean 0 and spread 1; those of a map together
    count as a few."""

    centre: Tensor
    scale: Tensor

    def __init__(self, sample: Tensor, outputs: int, map_dim: int) -> None:
        """In the units of sample latents [R, D]."""
        super().__init__()
        scale = own_scale(sample)
        if map_dim:
            scale[-map_dim:] *= (map_dim / min(MAP_WEIGHT, map_dim)) ** 0.5
        self.register_buffer("centre", sample.mean(0))
        self.register_buffer("scale", scale)
        self.net = mlp(sample.shape[1], outputs, WIDTH, depth=2)

    def forward(self, tokens: Tensor) -> Tensor:
        """[R, Y] from latents [R, 1, D]."""
        out: Tensor = self.net((tokens.flatten(1) - self.centre) / self.scale)
        return out


@dataclass(frozen=True)
class StateReader:
    """Reads the state from tokens; whole numbers stay whole, and none leaves the data's range."""

    probe: AttentiveProbe
    known: Quantities
    states: np.ndarray  # [R, X] that it was fitted to

    def __call__(self, tokens: Tensor) -> np.ndarray:
        """[R, X] states in their own units from tokens [R, N, D]."""
        return self.known.rolled(self.probe.predict(tokens).numpy()).astype(np.float32)

    def possible(self, tokens: Tensor) -> np.ndarray:
        """[R, X] the same, moved to where the states of the data can be."""
        state = self(tokens)
        whole = (self.states == self.states.round()).all(0)
        state = np.where(whole, state.round(), state)
        low, high = self.states.min(0), self.states.max(0)
        # An angle is as good a turn further on, where the data count from 0, say.
        for number, turn in self.known.angles().items():
            state[..., number] = low[number] + (state[..., number] - low[number]) % turn
            high[number] = max(high[number], low[number] + turn)
        return np.clip(state, low, high).astype(np.float32)


class StatesRead:
    """Readers of one run's state, each fitted when it is first asked for; the same seeds give the
    same readers."""

    def __init__(
        self, model: LatentModel, train: Features, heldout: Features, *, steps: int
    ) -> None:
        """`steps` of training a reader."""
        check_same_state(train.data, heldout.data)
        self.model, self.train, self.heldout, self.steps = model, train, heldout, steps
        self.known, self.believed = train.data.quantities, Latents(model, heldout)
        count = min(PROBE_FRAMES, max(500, HELD // train.numbers))
        self._drawn = FrameSampler(train.data, stride=train.stride, seed=6).batch(0, count)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the state numbers, where the data name them."""
        return tuple(self.train.data.text("state_names").split())

    @cached_property
    def states(self) -> np.ndarray:
        """[R, X] of the training frames that readers are fitted on."""
        data, (episode, frame) = self.train.data, self._drawn
        return data.states()[data.offsets[episode] + frame]

    @cached_property
    def features(self) -> StateReader:
        """Of frozen tokens: the online probe's attentive pool."""
        return self._fit(self.train.tokens(*self._drawn), "read features")

    @cached_property
    def latent(self) -> StateReader:
        """Of latents as they are believed: the same pool where they are of several tokens, else an
        MLP."""
        return self._fit(self._trained.at(*self._drawn), "read latent", self.model.latent.map_dim)

    @cached_property
    def _trained(self) -> Latents:
        return Latents(self.model, self.train)

    @property
    def latent_read(self) -> str:
        """What is read of a latent, in words."""
        latent = self.model.latent
        parts = [f"{latent.visual_dim} dynamic numbers"]
        if latent.proprio is not None:
            parts.append(f"{latent.proprio.count} numbers of proprioception (states)")
        if static := latent.static_dim - latent.map_dim:
            parts.append(f"{static} static numbers")
        if latent.map_dim:
            parts.append(f"the whole map of {latent.map_dim}")
        tokens = "" if latent.tokens == 1 else f", of each of {latent.tokens} tokens"
        return f"{' and '.join(parts)} as believed{tokens}"

    def rows(self, task: Task, episodes: Episodes, *, horizon: int) -> dict[str, object]:
        """`state`: for each group its normalised mean square error (1: as the mean's) and mean
        error in its unit, read from the last frames of held-out windows: from `features`, from
        the `latent`, and from the latent `imagined` from `horizon` model steps before with the
        recorded actions, or `shuffled`, with another window's. `feature_variance_kept`: the share
        of the features' variance that a linear map of the latent tells."""
        model, data = self.model, self.heldout.data
        most = min(horizon, model.dynamics.longest_horizon)
        seen, horizon = span(data, model.settings.dynamics, most=most)
        sampler = WindowSampler(
            data, frames=seen + horizon, frameskip=model.frameskip, stride=self.heldout.stride,
            seed=1, setting="diagnosis: frames seen and planner.mpc.horizon",
        )  # fmt: skip
        episode, frame, actions = sampler.batch(0, WINDOWS)
        blocks = Recording(data, model).blocks(episode, frame, actions)
        past, ahead = model.scaled(blocks.to(dist().device)).split([seen - 1, horizon], 1)

        # The readers are trained before anything is read, which needs no gradient.
        _ = self.features, self.latent
        truth = data.states()[data.offsets[episode[:, -1]] + frame[:, -1]]
        states, kept = self._read(episode, frame, past, ahead)
        return {
            "state": self._rows(
                states, truth, groups_of_task(task, episodes, truth, self.known, self.names)
            ),
            "horizon": horizon,
            "feature_variance_kept": kept,
            "latent_read": self.latent_read,
        }

    @torch.no_grad()
    def _read(
        self, episode: np.ndarray, frame: np.ndarray, past: Tensor, ahead: Tensor
    ) -> tuple[dict[str, np.ndarray], float | None]:
        """(the states [B, X] that are read from the last frames of windows [B, C+H], by what they
        are read from; the share of the features' variance that is kept) for scaled action blocks
        past [B, C-1, A] and ahead [B, H, A]."""
        model, seen = self.model, past.shape[1] + 1
        decode = feature_decoder(model, self._trained)
        futures = {"imagined": ahead, "shuffled": ahead.roll(1, 0)}
        parts: dict[str, list[np.ndarray]] = {}
        squares, sums, missed = 0.0, torch.zeros(self.heldout.numbers, dtype=torch.float64), 0.0
        together = max(1, NUMBERS // (frame.shape[1] * self.heldout.numbers))
        for first in range(0, WINDOWS, together):
            rows = slice(first, first + together)
            e, f = episode[rows], frame[rows]
            tokens, latents = encoded_windows(model, self.believed, e, f, seen)
            now = self.believed.at(e[:, -1], f[:, -1]).to(tokens.device)
            read = {"features": self.features(tokens[:, -1]), "latent": self.latent(now)}
            for name, plan in futures.items():
                future = model.dynamics.rollout_one(latents[:, :seen], past[rows], plan[rows])
                read[name] = self.latent(future[:, -1].float())
            for name, values in read.items():
                parts.setdefault(name, []).append(values)

            # Sums over frames, since all features at once may be too many to hold.
            features = tokens[:, -1].flatten(1)  # [b, N * D]
            if not model.latent.lossless:
                missed += float((decode(now) - features).double().square().sum())
            squares += float(features.double().square().sum())
            sums += features.double().sum(0).cpu()
        variance = squares - float(sums.square().sum()) / WINDOWS
        kept = 1 - missed / variance if variance > 0 else None
        return {name: np.concatenate(values) for name, values in parts.items()}, kept

    def _rows(
        self, states: dict[str, np.ndarray], truth: np.ndarray, of_task: set[str]
    ) -> list[dict[str, object]]:
        """A row for each group, of states [B, X] that were read."""
        known = self.known
        mean = known.rolled(known.unrolled(self.states).mean(0))
        normalised = {
            name: known.normalised_errors(read, truth, mean) for name, read in states.items()
        }
        errors = {name: known.errors(read, truth) for name, read in states.items()}
        return [
            {"group": group, "of_task": group in of_task}
            | {name: each.get(group) for name, each in normalised.items()}
            | {f"{name}_error": float(each[group].mean()) for name, each in errors.items()}
            | {"unit": known.unit(group)}
            for group in known.groups
        ]

    def _fit(self, tokens: Tensor, label: str, map_dim: int = 0) -> StateReader:
        """A reader of tokens [R, N, D] of the frames that were drawn."""
        target = torch.from_numpy(self.known.unrolled(self.states)).float()
        tokens = tokens.to(dist().device)
        if tokens.shape[1] > 1:
            probe = fit_attentive(tokens, target, steps=self.steps, label=label)
            return StateReader(probe, self.known, self.states)
        flat, size = tokens.flatten(1).float(), target.shape[1]
        module = seeded(lambda: FlatReader(flat.cpu(), size, map_dim), 0).to(tokens.device)
        head, scale = Head("flat", RATE, DECAY, module), TargetScale.of(target)
        train_heads(
            [head], tokens, scale.standardise(target), steps=self.steps, batch_size=128, seed=0,
            loss=attentive_loss, max_norm=MAX_NORM, label=label,
        )  # fmt: skip
        return StateReader(AttentiveProbe(head, scale), self.known, self.states)


def groups_of_task(
    task: Task, episodes: Episodes, states: np.ndarray, known: Quantities,
    names: tuple[str, ...],
) -> set[str]:  # fmt: skip
    """The groups of states [B, X] that the task's distance to the goals of episodes depends on;
    none, where the data's state has other numbers than the world's, so that it is not known."""
    if names != task.begin(episodes.part(0, 1)).state_names:
        return set()
    goal = episodes.goal[np.arange(len(states)) % len(episodes)]
    distance = task.distance(task.position(states), goal)
    counting = set()
    for name, ids in known.groups.items():
        other = states.copy()
        other[:, list(ids)] = np.roll(states, len(states) // 2, 0)[:, list(ids)]
        if np.abs(task.distance(task.position(other), goal) - distance).max() > MOVES:
            counting.add(name)
    return counting
