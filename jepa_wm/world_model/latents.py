"""The latents of a features file as an agent would have them, frame by frame, and what was done
between them.

R rows of the store, B samples, T frames, k frameskip, a numbers of an action, A = k * a, N latent
tokens of width D, F numbers that distance and heads read, n frozen tokens of width E, P numbers of
proprioception."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.data.state_columns import StateColumns
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features.cache import Features
from jepa_wm.features.store import encoded_rows
from jepa_wm.models.latent_model import LatentModel

SLAB = 1024  # frames read in one go
FAST = 0.9  # share of all ways that is gone in moves of a model step no longer than a fast one


class Recording:
    """What a model reads of a trajectory file beside its frames: proprioception, where the latent
    asks for it, and what was done."""

    def __init__(self, data: Trajectories, model: LatentModel) -> None:
        self.data, self.model = data, model
        self._states: Tensor | None = None
        if model.latent.proprio is not None:
            columns = StateColumns.of_data(model.settings.latent.proprio, data)
            columns.check_units(model.proprio_units, whose=str(data.path))
            self._states = torch.from_numpy(self._finite(columns.read(data.states())))
        elif model.latent.proprio_size:
            self._states = torch.from_numpy(self._pose(model.latent.proprio_size))

    def fit_proprio(self) -> None:
        """Have the latent's named proprioception take its units from all rows."""
        if self._states is not None and self.model.latent.proprio is not None:
            self.model.latent.proprio.fit(self._states)

    def proprio(self, episode: np.ndarray, frame: np.ndarray) -> Tensor | None:
        """[..., P] of frames of episodes, arrays of one shape; None: the latent asks for none."""
        return self.at_rows(self.data.offsets[episode] + frame)

    def at_rows(self, rows: np.ndarray) -> Tensor | None:
        """[..., P] of rows of the file, as `proprio`."""
        return None if self._states is None else self._states[rows]

    def blocks(self, episode: np.ndarray, frame: np.ndarray, actions: np.ndarray) -> Tensor:
        """[B, T-1, A] raw action blocks between frames [B, T], k steps apart, of episodes [B, T]:
        the recorded actions [B, T-1, A], or what the proprioception says was done."""
        if not self.model.settings.dynamics.acts_by_proprio:
            return torch.from_numpy(actions)
        steps = np.arange(frame[0, -1] - frame[0, 0] + 1)
        proprio = self.proprio(
            np.repeat(episode[:, :1], len(steps), 1), frame[:, :1] + steps
        )  # [B, (T-1)*k + 1, P]
        assert proprio is not None
        done = self.model.dynamics.actions_of(proprio)  # [B, (T-1)*k, a]
        return done.unflatten(1, (frame.shape[1] - 1, -1)).flatten(2)

    def taken_actions(self) -> np.ndarray:
        """[n, a] all environment actions that led anywhere."""
        if not self.model.settings.dynamics.acts_by_proprio:
            return self.data.taken_actions
        assert self._states is not None
        each = [
            self.model.dynamics.actions_of(self._states[first : first + count])
            for first, count in zip(self.data.offsets, self.data.lengths, strict=True)
            if count > 1
        ]
        return torch.cat(each).numpy()

    def _pose(self, size: int) -> np.ndarray:
        """[rows, P] the column 'state'; UserError where it is not what the latent asks for."""
        states = self.data.column("state").astype(np.float32)
        name = self.model.settings.latent.name
        if states.shape[1:] != (size,):
            raise UserError(
                f"{self.data.path}: 'state' has shape {states.shape[1:]}; latent.name {name} "
                f"reads {size} numbers a frame: place, Euler angles, opening of the gripper"
            )
        return self._finite(states)

    def _finite(self, states: np.ndarray) -> np.ndarray:
        """The same [rows, P]; UserError where not all of it is finite."""
        if not np.isfinite(states).all():
            raise UserError(
                f"{self.data.path}: 'state' is not finite in some rows; mend it, or leave such "
                "episodes out"
            )
        return states


class Latents:
    """The latents of a features file: held in memory where they are small, or made of the frozen
    tokens as they are asked for, and in memory, once they are asked for, what the distance and
    heads read of them where they are many.

    A frame's static numbers are as they are believed by an agent that began with the episode has
    and just saw the frame. No frame after it is looked at, but for the goal's own."""

    def __init__(self, model: LatentModel, features: Features) -> None:
        self.features, self._model = features, model
        self.recording = Recording(features.data, model)
        self._every = max(1, model.frameskip // features.stride)
        self._held: Tensor | None = None
        self._components: Tensor | None = None
        latent = model.latent
        if latent.held or latent.joint or latent.static_dim:
            with torch.no_grad():
                self._own = of_all_frames(features, latent.encode, self.recording)
            each = self._own.split(features.counts.tolist())
            self._held = torch.cat(
                [latent.believed_in_turn(episode, every=self._every) for episode in each]
            )

    @torch.no_grad()
    def at(
        self, episode: np.ndarray, frame: np.ndarray, *, belief_at: np.ndarray | None = None
    ) -> Tensor:
        """[..., N, D] fp32 latents of frames (multiples of the stride) of episodes, arrays of one
        shape, on the CPU; with the static numbers believed at frame `belief_at` (it broadcasts),
        or at each frame itself."""
        latent = self._model.latent
        if self._held is None:
            tokens = self.features.tokens(episode, frame).to(dist().device)
            proprio = self.recording.proprio(episode, frame)
            return latent.encode(tokens, proprio).cpu()
        latents = self._held[torch.from_numpy(self.features.index(episode, frame))]
        if belief_at is None:
            return latents
        believed = self.at(episode, np.broadcast_to(belief_at, frame.shape))
        return latent.with_static(latents, latent.static_of(believed))

    def flat(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., F] what the distance and heads read (`LatentModel.flat`) of such frames."""
        model = self._model
        if model.components is None:
            return model.flat(self.at(episode, frame))
        if self._components is None:
            with torch.no_grad():
                self._components = of_all_frames(
                    self.features,
                    lambda *frame: model.flat(model.latent.encode(*frame)),
                    self.recording,
                )
        return self._components[torch.from_numpy(self.features.index(episode, frame))]

    def path(self) -> Tensor:
        """[R] how far the dynamic numbers (where they are many, their components) had moved since
        its episode began when each frame was met, in steps of a fast mover (`fast_step`).

        A way has a length however slowly it is walked, so that chance says less of it than of the
        time that passes."""
        moved, fast = self.moved()
        return moved / fast

    @torch.no_grad()
    def moved(self) -> tuple[Tensor, float]:
        """(the same [R] in units of the latent, a step of a fast mover in these). Proprioception
        is no part of a way, as the distance does not read it."""
        model, stride = self._model, self.features.stride
        moves, ways = [], []
        for number, count in enumerate(self.features.counts.tolist()):
            # Frames a model step apart, since nearer ones differ by more noise than way; the
            # last one whatever it is.
            known = np.union1d(np.arange(0, count, self._every), count - 1)
            each = np.full(len(known), number)
            if model.components is None:
                at = self.at(each, known * stride)[..., : model.latent.visual_dim].flatten(1)
            else:
                at = self.flat(each, known * stride)
            moved = at.diff(dim=0).norm(dim=-1).double().numpy()
            moves.append(moved[: (count - 1) // self._every])
            way = np.concatenate([[0.0], moved.cumsum()])
            ways.append(np.interp(np.arange(count), known, way))
        return torch.from_numpy(np.concatenate(ways)), fast_step(np.concatenate(moves))

    def together(
        self, episode: np.ndarray, frames: np.ndarray, standing: np.ndarray, goal: np.ndarray,
        *, of: np.ndarray | None = None,
    ) -> Tensor:  # fmt: skip
        """[B, T, N, D] latents of frames [B, T] of episodes [B], or of [B, T] others that are
        named by `of`, all with the static numbers of an agent that stands at frame `standing` [B]
        of episodes [B] and was given frame `goal` [B] of these as its goal."""
        latents = self.at(_each(episode, frames) if of is None else of, frames)
        if self._held is None:
            return latents
        latent = self._model.latent
        own = self._own[torch.from_numpy(self.features.index(episode, goal))]  # [B, N, D]
        seen = torch.from_numpy(standing // self.features.stride // self._every + 1)
        believed = latent.believed_with_goal(self.at(episode, standing), seen, own)[0]
        return latent.with_static(latents, latent.static_of(believed)[:, None])

    def flat_together(
        self, episode: np.ndarray, frames: np.ndarray, standing: np.ndarray, goal: np.ndarray,
        *, of: np.ndarray | None = None,
    ) -> Tensor:  # fmt: skip
        """[B, T, F] what the distance and heads read of them where there is no map."""
        if self._held is None:
            return self.flat(_each(episode, frames) if of is None else of, frames)
        return self._model.flat(self.together(episode, frames, standing, goal, of=of))


def _each(episode: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """[B, T] the episodes [B] for each of their frames [B, T]."""
    return np.broadcast_to(episode[:, None], frames.shape)


def fast_step(moves: np.ndarray) -> float:
    """A move of a model step, of moves [n], that is as long as those of a fast mover: FAST of all
    ways is gone in moves that are no longer. To stand still is no move, however often. 1 where
    nothing moves."""
    moves = np.sort(moves)
    gone = moves.cumsum()
    if not len(moves) or gone[-1] <= 0:
        return 1.0
    return float(moves[np.searchsorted(gone, FAST * gone[-1])])


def of_all_frames(
    features: Features, read: Callable[[Tensor, Tensor | None], Tensor], recording: Recording
) -> Tensor:
    """[R, ...] what `read` makes of the tokens [r, n, E] of all frames and of their
    proprioception, where the latent asks for it, on the CPU."""
    rows, parts = encoded_rows(features.data, features.stride), []
    for first in range(0, len(features), SLAB):
        tokens = features.slab(first, first + SLAB).to(dist().device)
        proprio = recording.at_rows(rows[first : first + SLAB])
        parts.append(read(tokens, proprio).cpu())
    return torch.cat(parts)
