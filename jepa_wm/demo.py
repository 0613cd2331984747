"""The whole pipeline from one command: every stage in its order, then the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from jepa_wm.config import Config
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import STAGES, Result, pipeline
from jepa_wm.data.held_out import TRAINING


def demo(run: Run, config: Config) -> dict[str, object]:
    """Every stage that is not finished yet, then the chain of a random frozen encoder if asked
    for, then the page.

    Returns the headline keys of all stages, the rest as `stages` {name: {key: value}}, each with
    its `seconds`, and the `minutes` they took together. Interrupted, it goes on where it stopped.
    """
    results = {name: _do(name, run) for name in pipeline(config) if name != "report"}
    plan = results["plan"]
    baselines = {
        key: value
        for key, value in plan.items()
        if key.startswith("baselines") and isinstance(value, dict)
    }
    if config.evaluation.random_encoder_baseline and any(
        beside["random_encoder"] is None for beside in baselines.values()
    ):
        judged, plan["random_encoder_seconds"] = random_encoder_baseline(run, config)
        for key, beside in baselines.items():
            beside["random_encoder"] = judged[key.removeprefix("baselines")]
        run.write_result("plan", plan)
    results["report"] = _do("report", run)
    if "random_encoder_seconds" in plan:
        results["random_encoder"] = {"seconds": plan.pop("random_encoder_seconds")}
    return _merged(results)


def random_encoder_baseline(run: Run, config: Config) -> tuple[dict[str, object], float]:
    """(success or return of the same chain on the same data with an encoder that was never
    trained, its seconds).

    The first is {what the key ends in: outcome}: "" on held-out layouts, "_training_layouts" on
    those of training."""
    # Random in its patches too, which may start from the data, and so where it is a backbone.
    untrained = config.train.pretrain.model_copy(update={"steps": 0, "start": None})
    random = config.jepa.model_copy(update={"patch_init": "normal"})
    # Of policies those alone that the search asks for.
    asked = {config.planner.solver.played, config.planner.mpc.warm_start} - {None}
    sizes = config.train.heads.sizes.model_copy(update={"policies": tuple(sorted(asked))})
    heads = config.train.heads.model_copy(update={"sizes": sizes})
    # Its data are the run's own, and of the objectives only that which the run is judged by.
    changed = config.model_copy(
        update={
            "data": config.data.model_copy(update={"path": str((run.path / "collect").resolve())}),
            "train": config.train.model_copy(update={"pretrain": untrained, "heads": heads}),
            "jepa": random,
            "features": config.features.model_copy(update={"weights": None}),
            "planner": config.planner.model_copy(
                update={"mpc": config.planner.mpc.model_copy(update={"also_evaluate": ()})}
            ),
            "evaluation": config.evaluation.model_copy(update={"policies": ()}),
        }
    )
    with Run.open(run.path / "random_encoder", changed) as beside:
        results = {
            name: _do(name, beside, "random encoder: ")
            for name in pipeline(changed)
            if name != "report"
        }
    name = "return" if config.planner.cost.objective == "reward" else "success"
    judged = {
        key.removeprefix(name): outcome
        for key, outcome in results["plan"].items()
        if key in (name, name + TRAINING)
    }
    return judged, sum(map(_seconds, results.values()))


def _do(name: str, run: Run, before: str = "") -> Result:
    print(f"--- {before}{name}", file=sys.stderr, flush=True)
    return run_stage(name, run)


def _merged(results: Mapping[str, Result]) -> dict[str, object]:
    """Headline keys at the top, whatever else a stage tells under its name: no two stages share a
    key by accident."""
    merged: dict[str, object] = {}
    stages: dict[str, Result] = {}
    for name, result in results.items():
        headline = STAGES.get(name).headline if name in STAGES else ()
        merged |= {key: result[key] for key in headline if key in result}
        stages[name] = {key: value for key, value in result.items() if key not in headline}
    return {**merged, "stages": stages, "minutes": sum(map(_seconds, results.values())) / 60}


def _seconds(result: Result) -> float:
    """What a stage took, which every stage's result tells."""
    return float(result["seconds"])
