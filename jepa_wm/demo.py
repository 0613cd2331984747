"""The whole story from one command: collect, learn to see, freeze, learn what actions do, plan, report."""

from __future__ import annotations

import sys
from collections.abc import Callable

from jepa_wm.act import collect, evaluate
from jepa_wm.core.run import RunFolder
from jepa_wm.freeze import cache
from jepa_wm.show import report
from jepa_wm.train import dynamics, pretrain

Stage = Callable[[RunFolder], dict[str, object]]
STAGES: dict[str, Stage] = {
    "collect": collect.run,
    "pretrain": pretrain.run,
    "encode": cache.run,
    "dynamics": dynamics.run,
    "plan": evaluate.run,
}


def run(run: RunFolder) -> dict[str, object]:
    """Every stage that is not finished yet, then the floor of a random frozen encoder if asked for, then the page.

    Returns all stages' results in one object, with the `minutes` they took; interrupted, it goes on where it stopped.
    """
    results = {name: _tell(name, stage)(run) for name, stage in STAGES.items()}
    plan = results["plan"]
    floors = plan["floors"]
    assert isinstance(floors, dict)
    if run.config.act.random_encoder_floor and floors["random_encoder"] is None:
        floors["random_encoder"] = random_encoder_floor(run)
        run.write_result("plan", plan)
    page = _tell("report", report.run)(run)
    merged: dict[str, object] = {}
    for result in results.values():
        merged |= {k: v for k, v in result.items() if k not in ("seconds", "training_seconds")}
    seconds = [v for result in results.values() if isinstance(v := result["seconds"], float)]
    return merged | {"report": page["report"], "minutes": sum(seconds) / 60}


def random_encoder_floor(run: RunFolder) -> object:
    """Success of the same chain, on the same data, with an encoder that was never trained."""
    config = run.config
    untrained = config.train.pretrain.model_copy(update={"steps": 0})
    changed = config.model_copy(
        update={
            "observe": config.observe.model_copy(update={"path": str((run.path / "collect").resolve())}),
            "train": config.train.model_copy(update={"pretrain": untrained}),
            "plan": config.plan.model_copy(update={"compare": ()}),
        }
    )
    with RunFolder.open(run.path / "random_encoder", changed) as floor:
        for name, stage in STAGES.items():
            result = _tell(f"random encoder: {name}", stage)(floor)
    return result["success"]


def _tell(name: str, stage: Stage) -> Stage:
    print(f"--- {name}", file=sys.stderr, flush=True)
    return stage
