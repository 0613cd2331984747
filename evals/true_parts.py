"""The planner with one learned part replaced by the true one: the learned cost on the true
simulator's frames, and the true cost on states that are read from imagined latents.

B episodes, b episodes of a piece, S plans, H horizon, N latent tokens of width D, A action numbers
of a model step, X state numbers, P those of a goal, R rows, h and w frame height and width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from jepa_wm.data.quantities import TURN
from jepa_wm.planning.cost import PlanningContext, in_chunks, objective_of, plans_at_once
from jepa_wm.planning.terms import over_steps
from jepa_wm.world_model.proprio import proprio_of
from jepa_wm.worlds.tasks import Episodes, HasOracle, Task
from jepa_wm.worlds.world import RandomActions, World

FRAMES = 128  # rendered and encoded in one go
ALIKE = 4.0  # mean difference of pixel values, of 255, up to which a picture is the same
SAME = 1e-3  # difference of state numbers, beside 1 and their size, up to which they are the same
STEPS = 10  # random ones, after which a world is compared again with one that begins there
FAR = 1e6  # cost of a state that is none
# latents [R, N, D] to the state [R, X] in its own units
ReadState = Callable[[Tensor], np.ndarray]


class Drawing:
    """Pictures of simulated copies, which themselves need not be rendered: worlds of the same
    episodes, begun in whole states."""

    def __init__(self, task: Task, episodes: Episodes) -> None:
        self.world, self.seeds = task.begin(episodes), episodes.seeds

    def __call__(self, state: np.ndarray, standing: np.ndarray) -> np.ndarray:
        """[B * S, h, w, 3] uint8 of the states [B * S, X] of S copies of each world. What copies
        leave out, such as distractors, is as in the worlds' states [B, X] as they stand."""
        times = len(state) // len(standing)
        rest = np.repeat(standing[:, state.shape[1] :], times, 0)
        return self._drawn(np.concatenate([state, rest], 1), np.repeat(self.seeds, times))

    def why_otherwise(self, world: World, *, same_chance: bool) -> str | None:
        """What is another in worlds that begin in the whole states of these, in words; None:
        nothing. Of pictures with chance in them, such as noise, no more is asked than that they
        differ as two of other seeds do, unless both are of the `same_chance`, that of a reset.
        ValueError from a world that refuses such a state."""
        state, seen = world.state(), world.render().astype(np.float32)
        drawn = self._drawn(state, self.seeds).astype(np.float32)
        if _apart(self.world.state(), state, world.state_units) > SAME:
            return "is in another one"
        chance = 0.0
        if not same_chance:
            chance = float(np.abs(self._drawn(state, self.seeds + 1) - drawn).mean())
        return "looks otherwise" if np.abs(drawn - seen).mean() > ALIKE + chance else None

    def _drawn(self, start: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        self.world.reset(seeds, start=start)
        return self.world.render()


class SimulatedCost:
    """The cost of plans that are carried out in the true simulator, and judged as imagined ones
    are: frames are encoded, believed as the agent believes them, and priced by the terms of its
    settings. An ensemble's uncertainty has no part in it."""

    def __init__(
        self, task: HasOracle, drawing: Drawing, world: World, context: PlanningContext
    ) -> None:
        self.task, self.drawing, self.world, self.context = task, drawing, world, context
        self.objective = objective_of(context)
        self.proprio = proprio_of(context.model, drawing.world)

    def __call__(self, plans: Tensor) -> Tensor:
        """[B, S] costs of plans [B, S, H, A], where the plans are."""
        most = max(1, FRAMES // len(plans))
        return torch.cat([self._price(piece) for piece in plans.split(most, 1)], 1)

    def _price(self, plans: Tensor) -> Tensor:
        here = plans.to(self.context.model.device)
        return self.objective(self.futures(plans), here).to(plans.device)

    def futures(self, plans: Tensor) -> Tensor:
        """[B, S, H, N, D] the latents that plans [B, S, H, A] lead to."""
        model, space, now = self.context.model, self.context.space, self.context.now
        assert space is not None
        actions = space.to_env(plans.flatten(0, 1)).numpy()  # [B*S, H*frameskip, a]
        copies, standing = self.task.simulate(self.world, plans.shape[1]), self.world.state()

        # A frame is seen after each model step.
        latents = []
        for step in range(actions.shape[1]):
            copies.step(actions[:, step])
            if (step + 1) % model.frameskip == 0:
                frames = self.drawing(copies.state(), standing)
                proprio = None if self.proprio is None else torch.from_numpy(self.proprio())
                latents.append(model.encode(torch.from_numpy(frames), proprio))
        encoded = torch.stack(latents, 1).unflatten(0, plans.shape[:2])

        # Static numbers are those believed now, as they are while plans are imagined.
        static = model.latent.static_of(now)[:, None, None]
        return model.latent.with_static(encoded, static)


class ReadCost:
    """The true cost to go of the states that are read from imagined latents. An ensemble's
    uncertainty and terms beside the objective have no part in it."""

    def __init__(
        self, task: HasOracle, read: ReadState, goal: np.ndarray, context: PlanningContext
    ) -> None:
        """`goal` [B, P] are the tasks' goals."""
        self.task, self.read, self.goal, self.context = task, read, goal, context

    def __call__(self, plans: Tensor) -> Tensor:
        """[B, S] costs of plans [B, S, H, A], where the plans are."""
        model, settings = self.context.model, self.context.settings
        most = plans_at_once(model, settings, gradients=False)
        return in_chunks(self._price, plans.to(model.device), most=most).to(plans.device)

    def _price(self, plans: Tensor, rows: slice) -> Tensor:
        """[b, S] costs of plans [b, S, H, A] of these episodes, the mean of several futures."""
        context, cost = self.context.of(rows), self.context.settings.cost
        futures = context.model.futures(
            context.latents, context.past, plans, num_futures=cost.num_futures
        ).flatten(0, 1)  # of all members: [*, b, S, H, N, D]
        goal = np.repeat(self.goal[rows], plans.shape[1] * plans.shape[2], 0)
        each = []
        for future in futures:
            costs = self.task.oracle_cost(self.read(future.flatten(0, 2)), goal)
            finite = np.nan_to_num(costs, nan=FAR, posinf=FAR, neginf=FAR)
            steps = torch.from_numpy(finite).float().view(plans.shape[:3])
            each.append(over_steps(steps, mode=cost.steps))
        return torch.stack(each).mean(0).to(plans.device)


def why_not_simulated(task: Task, episodes: Episodes) -> str | None:
    """Why plans cannot be tried in the task's simulator and looked at; None: they can."""
    if not isinstance(task, HasOracle):
        return f"task {task.name} has no simulator to try plans in, and no true cost"
    world = task.begin(episodes)
    if not world.state().shape[1]:
        return f"task {task.name}: the world shows no state that could be drawn"

    # A world may be put into a whole state and still be another; and what a reset does not set
    # may show only once it was acted in, as it is when later decisions are made.
    drawing, act = Drawing(task, episodes), RandomActions(episodes.seeds)
    for steps in (0, STEPS):
        for _ in range(steps):
            world.step(act(world))
        after = f" after {steps} steps" if steps else ""
        try:
            why = drawing.why_otherwise(world, same_chance=not steps)
        except ValueError as error:
            return f"task {task.name}: the world cannot begin in a whole state{after}: {error}"
        if why:
            return f"task {task.name}: a world that begins in the same state{after} {why}"
    return None


def why_refused(task: HasOracle, states: np.ndarray, episodes: Episodes) -> str | None:
    """Why the true cost cannot be told of states that are read, here each number of another of
    states [R, X] of the data; None: it can."""
    mixed = np.stack([np.roll(column, 7 * k) for k, column in enumerate(states.T)], 1)
    goal = episodes.goal[np.arange(len(mixed)) % len(episodes)]
    try:
        task.oracle_cost(mixed, goal)
    except ValueError as error:
        return f"the true cost refuses states that may be read from a latent: {error}"
    return None


def _apart(state: np.ndarray, other: np.ndarray, units: Sequence[str]) -> float:
    """The most that a number of states [B, X] is apart, beside 1 and its size; of angles the
    shorter way round."""
    off = np.abs(state.astype(np.float64) - other)
    for number, unit in enumerate(units):
        if unit in TURN:
            turned = off[:, number] % TURN[unit]
            off[:, number] = np.minimum(turned, TURN[unit] - turned)
    return float((off / (1 + np.abs(other))).max())
