"""Brings any Gymnasium environment with images under the protocol: a batch of it becomes a `VectorWorld`.

B worlds in the batch, S and W frame height and width, a action numbers, K state numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from PIL import Image


class GymWorld:
    """As many copies of an environment as there are seeds, stepped together.

    A frame is the observation where that is a uint8 image, else `render()` (then make the environment with
    `render_mode="rgb_array"`), resized to `size` px if given. `info["state"]`, where there is one, is the state, named
    by `state_names`; success is `info["success"]`, or termination where the environment has no such entry.
    An episode that ended stands still until the next reset. Raises ValueError for what cannot be planned in:
    discrete or unbounded actions, no image.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env], *, state_names: tuple[str, ...] = (), size: int | None = None
    ) -> None:
        self._make, self._size, self._names = make, size, state_names
        self._envs: list[gymnasium.Env] = [make()]
        self._space = _action_box(self._envs[0])
        self._frames: list[np.ndarray] = []  # of [S, W, 3]
        self._infos: list[dict[str, Any]] = []
        self._forget(0)

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray, float | None]:
        return self._space.low.astype(np.float32), self._space.high.astype(np.float32), None

    @property
    def state_names(self) -> tuple[str, ...]:
        return self._names

    def __len__(self) -> int:
        return len(self._frames)

    def reset(self, seeds: np.ndarray, *, dot: np.ndarray | None = None) -> None:
        """Begin one episode per seed; `dot` [B, ...] goes to the environments as options["start"]."""
        while len(self._envs) < len(seeds):
            self._envs.append(self._make())
        self._frames, self._infos = [], []
        for i, seed in enumerate(seeds):
            options = None if dot is None else {"start": dot[i]}
            observation, info = self._envs[i].reset(seed=int(seed), options=options)
            self._frames.append(self._frame(self._envs[i], observation))
            self._infos.append(info)
        self._forget(len(seeds))

    def _forget(self, count: int) -> None:
        self._ended, self._success, self._terminated = (np.zeros(count, bool) for _ in range(3))
        self._reward = np.zeros(count, np.float32)

    def step(self, action: np.ndarray) -> None:
        """Act with [B, a] in every world whose episode goes on."""
        if action.shape != (len(self), *self._space.shape):
            raise ValueError(f"actions have shape {action.shape}; {len(self)} worlds take {self._space.shape} each")
        clipped = np.clip(action, self._space.low, self._space.high).astype(self._space.dtype)
        self._reward = np.zeros(len(self), np.float32)
        self._terminated = np.zeros(len(self), bool)
        for i in np.nonzero(~self._ended)[0]:
            observation, self._reward[i], terminated, truncated, info = self._envs[i].step(clipped[i])
            self._terminated[i] = terminated
            self._frames[i], self._infos[i] = self._frame(self._envs[i], observation), info
            self._ended[i] = terminated or truncated
            self._success[i] |= bool(info.get("success", terminated))

    def render(self) -> np.ndarray:
        """[B, S, W, 3] uint8."""
        return np.stack(self._frames)

    def state(self) -> np.ndarray:
        """[B, K] float32; [B, 0] for an environment without info["state"] or a GymWorld without state_names."""
        if not self._names:
            return np.zeros((len(self), 0), np.float32)
        missing = [
            i for i, info in enumerate(self._infos) if np.asarray(info.get("state")).shape != (len(self._names),)
        ]
        if missing:
            raise ValueError(
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

    def goals(self) -> np.ndarray:
        """[B, S, W, 3] uint8 goal images from info["goal_image"]; raises ValueError where there is none."""
        missing = [i for i, info in enumerate(self._infos) if info.get("goal_image") is None]
        if missing:
            raise ValueError(f'world {missing[0]} has no info["goal_image"]; let the environment\'s reset report one')
        return np.stack([self._fit(np.asarray(info["goal_image"])) for info in self._infos])

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _frame(self, env: gymnasium.Env, observation: Any) -> np.ndarray:
        if _is_image(observation):
            return self._fit(observation)
        picture = env.render()
        if not _is_image(picture):
            raise ValueError(
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


def _action_box(env: gymnasium.Env) -> gymnasium.spaces.Box:
    """The environment's action space; raises ValueError for one that is not a bounded box of one axis."""
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise ValueError(f"{env}: plans are searched in a bounded Box of one axis, not in {space}; wrap the actions")
    return space
