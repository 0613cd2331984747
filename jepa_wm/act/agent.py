"""The agent: sees frames and a goal image, imagines, searches, and hands out actions. It never meets a simulator.

B episodes, b episodes of a piece, S candidates, H horizon, N latent tokens of width D, A action numbers a model step,
a of one action.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.actions import ActionSpace, DiscreteSpace
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schema import Plan as Settings
from jepa_wm.imagine.world_model import WorldModel
from jepa_wm.plan.categorical import CategoricalCEM
from jepa_wm.plan.chunks import in_chunks, plans_within
from jepa_wm.plan.gradient import Gradient, InTurn
from jepa_wm.plan.icem import ICEM
from jepa_wm.plan.objectives import (
    Distance,
    Objective,
    Smoothness,
    Term,
    ToGoal,
    effort,
    imagined_cost,
    latent_distance,
)
from jepa_wm.plan.receding import RecedingHorizon
from jepa_wm.plan.search import Cost, Solver
from jepa_wm.plan.solvers import CEM, MPPI, RandomShooting


class Agent:
    """Plans toward goal images for a batch of episodes, remembering the last frames and the actions between them."""

    def __init__(self, model: WorldModel, space: ActionSpace | DiscreteSpace, settings: Settings) -> None:
        if space.expanded != model.block:
            raise ValueError(
                f"the world's action space gives {space.expanded} numbers a model step but the model was trained on "
                f"{model.block}: use the world and dynamics.frameskip it was trained with"
            )
        self.model, self.settings, self.space = model, settings, space
        self.search = RecedingHorizon(make_solver(space, settings), execute=settings.execute)
        self._most = plans_within(settings.memory_mb, *model.plan_bytes(settings.horizon))
        self._most_with_gradient = self._most
        if settings.solver in DESCENDING:
            with_gradient = model.plan_bytes(settings.horizon, gradients=True)
            self._most_with_gradient = plans_within(settings.memory_mb, *with_gradient)
        self._latents: list[Tensor] = []  # each [B, N, D]
        self._past: list[Tensor] = []  # each [B, A]
        self._goal = torch.zeros(0)

    @classmethod
    def of_run(cls, run: RunFolder, bounds: tuple[np.ndarray, np.ndarray, float | None]) -> Agent:
        """The agent of a run whose dynamics are trained, for worlds whose `action_bounds` are (low, high, norm)."""
        low, high, longest = bounds
        model, plan = WorldModel.load(run.path), run.config.plan
        frameskip = run.config.dynamics.frameskip
        space = ActionSpace.of_block(low.tolist(), high.tolist(), max_norm=longest, block=frameskip, hold=plan.hold)
        return cls(model, space, plan)

    def reset(self, goal_frames: np.ndarray, seeds: Sequence[int]) -> None:
        """Begin one episode per goal image [B, h, w, c] uint8; an episode's plans depend on its own seed alone."""
        self._goal = self.model.encode(torch.from_numpy(goal_frames))
        self._latents, self._past = [], []
        self.search.reset(seeds, device=self._goal.device)

    def act(self, frames: np.ndarray) -> np.ndarray:
        """[B, K*frameskip, a] environment actions to take after seeing frames [B, h, w, c] uint8."""
        if len(frames) != len(self._goal):
            raise ValueError(f"{len(frames)} frames for {len(self._goal)} episodes; reset the agent for each batch")
        self._latents.append(self.model.encode(torch.from_numpy(frames)))
        window = self.model.latent.settings.window
        self._latents = self._latents[-window:]
        self._past = self._past[max(0, len(self._past) - window + 1) :]
        context = torch.stack(self._latents, 1)
        nothing = context.new_zeros(len(frames), 0, self.model.block)
        past = torch.stack(self._past, 1) if self._past else nothing

        def cost_of(some: slice) -> Cost:
            def imagine(actions: Tensor) -> Tensor:
                cut = self.settings.gradient.truncate
                return self.model.imagine(context[some], past[some], actions, truncate=cut)

            return imagined_cost(imagine, self._objective(some))

        cost = in_chunks(cost_of, most=self._most, most_with_gradient=self._most_with_gradient)
        blocks = self.search.plan(cost)  # [B, K, A]
        if self.settings.execute == 1:
            self._past.append(blocks[:, 0])
        else:  # frames between are not seen, so the memory starts anew
            self._latents, self._past = [], []
        return self.space.steps(blocks).numpy()

    def _objective(self, some: slice) -> Objective:
        """What is minimised for some of the episodes."""
        wanted = self.settings
        goal = ToGoal(goal=self._goal[some], distance=self._distance(), mode=wanted.steps)
        last = self._past[-1][some, -self.space.size :] if self._past else None
        terms: list[tuple[float, Term]] = [(1.0, goal)]
        if wanted.effort:
            terms.append((wanted.effort, effort))
        if wanted.smoothness:
            terms.append((wanted.smoothness, Smoothness(size=self.space.size, before=last)))
        return Objective(tuple(terms))

    def _distance(self) -> Distance:
        if self.settings.objective == "metric":
            return self.model.steps_to_go
        return latent_distance(self.settings.objective)


DESCENDING = ("gradient", "cem_gradient")  # solvers that need the cost's gradient


def make_solver(space: ActionSpace | DiscreteSpace, settings: Settings) -> Solver:
    """The solver the config names, for the space. Raises ValueError for one that cannot search it."""
    s = settings
    if isinstance(space, DiscreteSpace):
        if s.solver != "cem":
            raise ValueError(
                f"plan.solver {s.solver} searches continuous actions; set plan.solver cem for discrete ones"
            )
        return CategoricalCEM(space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds, elites=s.elites)
    if s.solver == "icem":
        return ICEM(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds, elites=s.elites, std=s.std,
            min_std=s.min_std, momentum=s.icem.momentum, colour=s.icem.colour, shrink=s.icem.shrink, kept=s.icem.kept,
        )  # fmt: skip
    if s.solver == "mppi":
        return MPPI(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds,
            temperature=s.temperature, std=s.std, min_std=s.min_std,
        )  # fmt: skip
    if s.solver == "random":
        return RandomShooting(space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds)
    descent = Gradient(
        space=space, horizon=s.horizon, restarts=s.gradient.restarts, rounds=s.gradient.steps,
        lr=s.gradient.lr, std=s.gradient.std, noise=s.gradient.noise,
    )  # fmt: skip
    if s.solver == "gradient":
        return descent
    search = CEM(
        space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds,
        elites=s.elites, std=s.std, min_std=s.min_std,
    )  # fmt: skip
    return search if s.solver == "cem" else InTurn(search, descent)
