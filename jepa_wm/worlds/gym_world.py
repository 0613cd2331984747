"""Brings any Gymnasium environment with images under the protocol: a batch of it becomes a
`World`.

B worlds in the batch, h and w frame height and width, A action numbers (n of a choice among n), X
state numbers."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from jepa_wm.core.errors import UserError
from jepa_wm.data.quantities import described
from jepa_wm.data.trajectories import ActionKind
from jepa_wm.worlds.gym_calls import begin, bounds, given, plannable, take, taken
from jepa_wm.worlds.gym_pictures import RENDER, as_picture, observed, rendered, source


class GymWorld:
    """As many copies of an environment as there are seeds, stepped together.

    A frame is the observation where that is a picture or holds one, in colour or grey, else
    `render()` (then make the environment with `render_mode="rgb_array"`), resized to `size` px if
    given; `picture` names the entry of an observation that holds several, or says "render".
    `info["state"]`, where there is one, is the state, named by `state_names`, in `state_units`;
    success is `info["success"]`, or termination where the environment has no such entry.
    `action_kind` says whether actions are moves or places to go to ("absolute"). Actions are a
    bounded Box of one axis, or Discrete: then one-hot of n numbers, or the choice's number, from
    0. An episode that ended stands still until the next reset. Raises ValueError for what cannot
    be planned in: other or unbounded actions, boxes of whole numbers, no image; UserError for
    rewards and flags that are no numbers."""

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        *,
        state_names: tuple[str, ...] = (),
        state_units: tuple[str, ...] = (),
        size: int | None = None,
        action_kind: ActionKind = "delta",
        picture: str | None = None,
    ) -> None:
        self._make, self._size, self.action_kind = make, size, action_kind
        self._names, self._units = state_names, state_units
        described(state_names, state_units)  # units that do not fit the names are refused
        self._envs: list[gymnasium.Env] = [make()]
        self._space = plannable(self._envs[0])
        self._asked = picture
        self._source: str | None = None  # once there is an observation to find a picture in
        self._shape: tuple[int, ...] | None = None  # of the latest picture
        self._frames: list[np.ndarray | None] = []  # of [h, w, 3]; None: not looked at yet
        self._observed: list[
            Any
        ] = []  # the picture of each observation, or the observation where render() draws it
        self._infos: list[dict[str, Any]] = []
        self._forget(0)

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray, float | None]:
        return bounds(self._space)

    @property
    def choices(self) -> int | None:
        return int(self._space.n) if isinstance(self._space, gymnasium.spaces.Discrete) else None

    @property
    def has_reward(self) -> bool:
        return True

    @property
    def state_names(self) -> tuple[str, ...]:
        return self._names

    @property
    def state_units(self) -> tuple[str, ...]:
        return self._units

    def __len__(self) -> int:
        return len(self._frames)

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Begin one episode per seed; `start` [B, ...] goes to the environments as
        options["start"]."""
        # Environments are kept from one reset to the next: making one may take seconds.
        while len(self._envs) < len(seeds):
            self._envs.append(self._make())
            if any(self._envs[-1] is env for env in self._envs[:-1]):
                raise UserError(
                    f"{self._envs[-1]}: was made twice; let GymWorld's `make` return a new one "
                    "each time"
                )

        # What is the picture is found at the first observation, and holds for all that follow.
        self._frames, self._observed, self._infos = (
            [None] * len(seeds),
            [None] * len(seeds),
            [{} for _ in seeds],
        )
        for i, seed in enumerate(seeds):
            observation, info = begin(
                self._envs[i], int(seed), None if start is None else start[i]
            )
            if self._source is None:
                self._source = source(self._envs[i], observation, self._asked)
            self._keep(i, observation, info)
            self._frames[i] = self._frame(i)
        self._forget(len(seeds))

    def _forget(self, count: int) -> None:
        self._ended, self._success, self._terminated = (np.zeros(count, bool) for _ in range(3))
        self._reward = np.zeros(count, np.float32)

    def step(self, action: np.ndarray) -> None:
        """Act with [B, A], or numbers of choices [B, 1], in every world whose episode goes on.
        Raises ValueError for other shapes and for numbers that are not finite."""
        actions = given(self._space, taken(self._space, action, len(self)))
        self._reward = np.zeros(len(self), np.float32)
        self._terminated = np.zeros(len(self), bool)
        for i in map(int, np.nonzero(~self._ended)[0]):
            step = take(self._envs[i], actions[i])
            self._keep(i, step.observation, step.info)
            self._reward[i], self._terminated[i] = step.reward, step.terminated
            self._ended[i] = step.terminated or step.truncated
            self._success[i] |= step.success

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, A] float32: what `step` takes for an action: clipped to the box and in its
        precision, or one-hot."""
        return taken(self._space, action, len(self)).astype(np.float32)

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8; drawn when asked for, since drawing can cost more than stepping."""
        for i, frame in enumerate(self._frames):
            if frame is None:
                self._frames[i] = self._frame(i)
        return np.stack([frame for frame in self._frames if frame is not None])

    def state(self) -> np.ndarray:
        """[B, X] float32; [B, 0] for an environment without info["state"] or a GymWorld without
        state_names."""
        if not self._names:
            return np.zeros((len(self), 0), np.float32)
        states = [np.asarray(info.get("state", None)) for info in self._infos]
        wrong = [i for i, state in enumerate(states) if not _is_state(state, len(self._names))]
        if wrong:
            raise UserError(
                f'info["state"] of world {wrong[0]} does not hold the {len(self._names)} numbers '
                f"{self._names}, all finite; let the environment report them, or leave "
                "state_names out"
            )
        return np.stack([state.astype(np.float32) for state in states])

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
        """[A], or [1] a choice's number, from 0: the environment's own attribute `idle_action`, or
        the choice that its action meanings call NOOP; None where it says neither. UserError for
        one that is none of its actions."""
        env, idle, meanings = (
            self._envs[0],
            self._own("idle_action"),
            self._own("get_action_meanings"),
        )
        choice = isinstance(self._space, gymnasium.spaces.Discrete)
        if idle is None and choice and meanings is not None and "NOOP" in meanings():
            return np.array([list(meanings()).index("NOOP")])
        if idle is None:
            return None
        if np.shape(idle) != self._space.shape or not self._space.contains(
            np.asarray(idle, self._space.dtype)
        ):
            raise UserError(f"{env}: its idle_action {idle} is none of the actions {self._space}")
        if isinstance(self._space, gymnasium.spaces.Discrete):
            return np.array([int(idle) - int(self._space.start)])
        return np.asarray(idle, np.float32)

    def _own(self, name: str) -> Any:
        """An attribute of the environment or of its wrappers, down to one that makes other actions
        of ours: what lies below it speaks of those. None where there is none."""
        env = self._envs[0]
        while not hasattr(env, name):
            if not isinstance(env, gymnasium.Wrapper) or isinstance(env, gymnasium.ActionWrapper):
                return None
            if env.env.action_space != self._space:
                return None
            env = env.env
        return getattr(env, name)

    def goals(self) -> np.ndarray:
        """[B, h, w, 3] uint8 goal images from info["goal_image"]; raises UserError where there is
        none."""
        missing = [i for i, info in enumerate(self._infos) if info.get("goal_image") is None]
        if missing:
            raise UserError(
                f'world {missing[0]} has no info["goal_image"]; let the environment\'s reset '
                "report one"
            )
        pictures = [
            as_picture(self._envs[0], np.asarray(info["goal_image"]), None) for info in self._infos
        ]
        if any(picture is None for picture in pictures):
            raise UserError(
                f'{self._envs[0]}: info["goal_image"] is no picture; let it be uint8 '
                "[height, width, 3]"
            )
        return np.stack([self._fit(picture) for picture in pictures if picture is not None])

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _keep(self, i: int, observation: Any, info: dict[str, Any]) -> None:
        """Keep what world i told, copied: an environment may write what comes next into the same
        arrays."""
        assert self._source is not None
        env, drawn = self._envs[i], self._source == RENDER
        self._observed[i] = observation
        if not drawn:
            self._observed[i] = observed(env, observation, self._source).copy()
        self._infos[i] = {**info, "state": copy(info["state"])} if "state" in info else info
        self._frames[i] = None

    def _frame(self, i: int) -> np.ndarray:
        """[h, w, 3] what world i shows."""
        picture = self._observed[i]
        if self._source == RENDER:
            picture = rendered(self._envs[i], picture)
        if self._size is None and self._shape not in (None, picture.shape):
            raise UserError(
                f"{self._envs[i]}: its picture is {list(picture.shape)} now and was "
                f"{list(self._shape or ())} before; set world.size"
            )
        self._shape = picture.shape
        return self._fit(picture)

    def _fit(self, frame: np.ndarray) -> np.ndarray:
        """A copy of the frame, resized where a size is asked for."""
        if self._size is None or frame.shape[:2] == (self._size, self._size):
            return frame.copy()
        return np.asarray(
            Image.fromarray(frame).resize((self._size, self._size), Image.Resampling.BILINEAR)
        )


def _is_state(state: np.ndarray, count: int) -> bool:
    """Whether an entry of infos holds so many finite numbers."""
    return (
        state.shape == (count,) and state.dtype.kind in "biuf" and bool(np.isfinite(state).all())
    )
