"""Plans judged on recordings, without a simulator: how the recorded chunk of actions ranks among
others by the planned cost, how far the first action of plans is from the recorded one, and how far
from the goal plans are imagined to end.

<run>/eval_offline/<digest>/result.json    one for each recording and planner
<run>/eval_offline/<digest>/windows/       what was measured in windows, so many at a time

W windows, w of them at a time, C frames seen, K candidate chunks, H horizon, A action numbers of a
model step, a of one environment action, Q plans that have a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.config import digest
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import states_read
from jepa_wm.data.trajectories import Trajectories, data_folder, open_data
from jepa_wm.evals.episodes import CHUNK, Watch, play_in_chunks
from jepa_wm.evals.frozen_tasks import refuse_recording_of_data
from jepa_wm.evals.held_out_windows import HeldOutWindows, RecordedActions, Replay
from jepa_wm.evals.plays import refuse_reward
from jepa_wm.evals.scores import over_episodes
from jepa_wm.models.head_settings import PolicyName
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningContext, PlanningCost
from jepa_wm.planning.cost_settings import CostSettings, Goal
from jepa_wm.planning.search import Cost
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.latents import Recording
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.recorded import RecordedTask
from jepa_wm.worlds.tasks import TaskSettings

STAGE = "eval_offline"
BINS = 10  # of the histogram of ranks
RECORDED, SEARCH, MEAN, IDLE, OTHER, STILL = (
    "recorded", "search", "mean_action", "idle", "another_window", "no_motion",
)  # fmt: skip
KEYS = ("cheaper", "tie", "same_episode", "search_cheaper", "error", "latent", "temporal")

Measured = Mapping[str, np.ndarray]


@stage(STAGE, after="heads", keep="own")
def offline(
    run: Run,
    data_path: str | None,
    planner: PlannerSettings,
    evaluation_task: TaskSettings | None,
    evaluation_episodes: int,
    evaluation_task_seed: int,
    evaluation_policies: tuple[PolicyName, ...],
) -> dict[str, object]:
    """`ranking` of the recorded chunk, and `rows`: for each plan its first action beside the
    recorded one and its imagined distance to the goal, in `evaluation.episodes` windows of
    held-out trajectories: those of a task `recorded` that names a file, else the run's own. What
    was measured with the same settings is found again.

    UserError for planning by reward, for a recording that has training episodes or none that is
    long enough, and for a policy that was not trained."""
    refuse_reward(planner, "offline")
    model = WorldModel.load(run.path)
    heldout = open_heldout(run.path, data_path, evaluation_task)
    windows = HeldOutWindows(
        heldout, model, horizon=planner.mpc.horizon, count=evaluation_episodes,
        seed=evaluation_task_seed,
    )  # fmt: skip
    train = Recording(open_data(run.path, data_path, "train"), model.latent_model)
    actions = RecordedActions(train, windows.recording)
    plans = OfflinePlans(model, windows, actions, planner, evaluation_policies)
    # Whatever it depends on names its folder, so that other settings lie beside it.
    name = digest({"depends": run.recorded(STAGE), "recording": heldout.digest})
    place = f"{STAGE}/{name}"
    return run.once(place, lambda run: plans.judge(run.stage_dir(place) / "windows"))


def open_heldout(run: Path, data_path: str | None, task: TaskSettings | None) -> Trajectories:
    """The trajectories that a task `recorded` names, else the run's own held-out ones; UserError
    for a file that has episodes of training."""
    if not isinstance(task, RecordedTask) or task.path is None:
        return open_data(run, data_path, "heldout")
    refuse_recording_of_data(data_folder(run, data_path) / "train.h5", Path(task.path))
    return Trajectories(task.path)


class OfflinePlans:
    """What a model plans and what it thinks of recorded actions, in held-out windows. The planner
    is shown frames, the goal image and the actions taken between the frames seen; of the state a
    latent that reads proprioception is given that of the frames seen, and of the goal where
    planner.cost.proprio asks for it."""

    def __init__(
        self, model: WorldModel, windows: HeldOutWindows, actions: RecordedActions,
        planner: PlannerSettings, policies: tuple[PolicyName, ...],
    ) -> None:  # fmt: skip
        self.model, self.windows, self.actions, self.planner = model, windows, actions, planner
        self.planners = {SEARCH: planner} | {name: planner.alone(name) for name in policies}
        # What cannot be planned is refused before anything is measured.
        try:
            for each in self.planners.values():
                self._agent(each)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{windows.data.path}: nothing can be planned in these actions: {error}"
            ) from error
        space = self._agent(planner).space
        known = windows.seen > 1 if space.absolute else space.staying(None) is not None
        held = (MEAN, IDLE) if known else (MEAN,)
        self.names = (RECORDED, *self.planners, *held, OTHER, STILL)  # of rows

    def judge(self, folder: Path) -> dict[str, object]:
        """All figures; what an interrupted pass has measured is kept in the folder."""
        windows, horizon = self.windows, self.planner.mpc.horizon
        measured = play_in_chunks(
            folder, range(len(windows)), self._chunk, keys=KEYS, label="plan offline", budget=1,
            together=CHUNK,
        )  # fmt: skip
        spread = self.latent_spread()
        return {
            "recording": str(windows.data.path),
            "windows": len(windows),
            "episodes": len(np.unique(windows.episode)),
            "horizon": horizon,
            "environment_steps": horizon * self.model.frameskip,
            "ranking": self._ranking(measured),
            "search_cheaper": self._figure("share", measured["search_cheaper"], rate=True),
            "rows": list(self._rows(measured, spread)),
            "latent_spread": spread,
            **states_read(self.model.latent_model.settings.latent.read_states),
        }

    @torch.no_grad()
    def latent_spread(self) -> float:
        """The spread of the goals' latents, as they are compared and with the static numbers of
        the first: root mean square of all numbers."""
        latent, static, parts = self.model.latent, None, []
        for first in range(0, len(self.windows), CHUNK):
            rows = range(first, min(first + CHUNK, len(self.windows)))
            latents = self.model.encode(torch.from_numpy(self.windows.goals(rows)))
            static = latent.static_of(latents[:1]) if static is None else static
            compared = latent.compared(latent.with_static(latents, static)).flatten(1).double()
            parts.append((compared.sum(0), compared.square().sum(0)))
        mean, square = (sum(part).cpu() / len(self.windows) for part in zip(*parts, strict=True))
        return float((square - mean.square()).clamp(min=0).mean().sqrt())

    # ------------------------------------------------------------------ some windows

    @torch.no_grad()
    def _chunk(self, first: int, last: int, watch: Watch) -> Measured:
        """What is measured in windows `first` to `last` (excluded)."""
        watch(0)
        rows = range(first, last)
        plans, context = self._planned(Replay(self.windows, rows))  # [w, Q, H, A]
        chunks, same = self.windows.alternatives(rows)  # [w, K-1, H, A]
        recorded = self.windows.blocks(rows)[1][:, None]  # [w, 1, H, A]

        # Equal actions are a tie, whatever rounding makes of their costs.
        cost = PlanningCost(context)(torch.cat([recorded, chunks, plans], 1))
        if not cost.isfinite().all():
            raise ValueError("the cost of recorded actions is NaN or infinite; check the model")
        true, other = cost[:, :1], cost[:, 1 : 1 + chunks.shape[1]]
        tie = (other == true) | (chunks == recorded).flatten(2).all(2)
        kept = {
            "cheaper": (other < true) & ~tie,
            "tie": tie,
            "search_cheaper": cost[:, 1 + chunks.shape[1]] < true[:, 0],
            "error": self._errors(recorded, chunks, plans),
        }
        ends: tuple[tuple[str, Goal], ...] = (("latent", "l2"), ("temporal", "temporal"))
        for name, objective in ends:
            kept[name] = self._ends(context, objective, torch.cat([recorded, plans, chunks], 1))
        kept["same_episode"] = torch.from_numpy(same)
        return {name: values.cpu().numpy() for name, values in kept.items()}

    def _planned(self, replay: Replay) -> tuple[Tensor, PlanningContext]:
        """(the plans [w, Q, H, A] of search and policies, then those that hold one action, where
        the search stood)."""
        contexts: list[PlanningContext] = []

        def noted(context: PlanningContext) -> Cost:
            contexts.append(context)
            return PlanningCost(context)

        plans = []
        for planner in self.planners.values():
            agent = self._agent(planner, replay, noted)
            replay.act(agent, goal_proprio=planner.cost.proprio > 0)
            assert agent.mpc.last is not None
            plans.append(agent.space.to_model(agent.mpc.last.actions))

        # The search's own space and context, of which all else is measured.
        context, usual = contexts[0], torch.from_numpy(self.actions.usual())
        assert context.space is not None
        for step in (usual, context.space.staying(context.last_action)):
            if step is not None:
                held = step.to(plans[0]).expand(len(plans[0]), -1)
                plans.append(held.repeat(1, self.model.frameskip)[:, None].expand_as(plans[0]))
        return torch.stack(plans, 1), context

    def _agent(
        self,
        planner: PlannerSettings,
        replay: Replay | None = None,
        cost: Callable[[PlanningContext], Cost] | None = None,
    ) -> Agent:
        """One that searches what the recorded actions span."""
        repeat = planner.mpc.action_repeat
        space = self.actions.space(self.model.frameskip, action_repeat=repeat)
        proprio = None if replay is None else replay.proprio
        return Agent(self.model, space, planner, proprio=proprio, cost=cost)

    def _errors(self, recorded: Tensor, chunks: Tensor, plans: Tensor) -> Tensor:
        """[w, rows] of first actions, NaN of no action."""
        size = len(self.actions.mean)
        truth = recorded[:, :, 0, :size]
        of_plans, of_chunks = (
            self.actions.error(blocks[:, :, 0, :size], truth) for blocks in (plans, chunks)
        )
        none = of_plans.new_full((len(plans), 1), torch.nan)
        return torch.cat([none, of_plans, of_chunks.mean(1, keepdim=True), none], 1)

    def _ends(self, context: PlanningContext, objective: Goal, plans: Tensor) -> Tensor:
        """[w, rows] from the last imagined latents of plans (the recorded chunk, the planned ones,
        those of other windows) and from the latest latent seen to the goal; NaN where no such
        distance was learned."""
        width, count = len(self.names), len(self.names) - 2  # then chunks, no motion
        if objective == "temporal" and self.model.latent_model.distance is None:
            return torch.full((len(plans), width), torch.nan)
        cost = CostSettings(
            objective=objective, steps="last", num_futures=self.planner.cost.num_futures
        )
        settings = self.planner.model_copy(update={"cost": cost})
        ends = PlanningCost(replace(context, settings=settings))(plans).double()
        still = self.model.distance(context.now[:, None], context.goal_latent(), kind=objective)
        each = torch.cat([ends, still.to(ends)], 1)
        each = each.sqrt() if objective == "l2" else each  # the root mean square difference
        of_chunks = each[:, count:-1].mean(1, keepdim=True)
        return torch.cat([each[:, :count], of_chunks, each[:, -1:]], 1)

    # ------------------------------------------------------------------ figures

    def _figure(self, name: str, values: np.ndarray, *, rate: bool = False) -> dict[str, Any]:
        """The mean of values [W] with its interval over episodes; of those that are known."""
        known = np.isfinite(values)
        if not known.any():
            return {name: None, f"low_{name}": None, f"high_{name}": None}
        mean, low, high = over_episodes(
            values[known].astype(np.float64), self.windows.episode[known], rate=rate
        )
        return {name: mean, f"low_{name}": low, f"high_{name}": high}

    def _ranking(self, measured: Measured) -> dict[str, Any]:
        """Where the recorded chunk stands among others by its cost: 0 if all others cost more, 1
        if all cost less; equal ones count half."""
        cheaper, tie, same = (measured[key] for key in ("cheaper", "tie", "same_episode"))
        above = cheaper + 0.5 * tie
        rank = above.mean(1)
        first = np.where(cheaper.any(1), 0, 1 / (1 + tie.sum(1)))
        figures = self._figure("rank", rank)
        for name, chosen in (("same_episode", same), ("other_episodes", ~same)):
            count = chosen.sum(1)
            part = np.where(count > 0, (above * chosen).sum(1) / np.maximum(count, 1), np.nan)
            figures |= self._figure(f"rank_{name}", part)
        return figures | self._figure("top1", first, rate=True) | {
            "chance": 1 / (1 + same.shape[1]),
            "candidates": 1 + same.shape[1],
            "of_same_episode": float(same.sum(1).mean()),
            "histogram": np.histogram(rank, BINS, (0, 1))[0].tolist(),
        }  # fmt: skip

    def _rows(self, measured: Measured, spread: float) -> Iterator[dict[str, Any]]:
        """A row for each plan."""
        error, latent = measured["error"], measured["latent"]
        distance = latent / spread if spread > 0 else np.full_like(latent, np.nan)
        kind, rate = "action_error", self.actions.discrete
        if rate:
            kind, error = "agreement", 1 - error
        usual = error[:, self.names.index(MEAN)]
        for number, name in enumerate(self.names):
            row: dict[str, Any] = {"plan": name, "n": len(error)}
            if name not in (RECORDED, STILL):
                row |= self._figure(kind, error[:, number], rate=rate)
            if name not in (RECORDED, STILL, MEAN):
                row |= self._figure("less_mean_action", error[:, number] - usual)
            row |= self._figure("final_distance", distance[:, number])
            yield row | self._figure("temporal_distance", measured["temporal"][:, number])
