"""Success against the distance of goals: one model on goals that a recording or a play reached so
many environment steps after the start, each with twice as many steps to get there.

<run>/eval_offsets/<digest>/    a row of its own: its tasks and episodes as `plan` keeps them, and
                                its result.json; rows of one `curve`, which the report draws, have
                                all settings but the offset in common
<run>/eval_offsets/success.png  all rows of the latest command
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jepa_wm.core.config import digest
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import written_whole
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.evals.goal_reaching import begin
from jepa_wm.evals.plays import refuse_reward
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.report.offsets import outcomes
from jepa_wm.report.plots import success_by_offset
from jepa_wm.worlds.tasks import TASKS, TaskSettings
from jepa_wm.worlds.world import CollectSettings, WorldSettings

STAGE, BUDGET = "eval_offsets", 2  # steps of the budget for each from start to goal
# of what `plan` tells
KEPT = ("success", "policies", "search_beaten", "baselines", "oracle", "states_read")


@stage(STAGE, after="heads", keep="own", unrecorded=("evaluation.offsets",))
def offsets(
    run: Run,
    seed: int,
    world: WorldSettings,
    data_path: str | None,
    collect: CollectSettings,
    dynamics_frameskip: int,
    planner: PlannerSettings,
    evaluation: EvaluationSettings,
    evaluation_offsets: tuple[int, ...],
) -> dict[str, object]:
    """`rows`: success of the search, of policies alone, baselines and oracle for every one of
    `evaluation.offsets`; and a `picture` of them. A row that was played before is found again.

    UserError for planning by reward, and for tasks that draw no goal at an offset."""
    refuse_reward(planner, "offsets")
    task = _offset_task(world, evaluation.task)
    rows = []
    for offset in evaluation_offsets:
        there = {**task.model_dump(), "offset": offset}
        own = {"task": type(task).model_validate(there), "budget": BUDGET * offset}
        at = evaluation.model_copy(update=own)
        # Whatever the row depends on, beside what `run` compares itself.
        depends = run.recorded(STAGE)
        place = f"{STAGE}/{digest({'offset': offset, 'depends': depends})}"
        play = partial(
            _row, offset=offset, curve=digest(depends), place=place, seed=seed, world=world,
            data_path=data_path, collect=collect, frameskip=dynamics_frameskip, planner=planner,
            evaluation=at,
        )  # fmt: skip
        row = run.once(place, play)
        rows.append(
            {"offset": offset, "budget": at.budget} | {k: row[k] for k in KEPT if k in row}
        )

    picture = run.path / STAGE / "success.png"
    with written_whole(picture) as temporary:
        temporary.write_bytes(success_by_offset(list(evaluation_offsets), outcomes(rows)).png())
    return {"rows": rows, "picture": str(picture)}


def _row(
    run: Run, *, offset: int, curve: str, evaluation: EvaluationSettings, **given: Any
) -> dict[str, object]:
    play, met = begin(run, evaluation=evaluation, **given)
    row = {"offset": offset, "curve": curve, "budget": evaluation.budget}
    return {**row, **met, **play.judge()}


def _offset_task(world: WorldSettings, task: TaskSettings | None) -> TaskSettings:
    """The task that is played; UserError for one without an offset."""
    if task is None and world.tasks:
        task = TASKS.get(world.tasks[0]).model_validate({})
    if task is None or "offset" not in type(task).model_fields:
        name = (
            "this world has no goal tasks" if task is None else f"task {task.name} has no offset"
        )
        raise UserError(
            f"eval offsets: {name}; goals so many steps ahead are those of a recording, set "
            "evaluation.task={name: recorded}"
        )
    return task
