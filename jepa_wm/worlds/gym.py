"""Gymnasium environments with images as worlds: a batch of any one of them, and its entry in the
table.

B worlds in the batch, h and w frame height and width, A action numbers (n of a choice among n), X
state numbers."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from PIL import Image

from jepa_wm.core.errors import UserError
from jepa_wm.data.quantities import described
from jepa_wm.data.trajectories import ActionKind
from jepa_wm.worlds import gym_checks as checks
from jepa_wm.worlds.world import WORLDS, Actions, NewPolicy, RandomExploration, WorldSettings


@WORLDS.register("gym")
class GymSettings(WorldSettings):
    """A Gymnasium environment with images: as observation or from render()."""

    name: Literal["gym"] = "gym"
    # as gymnasium.make takes it; "module:Name-v0" imports the module first
    id: str = "Pendulum-v1"
    options: dict[str, bool | int | float | str] = {}  # further arguments of the environment
    # entry of an observation with several pictures, as a/b if nested; render: render(); several:
    # side by side, each narrowed to its share of `size`
    picture: str | tuple[str, ...] | None = None
    size: int | None = 64  # px, side that frames are resized to; null: as they come
    # whether its actions are moves, which add up, or places to go to
    action_kind: Literal["delta", "absolute"] = "delta"
    exploration: RandomExploration = RandomExploration()

    def make(self) -> GymWorld:
        """The environment as a batch; UserError for one that cannot be made or planned in."""
        try:
            return GymWorld(
                self._environment,
                size=self.size,
                action_kind=self.action_kind,
                picture=self.picture,
            )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"world.id {self.id}: {error}") from error

    def explore(self) -> NewPolicy:
        """Random actions."""
        return self.exploration.make

    def _environment(self) -> gymnasium.Env:
        try:
            return self._made({"render_mode": "rgb_array", **self.options})
        except UserError:
            if "render_mode" in self.options:
                raise
            # A constructor that takes no such argument, or not this mode: its observation may be
            # a picture.
            try:
                return self._made(self.options)
            except UserError:
                pass
            raise

    def _made(self, options: dict[str, Any]) -> gymnasium.Env:
        try:  # no checker: GymWorld names what is not as due
            return gymnasium.make(self.id, **{"disable_env_checker": True, **options})
        except (
            gymnasium.error.Error,
            ImportError,
            TypeError,
            ValueError,
            KeyError,
            AssertionError,
        ) as error:
            why = str(error) or type(error).__name__
            raise UserError(
                f"world.id {self.id}: the environment cannot be made: {why}"
            ) from error


class GymWorld:
    """As many copies of an environment as there are seeds, stepped together.

    A frame is the observation where that is a picture or holds one, in colour or grey, else
    `render()` (then make the environment with `render_mode="rgb_array"`), resized to `size` px if
    given; `picture` names the entry of an observation that holds several, or says "render", or
    names several that are put side by side.
    `info["state"]`, where there is one, is the state, named by `state_names`, in `state_units`.
    `action_kind` says whether actions are moves or places to go to ("absolute"). Actions are a
    bounded Box of one axis, or Discrete: then one-hot of n numbers, or the choice's number, from
    0. An episode that ended stands still until the next reset. Raises ValueError for what cannot
    be planned in: other or unbounded actions, boxes of whole numbers, no image; UserError for
    rewards and flags that are no numbers."""

    has_reward = True

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        *,
        state_names: tuple[str, ...] = (),
        state_units: tuple[str, ...] = (),
        size: int | None = None,
        action_kind: ActionKind = "delta",
        picture: str | tuple[str, ...] | None = None,
    ) -> None:
        self._make, self._size, self._kind = make, size, action_kind
        self.state_names, self.state_units = state_names, state_units
        described(state_names, state_units)  # units that do not fit the names are refused
        self._envs: list[gymnasium.Env] = [make()]
        self._space = checks.plannable(self._envs[0])
        self._asked = (picture,) if picture is None or isinstance(picture, str) else picture
        count = len(self._asked)
        if not count:
            raise UserError("world.picture is empty; name an entry of the observation, or null")
        if count > 1 and (size is None or size % count or checks.RENDER in self._asked):
            raise UserError(
                f"world.picture: {', '.join(map(str, self._asked))} side by side are entries of "
                f"the observation, not {checks.RENDER!r}, and share world.size {size}: set it to "
                f"a multiple of {count}"
            )
        self._source: list[str] | None = None  # once there is an observation to find a picture in
        self._shape: tuple[int, ...] | None = None  # of the latest picture
        self._begin(0)

    def _begin(self, count: int) -> None:
        self._frames: list[np.ndarray | None] = [None] * count  # [h, w, 3]; None: not drawn yet
        # The picture of each observation, or the observation where render() draws it.
        self._observed: list[Any] = [None] * count
        self._infos: list[dict[str, Any]] = [{} for _ in range(count)]
        self._ended, self._terminated = np.zeros(count, bool), np.zeros(count, bool)
        self._reward = np.zeros(count, np.float32)

    @cached_property
    def action_space(self) -> Actions:
        """UserError for an environment whose idle action is none of its actions."""
        idle, kind = self._idle_action(), self._kind
        if isinstance(self._space, Discrete):
            n = int(self._space.n)
            return Actions(np.zeros(n, "f4"), np.ones(n, "f4"), 1.0, n, idle, kind)
        low, high = self._space.low.astype(np.float32), self._space.high.astype(np.float32)
        return Actions(low, high, idle=idle, kind=kind)

    def _idle_action(self) -> np.ndarray | None:
        """[A], or [1] a choice's number, from 0: the environment's own attribute `idle_action`, or
        the choice that its action meanings call NOOP; None where it says neither."""
        env, space = self._envs[0], self._space
        idle, meanings = self._own("idle_action"), self._own("get_action_meanings")
        if idle is None and isinstance(space, Discrete) and meanings is not None:
            named = list(meanings())
            return np.array([named.index("NOOP")]) if "NOOP" in named else None
        if idle is None:
            return None
        fits = np.shape(idle) == space.shape
        if not fits or not space.contains(np.asarray(idle, space.dtype)):
            raise UserError(f"{env}: its idle_action {idle} is none of the actions {space}")
        if isinstance(space, Discrete):
            return np.array([int(idle) - int(space.start)])
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
        self._begin(len(seeds))
        for i, seed in enumerate(seeds):
            env, at = self._envs[i], None if start is None else start[i]
            observation, info = checks.begin(env, int(seed), at)
            if self._source is None:
                self._source = [checks.source(env, observation, one) for one in self._asked]
            self._keep(i, observation, info)
            self._frames[i] = self._frame(i)

    def step(self, action: np.ndarray) -> None:
        """Act with [B, A], or numbers of choices [B, 1], in every world whose episode goes on.
        Raises ValueError for other shapes and for numbers that are not finite."""
        actions = checks.given(self._space, checks.taken(self._space, action, len(self)))
        self._reward = np.zeros(len(self), np.float32)
        self._terminated = np.zeros(len(self), bool)
        for i in map(int, np.nonzero(~self._ended)[0]):
            observation, reward, over, cut, info = checks.take(self._envs[i], actions[i])
            self._keep(i, observation, info)
            self._reward[i], self._terminated[i] = reward, over
            self._ended[i] = over or cut

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, A] float32: what `step` takes for an action: clipped to the box and in its
        precision, or one-hot."""
        return checks.taken(self._space, action, len(self)).astype(np.float32)

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8; drawn when asked for, since drawing can cost more than stepping."""
        for i, frame in enumerate(self._frames):
            if frame is None:
                self._frames[i] = self._frame(i)
        return np.stack([frame for frame in self._frames if frame is not None])

    def state(self) -> np.ndarray:
        """[B, X] float32; [B, 0] for an environment without info["state"] or a GymWorld without
        state_names."""
        if not self.state_names:
            return np.zeros((len(self), 0), np.float32)
        states = [np.asarray(info.get("state", None)) for info in self._infos]
        for i, state in enumerate(states):
            numbers = state.shape == (len(self.state_names),) and state.dtype.kind in "biuf"
            if not numbers or not np.isfinite(state).all():
                raise UserError(
                    f'info["state"] of world {i} does not hold the {len(self.state_names)} '
                    f"numbers {self.state_names}, all finite; let the environment report them, or "
                    "leave state_names out"
                )
        return np.stack(states).astype(np.float32)

    def ended(self) -> np.ndarray:
        """[B] bool: terminated or truncated since the reset."""
        return self._ended.copy()

    def reward(self) -> np.ndarray:
        """[B] float32: what the latest step earned."""
        return self._reward.copy()

    def terminated(self) -> np.ndarray:
        """[B] bool: whether the latest step terminated the episode."""
        return self._terminated.copy()

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _keep(self, i: int, observation: Any, info: dict[str, Any]) -> None:
        """Keep what world i told, copied: an environment may write what comes next into the same
        arrays."""
        assert self._source is not None
        self._observed[i] = observation
        if self._source != [checks.RENDER]:
            each = [checks.observed(self._envs[i], observation, one) for one in self._source]
            self._observed[i] = each[0].copy() if len(each) == 1 else self._together(each)
        self._infos[i] = {**info, "state": copy(info["state"])} if "state" in info else info
        self._frames[i] = None

    def _frame(self, i: int) -> np.ndarray:
        """[h, w, 3] a copy of what world i shows, resized where a size is asked for."""
        picture: np.ndarray = self._observed[i]
        if self._source == [checks.RENDER]:
            picture = checks.rendered(self._envs[i], picture)
        if self._size is None and self._shape not in (None, picture.shape):
            raise UserError(
                f"{self._envs[i]}: its picture is {list(picture.shape)} now and was "
                f"{list(self._shape or ())} before; set world.size"
            )
        self._shape = picture.shape
        if self._size is None or picture.shape[:2] == (self._size, self._size):
            return picture.copy()
        to = (self._size, self._size)
        return np.asarray(Image.fromarray(picture).resize(to, Image.Resampling.BILINEAR))

    def _together(self, pictures: list[np.ndarray]) -> np.ndarray:
        """[size, size, 3] pictures [h, w, 3] side by side, as `convert --join-cameras` has
        them."""
        from jepa_wm.data.images import joined_cameras  # which needs PyTorch

        assert self._size is not None, "checked when it was made"
        return joined_cameras([picture[None] for picture in pictures], self._size)[0]
