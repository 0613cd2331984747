"""Where pretraining begins if not from scratch: at the weights of another run, or of a released
V-JEPA 2 file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from jepa_wm.config import Config
from jepa_wm.core.checkpoint import load_checkpoint, load_strict, newest_checkpoint
from jepa_wm.core.errors import UserError
from jepa_wm.features.foreign_file import IN_FOLDERS, read_parts
from jepa_wm.features.vjepa2 import take_plain_frames
from jepa_wm.features.weights import Size, load_encoder, load_predictor
from jepa_wm.models.jepa import JEPA
from jepa_wm.models.predictor import Predictor

PARTS = ("encoder", "target", "predictor")  # what goes on; what regularises begins anew


def start_at(model: JEPA, path: str | Path, config: Config) -> None:
    """Give a model the weights that `train.pretrain.start` names: a run folder, or a released
    file.

    The frames may be larger and the clips longer than before, since positions are counted. Raises
    UserError for a path that holds neither, and for weights of another shape or key than the
    config's model has."""
    path = Path(path)
    if path.is_dir() and not any((path / name).is_file() for name in IN_FOLDERS):
        newest = newest_checkpoint(path / "pretrain" / "checkpoints")
        if newest is None:
            raise UserError(
                f"{path}: no run folder with a checkpoint of pretraining, and has no {' or '.join(IN_FOLDERS)}; name "
                "another as start"
            )
        weights, _ = load_checkpoint(newest)
        source = str(newest)
    else:
        weights, source = _released(path, config), str(path)
    for part in PARTS:
        own = {
            name.removeprefix(f"{part}."): value
            for name, value in weights.items()
            if name.startswith(f"{part}.")
        }
        load_strict(getattr(model, part), own, source=f"{source}: {part}")


def _released(path: Path, config: Config) -> dict[str, Tensor]:
    """The weights of a released pretraining file under our names, for frames in -1..1."""
    size = Size(
        config.data.image_size, config.encoder.num_heads, predictor_heads=config.jepa.num_heads
    )
    if config.jepa.target_levels != 1:
        raise UserError(
            f"{path}: its predictor guesses tokens of the last level; set jepa.target_levels=1"
        )
    weights: dict[str, Tensor] = {}
    for part, theirs in (("encoder", "encoder"), ("target", "target_encoder")):
        has_it = theirs in read_parts(
            path
        )  # a file without targets: these begin where the encoder is
        encoder = take_plain_frames(load_encoder(path, size, part=theirs if has_it else "encoder"))
        assert encoder.settings is not None
        wanted, found = config.encoder.model_dump(), encoder.settings.model_dump()
        differing = [
            f"{key} {found[key]}"
            for key in wanted
            if wanted[key] != found[key] and key != "locality"
        ]
        if differing:
            raise UserError(f"{path}: is a model with {', '.join(differing)}; set encoder so")
        weights |= {f"{part}.{name}": value for name, value in encoder.state_dict().items()}
    predictor = load_predictor(path, Predictor, size).state_dict()
    count = len(config.jepa.masks)
    if len(predictor["mask_tokens"]) < count:
        raise UserError(
            f"{path}: has {len(predictor['mask_tokens'])} mask tokens for {count} jepa.masks"
        )
    predictor["mask_tokens"] = predictor["mask_tokens"][
        :count
    ]  # the released models have some that are never used
    return weights | {f"predictor.{name}": value for name, value in predictor.items()}
