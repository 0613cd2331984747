"""The agent: sees frames and perhaps a goal image, imagines, searches, hands out actions. It never
meets a simulator.

B episodes, K executed model steps, H horizon, C remembered latents of N tokens of width D, A
action numbers a model step, a of one action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning.action_space import Space, space_of
from jepa_wm.planning.cost import CostTerm, PlanningContext, PlanningCost, check_cost
from jepa_wm.planning.search import Cost, RecedingHorizon
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.proprio import proprio_of
from jepa_wm.world_model.world_model import Belief, WorldModel
from jepa_wm.worlds.world import World


class Agent:
    """Plans for a batch of episodes, remembering the last frames and the actions between them.

    Toward goal images, for reward, or for whatever else the terms of the cost ask; `extra_costs`
    adds terms to those that the settings name, and `cost` prices plans in place of all of them.
    What is searched is the part of `space` that the data of the model reach: an action number that
    they never varied stays as it was. Where several model steps are executed at once
    (planner.mpc.execute), `observe` takes the frames between decisions; those that nobody shows
    are imagined. A model whose latent reads proprioception asks for `proprio` [B, P], read with
    every frame, as `proprio_of` reads a world's: the numbers that latent.proprio names, in its
    order and their units. UserError for a term that needs a head the model has not, and for a
    space that the data lie outside of.
    """

    def __init__(
        self,
        model: WorldModel,
        space: Space,
        settings: PlannerSettings,
        *,
        extra_costs: Sequence[tuple[float, CostTerm]] = (),
        proprio: Callable[[], np.ndarray] | None = None,
        cost: Callable[[PlanningContext], Cost] | None = None,
    ) -> None:
        if space.model_action_dim != model.block:
            raise ValueError(
                f"the world's action space gives {space.model_action_dim} numbers a model step "
                f"but the model was trained on {model.block}: use the world and "
                "dynamics.frameskip it was trained with"
            )
        check_cost(model, settings)
        self.model, self.settings = model, settings
        self.extra_costs, self.proprio = extra_costs, proprio
        self.cost = cost or partial(PlanningCost, extra_costs=extra_costs)
        units = model.latent_model
        self.space = space.within(units.action_low.tolist(), units.action_high.tolist())
        if settings.mpc.compile and not model.compiled:
            model.compile()
        self.mpc = RecedingHorizon(
            settings.solver.make(self.space, settings.mpc.horizon), execute=settings.mpc.execute
        )
        # What is remembered of the episodes.
        self._latents: list[Tensor] = []  # each [B, N, D]
        self._past: list[Tensor] = []  # each [B, A]
        # Each [B, A]: model steps handed out whose first frame has not come yet.
        self._executing: list[Tensor] = []
        self._last_action: Tensor | None = None  # [B, a] the action taken last
        self._goal: Tensor | None = None
        self._belief: Belief | None = None  # of the goal and of all frames seen
        self._goal_shape: tuple[int, ...] = ()
        self._count = 0

    @classmethod
    def of_run(
        cls, run: Path | str, world: World, planner: PlannerSettings, *, frameskip: int,
        extra_costs: Sequence[tuple[float, CostTerm]] = (),
    ) -> Agent:  # fmt: skip
        """The agent of a run folder whose dynamics are trained, a model step being `frameskip`
        actions, for worlds with the actions of `world`."""
        space = space_of(world, frameskip=frameskip, action_repeat=planner.mpc.action_repeat)
        model = WorldModel.load(Path(run))
        return cls(
            model, space, planner, extra_costs=extra_costs, proprio=proprio_of(model, world)
        )

    def reset(
        self, goal_frames: np.ndarray | None, seeds: Sequence[int], *,
        goal_proprio: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Begin one episode per seed, toward goal images [B, h, w, c] uint8 where the objective
        has goals, with their proprioception [B, P] or without; planner.cost.proprio asks for it.

        An episode's plans depend on its own seed alone. Raises ValueError for goals that are not
        one per seed, UserError for proprioception that the model does not read."""
        if goal_frames is not None and len(goal_frames) != len(seeds):
            raise ValueError(
                f"{len(goal_frames)} goal images for {len(seeds)} seeds; give one each"
            )
        self._latents, self._past, self._executing, self._count = [], [], [], len(seeds)
        self._goal, self._goal_shape = None, ()
        if goal_frames is not None:
            carried = None if goal_proprio is None else self._checked(goal_proprio)
            self._goal = self.model.encode(torch.from_numpy(goal_frames), carried)
            self._goal_shape = goal_frames.shape[1:]
        self._last_action, self._belief = None, None
        if self._goal is not None:
            self._goal, self._belief = self.model.latent.update_belief(self._goal, None)
        # On the CPU wherever the model is: a seed draws the same plans on every machine, and only
        # costs cross over.
        self.mpc.reset(seeds, device=torch.device("cpu"))

    def act(self, frames: np.ndarray) -> np.ndarray:
        """[B, K*frameskip, a] environment actions to take after seeing frames [B, h, w, c]
        uint8."""
        # What is seen now, after what happened unseen since the last decision.
        latents = self._encode(frames)
        self._imagine_unseen()
        self._latents.append(latents)
        _, self._belief = self.model.latent.update_belief(latents, self._belief)
        context = self._context(self._belief)
        # Search for the cheapest plan, from where the last one, a policy or staying would lead.
        blocks = self.mpc.plan(
            self.cost(context), proposal=self._proposal(context), known=self._staying()
        )  # [B, K, A]
        # The first step is taken from here; where more are, their frames come by `observe`.
        on_device = blocks.to(self.model.device)
        self._past.append(on_device[:, 0])
        self._executing = list(on_device[:, 1:].unbind(1))
        self._last_action = on_device[:, -1, -self.space.size :]
        return self.space.to_env(blocks).numpy()

    def observe(self, frames: np.ndarray) -> None:
        """See frames [B, h, w, c] uint8 one model step further into the plan that is being
        executed.

        Raises RuntimeError where none of its steps is left that could follow: the frame after the
        last is for `act`."""
        if not self._executing:
            raise RuntimeError(
                "no step of a plan is left to be executed after these frames; hand them to act"
            )
        self._see(frames)
        self._past.append(self._executing.pop(0))

    def follow(self, frames: np.ndarray, blocks: Tensor) -> None:
        """See frames [B, h, w, c] uint8, after which the action blocks [B, A] of somebody else
        were taken, as in a recording; `act` then plans from the frames that they led to.

        Raises RuntimeError while a plan of its own is being executed."""
        if self._executing:
            raise RuntimeError("a plan is being executed; hand its frames to observe, or reset")
        self._see(frames)
        self._past.append(blocks.to(self.model.device))
        self._last_action = self._past[-1][:, -self.space.size :]

    def _see(self, frames: np.ndarray) -> None:
        latents = self._encode(frames)
        _, self._belief = self.model.latent.update_belief(latents, self._belief)
        self._latents.append(latents)

    def _encode(self, frames: np.ndarray) -> Tensor:
        """[B, N, D] latents of frames that fit the episodes."""
        if self._goal is not None and frames.shape[1:] != self._goal_shape:
            raise ValueError(
                f"frames are {frames.shape[1]} x {frames.shape[2]} px, the goal images "
                f"{self._goal_shape[0]} x {self._goal_shape[1]}: give goals as the world renders "
                "them"
            )
        if len(frames) != self._count:
            raise ValueError(
                f"{len(frames)} frames for {self._count} episodes; reset the agent for each batch"
            )
        return self.model.encode(torch.from_numpy(frames), self._read_proprio())

    def _read_proprio(self) -> Tensor | None:
        """[B, P] proprioception that belongs to the frames just seen; None: the model reads
        none."""
        if not self.model.latent.proprio_size:
            return None
        return self._checked(np.zeros((0, 0)) if self.proprio is None else self.proprio())

    def _checked(self, proprio: np.ndarray) -> Tensor:
        """[B, P] proprioception; UserError where it is not what the model reads."""
        size, proprio = self.model.latent.proprio_size, np.asarray(proprio, np.float32)
        if proprio.shape != (self._count, size) or not np.isfinite(proprio).all():
            latent = self.model.latent_model.settings.latent
            which = ", ".join(latent.proprio) or (
                "of a robot's hand: place, Euler angles, opening of the gripper"
            )
            which = f" ({which})" if size else ""
            raise UserError(
                f"latent.name {latent.name} reads {size} finite numbers of proprioception with "
                f"each of {self._count} frames{which}, and was given {list(proprio.shape)}: give "
                "Agent proprio=..., or a world whose state they are; and for the goal "
                "reset(..., goal_proprio=...), or an image alone"
            )
        return torch.from_numpy(proprio)

    def _imagine_unseen(self) -> None:
        """Put what the model expects in the place of frames that were not shown while a plan was
        executed."""
        unseen, self._executing = self._executing, []
        if not unseen:
            return
        assert self._belief is not None
        context, past = self._memory(self._belief)
        steps = torch.stack([self._past[-1], *unseen[:-1]], 1)[:, None]  # [B, 1, K-1, A]
        self._latents += self.model.imagine(context, past, steps)[:, 0].unbind(1)
        self._past += unseen

    def _memory(self, belief: Belief) -> tuple[Tensor, Tensor]:
        """(the latest latents [B, C, N, D] as they are believed, the action blocks [B, C-1,
        A] between them), no more of them than the model's window; older ones are forgotten."""
        gone = max(0, len(self._latents) - self.model.context_frames)
        # Block i leads from frame i.
        self._latents, self._past = self._latents[gone:], self._past[gone:]
        context = self.model.latent.believed(torch.stack(self._latents, 1), belief)
        between = self._past[: len(self._latents) - 1]
        if not between:
            return context, context.new_zeros(len(context), 0, self.model.block)
        return context, torch.stack(between, 1)

    def _context(self, belief: Belief) -> PlanningContext:
        """Where the episodes stand, all latents and the goal as they are believed."""
        latents, past = self._memory(belief)
        goal = None if self._goal is None else self.model.latent.believed(self._goal, belief)
        return PlanningContext(
            model=self.model,
            settings=self.settings,
            latents=latents,
            past=past,
            goal=goal,
            last_action=self._last_action,
            space=self.space,
        )

    def _proposal(self, context: PlanningContext) -> Tensor | None:
        """[B, H, A] the plan of the policy that has a say, on the CPU; None: none has."""
        policy, horizon = self.settings.policy, self.settings.mpc.horizon
        if policy is None:
            return None
        toward = self.model.propose(context.latents, context.goal_latent(), horizon, policy=policy)
        return self.space.to_plan(toward).cpu()

    def _staying(self) -> Tensor | None:
        """[B, H, A] the plan of taking the last action again, which holds the place where actions
        are places."""
        if self._last_action is None or not self.space.absolute:
            return None
        step = self._last_action.cpu().repeat(1, self.space.plan_dim // self.space.size)
        return step[:, None].expand(-1, self.settings.mpc.horizon, -1)
