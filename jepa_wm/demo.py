"""The whole pipeline from one command: collect, learn to see, freeze, learn what actions do, plan,
report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from jepa_wm.config import Config
from jepa_wm.core.run import Run
from jepa_wm.data.held_out import TRAINING
from jepa_wm.evals import goal_reaching
from jepa_wm.features import cache
from jepa_wm.report import report
from jepa_wm.training import dynamics, heads, pretrain
from jepa_wm.worlds import collect

Stage = Callable[[Run], dict[str, object]]
STAGES: dict[str, Stage] = {
    "collect": collect.run,
    "pretrain": pretrain.run,
    "features": cache.run,
    "dynamics": dynamics.run,
    "heads": heads.run,  # only where the plan asks for one
    "plan": goal_reaching.run,
}
PROMISED: dict[
    str, tuple[str, ...]
] = {  # what scripts find at the top of the result; the rest lies under `stages`
    "pretrain": ("collapsed", "feature_std", "effective_rank", "probe"),
    "dynamics": ("rollout",),
    "plan": (
        "success",
        "success_by",
        "success_training_layouts",
        "return",
        "return_training_layouts",
        "baselines",
        "baselines_training_layouts",
        "oracle",
        "oracle_training_layouts",
        "seconds_per_decision",
    ),  # fmt: skip
    "report": ("report",),
}


def run(run: Run) -> dict[str, object]:
    """Every stage that is not finished yet, then the baseline of a random frozen encoder if asked
    for, then the page.

    Returns the promised keys of all stages, the rest as `stages` {name: {key: value}}, each with
    its `seconds`, and the `minutes` they took together. Interrupted, it goes on where it stopped.
    """
    results = {name: _tell(name, stage)(run) for name, stage in stages_for(run.config).items()}
    plan = results["plan"]
    baselines = {
        key: value
        for key, value in plan.items()
        if key.startswith("baselines") and isinstance(value, dict)
    }
    if run.config.evaluation.random_encoder_baseline and any(
        beside["random_encoder"] is None for beside in baselines.values()
    ):
        judged, plan["random_encoder_seconds"] = random_encoder_baseline(run)
        for key, beside in baselines.items():
            beside["random_encoder"] = judged[key.removeprefix("baselines")]
        run.write_result("plan", plan)
    results["report"] = _tell("report", report.run)(run)
    if "random_encoder_seconds" in plan:
        results["random_encoder"] = {"seconds": plan.pop("random_encoder_seconds")}
    return _merged(results)


def _merged(results: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Promised keys at the top, whatever else a stage tells under its name: no two stages share a
    key by accident."""
    merged: dict[str, object] = {}
    stages: dict[str, dict[str, object]] = {}
    for name, result in results.items():
        promised = PROMISED.get(name, ())
        merged |= {key: result[key] for key in promised if key in result}
        stages[name] = {key: value for key, value in result.items() if key not in promised}
    return {**merged, "stages": stages, "minutes": sum(map(_seconds, results.values())) / 60}


def stages_for(config: Config) -> dict[str, Stage]:
    """The stages a config needs: heads only where its plan asks for one."""
    return {
        name: stage
        for name, stage in STAGES.items()
        if name != "heads" or config.planner.needs_heads
    }


def _seconds(result: Mapping[str, object]) -> float:
    """What a stage took, which every stage's result tells."""
    seconds = result["seconds"]
    assert isinstance(seconds, (int, float))
    return float(seconds)


def random_encoder_baseline(run: Run) -> tuple[dict[str, object], float]:
    """(success or return of the same chain on the same data with an encoder that was never
    trained, its seconds).

    The first is {what the key ends in: outcome}: "" on held-out layouts, "_training_layouts" on
    those of training."""
    config = run.config
    untrained = config.train.pretrain.model_copy(update={"steps": 0})
    changed = config.model_copy(
        update={
            "data": config.data.model_copy(update={"path": str((run.path / "collect").resolve())}),
            "train": config.train.model_copy(update={"pretrain": untrained}),
            "planner": config.planner.model_copy(
                update={"mpc": config.planner.mpc.model_copy(update={"also_evaluate": ()})}
            ),
        }
    )
    with Run.open(run.path / "random_encoder", changed) as baseline:
        results = {
            name: _tell(f"random encoder: {name}", stage)(baseline)
            for name, stage in stages_for(changed).items()
        }
    name = "return" if config.planner.cost.objective == "reward" else "success"
    judged = {
        key.removeprefix(name): told
        for key, told in results["plan"].items()
        if key in (name, name + TRAINING)
    }
    return judged, sum(map(_seconds, results.values()))


def _tell(name: str, stage: Stage) -> Stage:
    print(f"--- {name}", file=sys.stderr, flush=True)
    return stage
