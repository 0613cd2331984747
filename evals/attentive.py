"""`jepa-wm eval attentive`: attentive heads of several depths on frozen tokens, settings chosen as
for linear ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from jepa_wm.config import Config
from jepa_wm.core.run import Run
from jepa_wm.evals.distinct import measured
from jepa_wm.evals.labelled import Labelled
from jepa_wm.evals.linear import fitted, guesses
from jepa_wm.evals.probe_heads import Attentive
from jepa_wm.evals.representations import Representation, extract_features
from jepa_wm.evals.scores import score


def run(run: Run) -> dict[str, object]:
    """For each depth (`depth_1`, ...), for the `encoder` and each baseline: the test's figures and
    what was `chosen`."""
    return measured(run, "eval_attentive", _measure)


def _measure(
    config: Config, data: Labelled, representations: Mapping[str, Representation], folder: Path
) -> dict[str, object]:
    evals = config.probes
    result: dict[str, dict[str, object]] = {f"depth_{depth}": {} for depth in evals.depths}
    for name, representation in representations.items():
        train, test = extract_features(
            representation, data, config, name
        )  # raw pixels too in full size: the head sees patches
        for depth in evals.depths:
            kinds = {str(depth): partial(Attentive, depth=depth, head_dim=evals.head_dim)}
            picture = None if data.classes is None else folder / f"confusion_{name}_{depth}.png"
            head = fitted(kinds, train, data, config, f"{name}, depth {depth}")
            figures = score(guesses(head, test, train, data), test.part, data, picture)
            result[f"depth_{depth}"][name] = {**figures, "chosen": vars(head.choice)}
    return {**result}
