"""Our world model in the harnesses of others: stable-worldmodel's solvers and policies, and
eb_jepa's evaluation.

Neither is imported; both are met by the shapes they ask for. B episodes, S candidates, H horizon,
A numbers of an action block, T frames, h x w px, a numbers of one environment action, N latent
tokens of width D."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.errors import UserError
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.chunks import in_chunks, plans_within
from jepa_wm.planning.history import history, newest_frames, refuse_other_pictures
from jepa_wm.planning.objective import Scene, check_objective, objective_of
from jepa_wm.planning.objectives import expected_cost
from jepa_wm.planning.search import Cost
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel


class CostServer:
    """What stable-worldmodel's solvers minimise: `get_cost(info, candidates)`, the objective that
    `settings` names.

    Candidates are raw action blocks of the model's own frameskip; a space, where given, clips them
    first, as the environment will. Source of the protocol: stable-worldmodel 0.1.1."""

    def __init__(
        self, model: WorldModel, settings: PlannerSettings, space: ActionSpace | None = None
    ) -> None:
        check_objective(model, settings)
        self.model, self.settings = model, settings
        reach = model.latent.action_low.tolist(), model.latent.action_high.tolist()
        self.space = None if space is None else space.within(*reach)
        size = model.plan_bytes(
            settings.mpc.horizon,
            draws=settings.cost.num_futures,
            margin=settings.cost.robust_radius,
        )
        self._most = plans_within(settings.mpc.memory_mb, *size)
        self._seen: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # frames looked at last, and their latents

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
            one = {
                name: value[None]
                for name, value in info.items()
                if name in ("pixels", "goal", "action")
            }
            return self.get_cost(one, candidates[None])[0]
        if candidates.shape[-1] != self.model.block:
            raise ValueError(
                f"candidates have {candidates.shape[-1]} numbers a step, the model takes {self.model.block}: set "
                f"action_block to its frameskip, {self.model.latent.settings.frameskip}"
            )
        latent = self.model.latent
        skip = latent.settings.frameskip
        frames, past = history(
            info,
            window=latent.settings.context_frames,
            size=self.model.block // skip,
            frameskip=skip,
        )
        context, past = (
            self._latents("pixels", frames),
            past.to(self.model.device),
        )  # [B, C, N, D], [B, C-1, A]
        goal = (
            self._latents("goal", newest_frames("goal", info)[:, None])[:, 0]
            if "goal" in info
            else None
        )
        seen = context if goal is None else torch.cat([context, goal[:, None]], 1)
        static = latent.static(seen).mean(1)  # the same in all, as an agent holds it
        context = latent.with_static(context, static[:, None])
        goal = goal if goal is None else latent.with_static(goal, static)
        plans = candidates.detach().to(self.model.device).float()
        plans = plans if self.space is None else self.space.project(self._as_searched(plans))

        def cost_of(some: slice) -> Cost:
            last = past[some, -1, -self.model.block // skip :] if past.shape[1] else None
            toward = None if goal is None else goal[some]
            scene = Scene(self.model, self.settings, context[some, -1], toward, last, self.space)

            def imagine(actions: Tensor) -> Tensor:
                return self.model.futures(
                    context[some], past[some], actions, draws=self.settings.cost.num_futures
                )

            return expected_cost(
                imagine, objective_of(scene), doubt=self.settings.cost.uncertainty_weight
            )

        cost = in_chunks(cost_of, most=self._most, most_with_gradient=self._most)
        return cost(plans).to(candidates)

    __call__ = get_cost
    criterion = get_cost

    def _as_searched(self, plans: Tensor) -> Tensor:
        assert self.space is not None
        if self.space.plan_dim != plans.shape[-1]:
            raise ValueError(
                "space must search every action of a block: make it by ActionSpace.of_block(action_repeat=False)"
            )
        return plans

    def _latents(self, name: str, frames: Tensor) -> Tensor:
        """[B, C, N, D] of frames [B, C, h, w, 3]; those of the last call are kept, since a solver
        asks again every round."""
        refuse_other_pictures(name, frames[:, -1])
        before = self._seen.get(name)
        if before is None or not torch.equal(before[0], frames):  # which other shapes are not
            latents = self.model.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            self._seen[name] = (frames.clone(), latents)
        return self._seen[name][1]


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
        f"{solver} has neither an argument 'cost' nor 'model'; this version of its library is not known"
    )


class VectorEnv(Protocol):
    """What a policy of stable-worldmodel is told of the environments."""

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
        elif self._taken % self._agent.model.latent.settings.frameskip == 0:
            self._agent.observe(frames)
        self._taken += 1
        return self._waiting.pop(0)


class EbJepa(nn.Module):
    """What eb_jepa's two-rooms evaluation asks of a model: `encode(obs)` and `unroll(obs, actions,
    nsteps=...)`.

    Observations have two channels, agent and walls, in 0..255; `mean` and `std`, a number a channel,
    undo the harness' own standardising. Latents lie on their grid, h' x w', or in one row.
    UserError unless the model's frameskip is 1."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: WorldModel, *, mean: Sequence[float] = (0, 0), std: Sequence[float] = (1, 1)
    ) -> None:
        super().__init__()
        skip = model.latent.settings.frameskip
        if skip != 1:
            raise UserError(
                f"dynamics.frameskip {skip}: eb_jepa asks for a latent after every action; train with "
                "dynamics.frameskip=1 (configs/two_rooms_ebjepa.yaml)"
            )
        self.model = model
        for name, numbers in (("mean", mean), ("std", std)):
            channels = torch.tensor(numbers, dtype=torch.float32, device=model.device)
            self.register_buffer(name, channels.view(1, 2, 1, 1, 1))

    @torch.no_grad()
    def encode(self, obs: Tensor) -> Tensor:
        """[B, D, T, h', w'] latents of observations [B, 2, T, h, w]."""
        latents = self.model.encode(self.frames(obs).flatten(0, 1)).unflatten(
            0, (len(obs), -1)
        )  # [B, T, N, D]
        return self._on_grid(latents)

    @torch.no_grad()
    def unroll(
        self, obs: Tensor, actions: Tensor, *, nsteps: int | None = None, **rest: Any
    ) -> tuple[Tensor, None]:
        """([B, D, 1 + n, h', w'], None): the latest observation of obs [B, 2, T, h, w] and what
        follows each of actions [B, a, n], the first `nsteps` of them where given. One observation
        serves all rows of actions."""
        taken = actions.to(self.model.device).movedim(1, -1)[:, :nsteps]  # [B, n, a]
        latest = self.model.encode(self.frames(obs[:, :, -1:])[:, 0])  # [B or 1, N, D]
        if len(latest) not in (1, len(taken)):
            raise ValueError(
                f"{len(latest)} observations for {len(taken)} rows of actions; give one, or one each"
            )
        plans = taken.unflatten(0, (len(latest), -1))  # [B, S, n, a]
        nothing = latest.new_zeros(len(latest), 0, self.model.block)
        future = self.model.imagine(latest[:, None], nothing, plans).flatten(
            0, 1
        )  # [B * S, n, N, D]
        first = latest.repeat_interleave(plans.shape[1], 0)[:, None]
        return self._on_grid(torch.cat([first, future], 1)), None

    def frames(self, obs: Tensor) -> Tensor:
        """[B, T, h, w, 3] uint8 pictures, as the world renders them with world.render_style ebjepa. Raises
        ValueError for observations that are not of that range once standardising is undone."""
        if obs.dim() != 5 or obs.shape[1] != 2:
            raise ValueError(
                f"obs has shape {tuple(obs.shape)}; [B, 2, T, h, w] is wanted, agent and walls"
            )
        raw = obs.to(self.model.device).float() * self.std + self.mean
        low, high = float(raw.min()), float(raw.max())
        if not (low > -2 and 16 < high < 257):
            raise ValueError(
                f"obs spans {low:.3g}..{high:.3g} instead of 0..255: give EbJepa the mean and std by which the harness "
                "standardises its two channels"
            )
        third = torch.zeros_like(raw[:, :1])
        return torch.cat([raw, third], 1).movedim(1, -1).round().clamp(0, 255).byte()

    def _on_grid(self, latents: Tensor) -> Tensor:
        """[B, D, T, h', w'] of latents [B, T, N, D]."""
        tokens = latents.shape[2]
        side = round(tokens**0.5)
        shape = (side, side) if side * side == tokens else (1, tokens)
        return latents.unflatten(2, shape).permute(0, 4, 1, 2, 3)


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
