"""The agent: sees frames and a goal image, imagines, searches, and hands out actions. It never meets a simulator.

B episodes, S candidates, H horizon, N latent tokens of width D, A action numbers a model step, a of one action.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.actions import ActionSpace
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schema import Plan as Settings
from jepa_wm.imagine.world_model import WorldModel
from jepa_wm.plan.objectives import Distance, ToGoal, imagined_cost, latent_distance
from jepa_wm.plan.receding import RecedingHorizon
from jepa_wm.plan.search import Solver
from jepa_wm.plan.solvers import CEM, MPPI, RandomShooting


class Agent:
    """Plans toward goal images for a batch of episodes, remembering the last frames and the actions between them."""

    def __init__(self, model: WorldModel, space: ActionSpace, settings: Settings) -> None:
        if space.expanded != model.block:
            raise ValueError(
                f"the world's action space gives {space.expanded} numbers a model step but the model was trained on "
                f"{model.block}: use the world and dynamics.frameskip it was trained with"
            )
        self.model, self.settings, self.space = model, settings, space
        self.search = RecedingHorizon(make_solver(space, settings), execute=settings.execute)
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

        def imagine(actions: Tensor) -> Tensor:
            return self.model.imagine(context, past, actions)

        goal = ToGoal(goal=self._goal, distance=self._distance(), mode=self.settings.steps)
        blocks = self.search.plan(imagined_cost(imagine, goal))  # [B, K, A]
        if self.settings.execute == 1:
            self._past.append(blocks[:, 0])
        else:  # frames between are not seen, so the memory starts anew
            self._latents, self._past = [], []
        return self.space.steps(blocks).numpy()

    def _distance(self) -> Distance:
        if self.settings.objective == "metric":
            return self.model.steps_to_go
        return latent_distance(self.settings.objective)


def make_solver(space: ActionSpace, settings: Settings) -> Solver:
    """The solver the config names."""
    s = settings
    if s.solver == "cem":
        return CEM(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds,
            elites=s.elites, std=s.std, min_std=s.min_std,
        )  # fmt: skip
    if s.solver == "mppi":
        return MPPI(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds,
            temperature=s.temperature, std=s.std, min_std=s.min_std,
        )  # fmt: skip
    return RandomShooting(space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds)
