"""The group on pretraining: the encoder, and what can be read from its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jepa_wm.report import plots
from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.learning import Records, gaps_in, logged, losses
from jepa_wm.report.page import (
    PARTS,
    Block,
    Cell,
    Figure,
    Grid,
    Group,
    Row,
    Section,
    Table,
    Tile,
    number,
    with_unit,
)

KEPT = 0.1  # normalised error at which a part of the state counts as kept
# logged, title, caption
COLLAPSE = (
    ("feature_std", "Spread.", "Standard deviation of features across samples at equal position."),
    ("effective_rank", "Effective rank.", "How many directions the features use."),
    ("patch_rank", "Rank of patches.", "How many directions the embedded patches use."),
)


@PARTS.register("pretrain")
def pretraining(artifacts: RunArtifacts) -> Group:
    """What can be read from the encoder's features, and how they came about."""
    result, metrics = artifacts.results.get("pretrain"), artifacts.metrics["pretrain"]
    probes = Section(
        "probes",
        "What can be read from the frozen features",
        "A small probe reads the world's state from features that were trained without it. "
        "Features that read no better than those of a random encoder hold nothing of it.",
        _probes(result) if result else [],
        "pretrain",
    )
    patches = Section(
        "patches",
        "What the patch embedding shows",
        "What has a tiny share of the variance in pixels, such as something small that moves, "
        "reaches the encoder's first layer with the share it has behind the embedding.",
        [_spectrum(result["patch_spectrum"])] if result and "patch_spectrum" in result else [],
        "pretrain",
    )
    curves = Section(
        "collapse",
        "Loss, spread and rank in pretraining",
        "A falling loss proves nothing: a collapsed encoder predicts itself perfectly. Spread and "
        "effective rank must hold while the probes get better.",
        _pretraining_curves(metrics, (result or {}).get("probe") or {}) if metrics else [],
        "pretrain",
    )
    stateless = result is not None and not result.get("probe")  # there is no state to read
    sections = [curves, patches] if stateless else [probes, curves, patches]
    return Group("pretraining", "Pretraining", sections)


def encoder_tiles(pretrain: Mapping[str, Any]) -> list[Tile]:
    """Whether the encoder collapsed, and how well a part of the state is read."""
    tiles = []
    if (collapsed := pretrain.get("collapsed")) is not None:
        spread, rank = pretrain.get("feature_std"), pretrain.get("effective_rank")
        says = f"spread {number(spread)}, effective rank {number(rank)}"
        word, style = ("collapsed", "lost") if collapsed else ("no collapse", "")
        tiles.append(Tile(word, says, style))
    for name, probe in list((pretrain.get("probe") or {}).items())[:1]:
        random = probe.get("random_encoder")
        beside = "" if random is None else f", {number(random, 2)} from a random encoder"
        value = with_unit(probe.get("error"), probe.get("unit"), 2)
        tiles.append(Tile(value, f"error in reading the {name}{beside}"))
    return tiles


def _probes(result: Mapping[str, Any]) -> list[Block]:
    """The error of each part of the state, and of its change from frame to frame, beside that on
    a random encoder."""
    rows = []
    for name, probe in _read(result):
        error, random, unit = probe.get("error"), probe.get("random_encoder"), probe.get("unit")
        ratio = Cell("–")
        if error is not None and random:
            ratio = Cell(number(error / random), "won" if error < random else "lost")
        beside = "not measured" if random is None else with_unit(random, unit)
        kept = _kept(probe.get("normalised_error"))
        rows.append(Row([name, with_unit(error, unit), kept, beside, ratio]))
    header = (
        "part of the state", "error", "normalised error", "random encoder",
        "ratio, below 1 is better",
    )  # fmt: skip
    return [Table(header, rows)] if rows else []


def _read(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(what was read in words, its scores)."""
    for kind, suffix in (("probe", ""), ("velocity", ", its change")):
        for name, probe in (result.get(kind) or {}).items():
            yield name.replace("_", " ") + suffix, probe


def _kept(normalised: float | None) -> Cell:
    """A mean square error over that of the mean."""
    if normalised is None:
        return Cell("–")
    return Cell(number(normalised), "won" if normalised <= KEPT else "")


def _spectrum(spectrum: Mapping[str, Sequence[float]]) -> Block:
    text = "Shares of the variance of patches, the largest first."
    return Grid([Figure(plots.spectra(spectrum), "Patch spectrum.", text)])


def _pretraining_curves(metrics: Records, probes: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    names = logged(metrics)
    figures = losses(metrics)
    for name, title, text in COLLAPSE:
        if name in names:
            figures.append(Figure(plots.curves(metrics, [name]), title, text))
    if read := [name for name in names if name.startswith("probe/")]:
        levels = {f"probe/{name}": probe.get("random_encoder") for name, probe in probes.items()}
        units = sorted({str(probe["unit"]) for probe in probes.values() if probe.get("unit")})
        text = f"Error in {' and '.join(units)}" if units else "Error"
        text += "; dashed: a random encoder." if levels else "."
        figures.append(Figure(plots.curves(metrics, read, levels=levels), "Probes.", text))
    if shares := [name for name in names if name.startswith("gradient_share/")]:
        text = "Of the encoder's gradient norm: which loss trains it."
        figures.append(Figure(plots.curves(metrics, shares), "Shares.", text))
    return [Grid(figures, "pairs"), *gaps_in(metrics)]
