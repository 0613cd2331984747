"""Brings any Gymnasium environment with images under the protocol: a batch of it becomes a `VectorWorld`.

B worlds in the batch, S and W frame height and width, a action numbers (n of a choice among n), K state numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from jepa_wm.core.errors import UserError
from jepa_wm.observe.trajectories import ActionKind


class GymWorld:
    """As many copies of an environment as there are seeds, stepped together.

    A frame is the observation where that is a uint8 image, else `render()` (then make the environment with
    `render_mode="rgb_array"`), resized to `size` px if given. `info["state"]`, where there is one, is the state, named
    by `state_names`; success is `info["success"]`, or termination where the environment has no such entry.
    `action_kind` says whether actions are moves or places to go to ("absolute").
    Actions are a bounded Box of one axis, or Discrete: then one-hot of n numbers, or the choice's number, from 0.
    An episode that ended stands still until the next reset. Raises ValueError for what cannot be planned in:
    other or unbounded actions, no image.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        *,
        state_names: tuple[str, ...] = (),
        size: int | None = None,
        action_kind: ActionKind = "delta",
    ) -> None:
        self._make, self._size, self._names, self.action_kind = make, size, state_names, action_kind
        self._envs: list[gymnasium.Env] = [make()]
        self._space = _action_space(self._envs[0])
        self._frames: list[np.ndarray | None] = []  # of [S, W, 3]; None: not looked at yet
        self._observations: list[Any] = []
        self._infos: list[dict[str, Any]] = []
        self._forget(0)

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray, float | None]:
        if isinstance(self._space, gymnasium.spaces.Discrete):
            return np.zeros(self._space.n, np.float32), np.ones(self._space.n, np.float32), 1.0
        return self._space.low.astype(np.float32), self._space.high.astype(np.float32), None

    @property
    def choices(self) -> int | None:
        return int(self._space.n) if isinstance(self._space, gymnasium.spaces.Discrete) else None

    @property
    def pays(self) -> bool:
        return True

    @property
    def state_names(self) -> tuple[str, ...]:
        return self._names

    def __len__(self) -> int:
        return len(self._frames)

    def reset(self, seeds: np.ndarray, *, dot: np.ndarray | None = None) -> None:
        """Begin one episode per seed; `dot` [B, ...] goes to the environments as options["start"]."""
        while len(self._envs) < len(seeds):
            self._envs.append(self._make())
        self._frames, self._infos, self._observations = [], [], []
        for i, seed in enumerate(seeds):
            options = None if dot is None else {"start": dot[i]}
            observation, info = self._envs[i].reset(seed=int(seed), options=options)
            self._frames.append(self._frame(self._envs[i], observation))
            self._observations.append(observation)
            self._infos.append(info)
        self._forget(len(seeds))

    def _forget(self, count: int) -> None:
        self._ended, self._success, self._terminated = (np.zeros(count, bool) for _ in range(3))
        self._reward = np.zeros(count, np.float32)

    def step(self, action: np.ndarray) -> None:
        """Act with [B, a], or numbers of choices [B, 1], in every world whose episode goes on. Raises ValueError for
        other shapes and for numbers that are not finite."""
        taken = self._taken(action)
        self._reward = np.zeros(len(self), np.float32)
        self._terminated = np.zeros(len(self), bool)
        for i in np.nonzero(~self._ended)[0]:
            observation, self._reward[i], terminated, truncated, info = self._envs[i].step(taken[i])
            self._terminated[i] = terminated
            self._frames[i], self._observations[i], self._infos[i] = None, observation, info
            self._ended[i] = terminated or truncated
            self._success[i] |= bool(info.get("success", terminated))

    def render(self) -> np.ndarray:
        """[B, S, W, 3] uint8; drawn when asked for, since drawing can cost more than stepping."""
        for i, frame in enumerate(self._frames):
            if frame is None:
                self._frames[i] = self._frame(self._envs[i], self._observations[i])
        return np.stack([frame for frame in self._frames if frame is not None])

    def state(self) -> np.ndarray:
        """[B, K] float32; [B, 0] for an environment without info["state"] or a GymWorld without state_names."""
        if not self._names:
            return np.zeros((len(self), 0), np.float32)
        missing = [
            i for i, info in enumerate(self._infos) if np.asarray(info.get("state")).shape != (len(self._names),)
        ]
        if missing:
            raise UserError(
                f'info["state"] of world {missing[0]} does not hold the {len(self._names)} numbers {self._names}; '
                "let the environment report them, or leave state_names out"
            )
        return np.stack([np.asarray(info["state"], np.float32) for info in self._infos])

    def ended(self) -> np.ndarray:
        """[B] bool: terminated or truncated since the reset."""
        return self._ended.copy()

    def reward(self) -> np.ndarray:
        """[B] float32: what the latest step earned."""
        return self._reward.copy()

    def terminated(self) -> np.ndarray:
        """[B] bool: whether the latest step terminated the episode."""
        return self._terminated.copy()

    def succeeded(self) -> np.ndarray:
        """[B] bool: success at any step since the reset."""
        return self._success.copy()

    def idle_action(self) -> np.ndarray | None:
        """[a], or [1] a choice's number, from 0: the environment's own attribute `idle_action`, or the choice that its
        action meanings call NOOP; None where it says neither. UserError for one that is none of its actions."""
        env = self._envs[0].unwrapped
        said, meanings = getattr(env, "idle_action", None), getattr(env, "get_action_meanings", None)
        if said is None and meanings is not None and "NOOP" in meanings():
            return np.array([list(meanings()).index("NOOP")])
        if said is None:
            return None
        if np.shape(said) != self._space.shape or not self._space.contains(np.asarray(said, self._space.dtype)):
            raise UserError(f"{env}: its idle_action {said} is none of the actions {self._space}")
        if isinstance(self._space, gymnasium.spaces.Discrete):
            return np.array([int(said) - int(self._space.start)])
        return np.asarray(said, np.float32)

    def goals(self) -> np.ndarray:
        """[B, S, W, 3] uint8 goal images from info["goal_image"]; raises UserError where there is none."""
        missing = [i for i, info in enumerate(self._infos) if info.get("goal_image") is None]
        if missing:
            raise UserError(f'world {missing[0]} has no info["goal_image"]; let the environment\'s reset report one')
        return np.stack([self._fit(np.asarray(info["goal_image"])) for info in self._infos])

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _taken(self, action: np.ndarray) -> list[Any]:
        """What each environment is given."""
        width, bounds = action.shape[1:], self.action_bounds
        fits = [bounds[0].shape, *([(1,)] if self.choices else [])]
        if len(action) != len(self) or width not in fits or not np.isfinite(action).all():
            raise ValueError(
                f"actions have shape {action.shape}; {len(self)} worlds take finite numbers {fits[-1]} each"
            )
        if isinstance(self._space, gymnasium.spaces.Discrete):
            number = action[:, 0].astype(np.int64) if width == (1,) else action.argmax(1)
            return [int(self._space.start) + int(n) for n in number.clip(0, self._space.n - 1)]
        return list(np.clip(action, self._space.low, self._space.high).astype(self._space.dtype))

    def _frame(self, env: gymnasium.Env, observation: Any) -> np.ndarray:
        if _is_image(observation):
            return self._fit(observation)
        try:
            picture = env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{env} draws no picture: {error}") from error
        if not _is_image(picture):
            raise UserError(
                f"{env}: neither the observation nor render() is a uint8 image [height, width, 3]; "
                'make it with render_mode="rgb_array"'
            )
        return self._fit(np.asarray(picture))

    def _fit(self, frame: np.ndarray) -> np.ndarray:
        """A copy of the frame, resized where a size is asked for."""
        if self._size is None or frame.shape[:2] == (self._size, self._size):
            return frame.copy()
        return np.asarray(Image.fromarray(frame).resize((self._size, self._size), Image.Resampling.BILINEAR))


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _action_space(env: gymnasium.Env) -> gymnasium.spaces.Box | gymnasium.spaces.Discrete:
    """The environment's action space; raises ValueError for one that is neither a bounded box of one axis nor a choice
    among at least two actions."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete) and space.n > 1:
        return space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise ValueError(
            f"{env}: plans are searched in a bounded Box of one axis or a Discrete space of two or more, not in "
            f"{space}; wrap the actions"
        )
    return space
