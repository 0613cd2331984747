"""Our world model in stable-worldmodel: what its solvers minimise, and a policy for its
evaluation.

It is not imported; it is met by the shapes it asks for. B episodes, S plans, H horizon, T frames
of the harness, C frames of the context, h x w px, a numbers of one environment action, A of the
block of actions between two frames of the context, N latent tokens of width D."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningContext, PlanningCost, check_cost
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.proprio import refuse_proprio
from jepa_wm.world_model.world_model import WorldModel


class CostServer:
    """What stable-worldmodel's solvers minimise: `get_cost(info, candidates)`, the objective that
    `settings` names.

    Candidates are raw action blocks of the model's own frameskip; a space, where given, clips them
    first, as the environment will. Source of the protocol: stable-worldmodel 0.1.1."""

    def __init__(
        self, model: WorldModel, settings: PlannerSettings, space: ActionSpace | None = None
    ) -> None:
        check_cost(model, settings)
        refuse_proprio(model)
        self.model, self.settings = model, settings
        units = model.latent_model
        reach = units.action_low.tolist(), units.action_high.tolist()
        self.space = None if space is None else space.within(*reach)
        # The frames encoded last, and their latents.
        self._encoded: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def get_cost(self, info: Mapping[str, Any], candidates: Tensor) -> Tensor:
        """[B, S] costs of candidates [B, S, H, A] with info["pixels"] and info["goal"] [B, S, T,
        h, w, 3] uint8, the newest frame last; views are read, never written. [S] for [S, H, A], as
        older versions ask.

        One frame shows no speed: of several frames in info["pixels"] as many as the model's window
        are its context, where info["action"] tells what led to each (see `history`); else the
        newest alone. Raises ValueError for another block width, and for pictures that are not
        uint8."""
        if candidates.dim() == 3:
            read = [name for name in ("pixels", "goal", "action") if name in info]
            one = {name: info[name][None] for name in read}
            return self.get_cost(one, candidates[None])[0]
        if candidates.shape[-1] != self.model.block:
            raise ValueError(
                f"candidates have {candidates.shape[-1]} numbers a step, the model takes "
                f"{self.model.block}: set action_block to its frameskip, "
                f"{self.model.frameskip}"
            )
        context = self._context(info)
        plans = candidates.detach().to(self.model.device).float()
        plans = plans if self.space is None else self.space.project(self._whole_blocks(plans))
        return PlanningCost(context)(plans).to(candidates)

    __call__ = get_cost
    criterion = get_cost

    def _context(self, info: Mapping[str, Any]) -> PlanningContext:
        """Where the episodes stand, as an agent has it after these frames alone."""
        skip, size = self.model.frameskip, self.model.block // self.model.frameskip
        window = self.model.context_frames
        frames, past = history(info, window=window, size=size, frameskip=skip)
        context, goal = self._latents("pixels", frames), None
        if "goal" in info:
            goal = self._latents("goal", newest_frames("goal", info)[:, None])[:, 0]
        # All as believed once all frames and the goal have been seen.
        shown = context if goal is None else torch.cat([context, goal[:, None]], 1)
        believed = self.model.latent.believed_together(shown)
        past = past.to(self.model.device)
        return PlanningContext(
            model=self.model,
            settings=self.settings,
            latents=believed[:, : context.shape[1]],
            past=past,
            goal=None if goal is None else believed[:, -1],
            last_action=past[:, -1, -size:] if past.shape[1] else None,
            space=self.space,
        )

    def _whole_blocks(self, plans: Tensor) -> Tensor:
        assert self.space is not None
        if self.space.plan_dim != plans.shape[-1]:
            raise ValueError(
                "space must search every action of a block: make it by "
                "ActionSpace.of_block(action_repeat=False)"
            )
        return plans

    def _latents(self, name: str, frames: Tensor) -> Tensor:
        """[B, C, N, D] of frames [B, C, h, w, 3]; those of the last call are kept, since a solver
        asks again every round."""
        refuse_other_pictures(name, frames[:, -1])
        before = self._encoded.get(name)
        if before is None or not torch.equal(before[0], frames):  # which other shapes are not
            latents = self.model.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            self._encoded[name] = (frames.clone(), latents)
        return self._encoded[name][1]


def serve_to(solver: Callable[..., Any], server: CostServer, **options: Any) -> Any:
    """A solver of stable-worldmodel that minimises what the server tells, for released and newer
    versions alike.

    The released ones call the argument `model`, newer ones `cost`; its own signature decides.
    Raises ValueError for a solver that has neither."""
    names = inspect.signature(solver).parameters
    for name in ("cost", "model"):
        if name in names:
            return solver(**{name: server}, **options)
    raise ValueError(
        f"{solver} has neither an argument 'cost' nor 'model'; this version of its library is not "
        "known"
    )


class VectorEnv(Protocol):
    """What a policy of stable-worldmodel knows of the environments."""

    num_envs: int
    action_space: Any


class PolicyServer:
    """A policy for stable-worldmodel's `World.evaluate`: `set_env(env)`, then `get_action(infos)`
    at every step.

    It plans by the agent's own search and memory, and shows it the frames of every model step.
    Episodes are told apart by their goal images: where one changes, all begin anew, so evaluate
    with reset_mode "wait" or from a dataset."""

    def __init__(self, make_agent: Callable[[Any], Agent], *, seed: int = 0) -> None:
        """`make_agent(env)` makes the agent once the environments are known."""
        self.make_agent, self.seed = make_agent, seed
        self.env: VectorEnv | None = None
        self.type = "jepa_wm"
        self._agent: Agent | None = None
        self._goals: np.ndarray | None = None
        self._waiting: list[np.ndarray] = []  # actions [B, a] still to be taken
        self._taken = 0  # of the latest plan

    def set_env(self, env: VectorEnv) -> None:
        """Meet the environments."""
        self.env, self._agent, self._goals, self._waiting = env, self.make_agent(env), None, []

    def get_action(self, infos: Mapping[str, Any], **rest: Any) -> np.ndarray:
        """[B, a] actions for infos["pixels"] and infos["goal"] [B, T, h, w, 3] uint8; the agent
        keeps its own memory, so of several frames only the newest is looked at. Raises
        RuntimeError before `set_env`."""
        if self._agent is None:
            raise RuntimeError(
                "get_action before set_env; call set_env with the environments first"
            )
        frames, goals = (_newest(name, infos) for name in ("pixels", "goal"))
        if self._goals is None or not np.array_equal(self._goals, goals):
            self._goals, self._waiting = goals.copy(), []
            self._agent.reset(goals, [self.seed + i for i in range(len(goals))])
        if not self._waiting:
            self._waiting, self._taken = list(np.moveaxis(self._agent.act(frames), 1, 0)), 0
        elif self._taken % self._agent.model.frameskip == 0:
            self._agent.observe(frames)
        self._taken += 1
        return self._waiting.pop(0)


def _newest(name: str, infos: Mapping[str, Any]) -> np.ndarray:
    """[B, h, w, 3] uint8."""
    if name not in infos:
        raise ValueError(
            f"infos has no '{name}', only {sorted(infos)}; evaluate toward goal images"
        )
    pictures = np.asarray(infos[name])
    frames = pictures[:, -1] if pictures.ndim == 5 else pictures
    refuse_other_pictures(name, torch.as_tensor(frames))
    return frames


def newest_frames(name: str, info: Mapping[str, Any]) -> Tensor:
    """[B, h, w, 3] of info[name] [B, S, T, h, w, 3] or [B, S, h, w, 3], the same for all
    candidates."""
    return _in_time(name, info)[:, -1]


def history(
    info: Mapping[str, Any], *, window: int, size: int, frameskip: int
) -> tuple[Tensor, Tensor]:
    """(frames [B, C, h, w, 3], action blocks between them [B, C-1, A]) of info["pixels"] [B, S, T,
    h, w, 3], the newest last, and info["action"] [B, S, T, a] or [B, S, T, A], which hold with
    each frame what led to it.

    With single actions frames follow each other by environment steps, and every `frameskip`-th is
    of the context; with blocks by model steps. C is `window`, or less: as far back as frames go
    and actions are known (finite) in all episodes; 1 where info has no actions. Raises ValueError
    for actions of another width or number."""
    pictures = _in_time("pixels", info)
    nothing = torch.zeros(len(pictures), 0, size * frameskip)
    if pictures.shape[1] == 1 or info.get("action") is None:
        return pictures[:, -1:], nothing
    # Actions one by one, or in blocks: how many frames lie between two of the context.
    actions = torch.as_tensor(info["action"])[:, 0].float().cpu()  # [B, T, a or A]
    widths = {size * frameskip: 1, size: frameskip}
    if (
        actions.dim() != 3
        or actions.shape[1] != pictures.shape[1]
        or actions.shape[2] not in widths
    ):
        raise ValueError(
            f"info['action'] has shape {tuple(actions.shape)} beside {pictures.shape[1]} frames; "
            f"give with each the {size} numbers of the action that led to it, or the "
            f"{size * frameskip} of the block that did, or leave it out"
        )
    gap = widths[actions.shape[2]]
    # As far back as all episodes' actions are known.
    led = actions.isfinite().all(2).all(0).flip(0)  # [T], newest first
    known = int(led.int().cumprod(0).sum())
    count = 1 + min(window - 1, (pictures.shape[1] - 1) // gap, known // gap)
    back = (count - 1) * gap
    blocks = actions[:, actions.shape[1] - back :].reshape(len(actions), count - 1, -1)
    return pictures[:, -1 - back :: gap], blocks if count > 1 else nothing


def refuse_other_pictures(name: str, frames: Tensor) -> None:
    """Raises ValueError for anything but uint8 frames [B, h, w, 3]."""
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"'{name}' is {frames.dtype} {tuple(frames.shape)}; uint8 pictures [B, h, w, 3] are "
            "wanted: leave them out of the harness' transforms"
        )


def _in_time(name: str, info: Mapping[str, Any]) -> Tensor:
    """[B, T, h, w, 3], of the first candidate."""
    pictures = torch.as_tensor(info[name])[:, 0]
    return pictures if pictures.dim() == 5 else pictures[:, None]
