"""Where pretraining begins if not from scratch: at the weights of another run, or of a released
V-JEPA 2 file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from jepa_wm.core.checkpoint import load_checkpoint, load_strict, newest_checkpoint
from jepa_wm.core.errors import UserError
from jepa_wm.features.foreign_file import IN_FOLDERS, read_parts
from jepa_wm.features.weights import Size, load_encoder, load_predictor, take_plain_frames
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.jepa import JEPA

PARTS = ("encoder", "target", "predictor")  # what goes on; what regularises begins anew


def start_at(model: JEPA, path: str | Path) -> None:
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
                f"{path}: no run folder with a checkpoint of pretraining, and has no "
                f"{' or '.join(IN_FOLDERS)}; name another as start"
            )
        weights, _ = load_checkpoint(newest)
        source = str(newest)
    else:
        weights, source = _released(path, model), str(path)
    for part in PARTS:
        of_part = {}
        for name, value in weights.items():
            if name.startswith(f"{part}."):
                of_part[name.removeprefix(f"{part}.")] = value
        load_strict(getattr(model, part), of_part, source=f"{source}: {part}")


def _released(path: Path, model: JEPA) -> dict[str, Tensor]:
    """The weights of a released pretraining file under our names, for frames in -1..1."""
    encoder, jepa = model.encoder.settings, model.settings
    image_size = model.encoder.grid * encoder.patch_size
    size = Size(image_size, encoder.num_heads, predictor_heads=jepa.num_heads)
    if jepa.target_levels != 1:
        raise UserError(
            f"{path}: its predictor predicts tokens of the last level; set jepa.target_levels=1"
        )
    weights: dict[str, Tensor] = {}
    for part, released in (("encoder", "encoder"), ("target", "target_encoder")):
        # In a file without targets these begin where the encoder is.
        named = released if released in read_parts(path) else "encoder"
        loaded = take_plain_frames(load_encoder(path, size, part=named))
        _check_same(encoder, loaded.settings, path)
        weights |= {f"{part}.{name}": value for name, value in loaded.state_dict().items()}
    predictor = load_predictor(path, size).state_dict()
    count = len(jepa.masks)
    if len(predictor["mask_tokens"]) < count:
        raise UserError(
            f"{path}: has {len(predictor['mask_tokens'])} mask tokens for {count} jepa.masks"
        )
    # The released models have some that are never used.
    predictor["mask_tokens"] = predictor["mask_tokens"][:count]
    return weights | {f"predictor.{name}": value for name, value in predictor.items()}


def _check_same(asked: EncoderSettings, released: EncoderSettings, path: Path) -> None:
    """UserError where a released encoder is another than the config's; `locality` is only an
    initial value."""
    differing = [
        f"{key} {value}"
        for key, value in released.model_dump().items()
        if value != getattr(asked, key) and key != "locality"
    ]
    if differing:
        raise UserError(f"{path}: is a model with {', '.join(differing)}; set encoder so")
