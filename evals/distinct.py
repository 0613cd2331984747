"""Each distinct frozen evaluation once: its settings, data and encoder name the folder of its
result, and stand in it.

<run>/eval_linear/<digest>/result.json     `evaluated` tells what was measured
<run>/eval_linear/<digest>/config.yaml     all settings that it depends on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from jepa_wm.config import Config
from jepa_wm.core.config import as_plain, digest, pick
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import resolve_precision, set_threads
from jepa_wm.core.run import Run
from jepa_wm.evals.labelled import Labelled, Part, open_labelled
from jepa_wm.evals.representations import Representation, representations_of
from jepa_wm.features.cache import encoder_of, weights_digest

Measure = Callable[[Config, Labelled, Mapping[str, Representation], Path], dict[str, object]]


def measured(run: Run, stage: str, measure: Measure) -> dict[str, object]:
    """What `measure` makes of the labelled data, given a folder for pictures; or the stored
    result, if the same was measured before. `evaluated` tells settings, data and encoder, `stored`
    where the result lies, `left_out` what could not be read."""
    set_threads(run.config.train.threads)
    config = resolve_precision(run.config, run.path)
    data, encoder = open_labelled(run, config), encoder_of(run, config)
    if data.train.digest == data.test.digest:
        raise UserError(
            "probes.train and probes.test hold the same samples; a test set is one that training has not met"
        )
    evaluated: dict[str, object] = {
        "settings": as_plain(config.probes),
        "data": {"train": _told(data.train), "test": _told(data.test), "reads": data.classes or data.groups},
        "encoder": {"backbone": config.features.backbone, "weights": config.features.weights,
                    "digest": weights_digest(encoder)},
        "precision": config.train.precision,
    }  # fmt: skip
    name = digest({"evaluated": evaluated, "depends": pick(config, run.depends(stage))})
    place = f"{stage}/{name}"

    def work(run: Run) -> dict[str, object]:
        result = measure(config, data, representations_of(encoder, config), run.stage_dir(place))
        left_out = sorted(set(data.left_out))
        return {
            **result,
            "left_out": left_out,
            "evaluated": evaluated,
            "stored": str(run.path / place),
        }

    return run.once(place, work)


def _told(part: Part) -> dict[str, object]:
    return {"samples": len(part), "digest": part.digest}
