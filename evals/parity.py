"""`jepa-wm eval parity`: released V-JEPA 2 weights, loaded here, against what the public code
computed with them.

B clips, T frames, N tokens, K context and M target tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.features.weights import Size, load_action_predictor, load_encoder, load_predictor

SIZE_KEYS = {  # field of Size -> key of the metadata
    "image_size": "img_size", "width": "encoder_dim", "depth": "encoder_depth",
    "heads": "encoder_heads", "predictor_heads": "predictor_heads", "action_heads": "ac_heads",
}  # fmt: skip
INPUTS = ("video", "video_one_tubelet", "video_wide", "context_index", "target_index")
AC_INPUTS = ("ac.tokens", "ac.actions", "ac.states")
ENCODER_ENTRIES = {  # output -> the input it is computed of
    "encoder.full": "video",
    "encoder.one_tubelet": "video_one_tubelet",
    "encoder.wide": "video_wide",
}
Entries: TypeAlias = dict[str, Tensor]


def run(*, weights: Path, ac: Path, io: Path) -> dict[str, object]:
    """`max_abs_error` {entry: largest difference} and the number of `entries` compared.

    weights: a pretraining file; ac: a file with the action-conditioned predictor; io: safetensors
    with inputs, the public code's outputs, and the sizes in its metadata. Everything is computed
    in fp32. Raises UserError for a file that does not fit the others, and for an entry in io that
    nothing here computes."""
    sizes, entries = _read(io)
    size = _size(sizes, io)
    compared: dict[str, float] = {}

    # One entry at a time: a computed output is let go before the next is made.
    with torch.no_grad():
        outputs = chain(_encoder(weights, size, entries), _action_predictor(ac, size, entries))
        for name, value in outputs:
            if value.shape != entries[name].shape:
                stored, computed = tuple(entries[name].shape), tuple(value.shape)
                raise UserError(f"{io}: {name} has shape {stored}, computed {computed}")
            compared[name] = (value - entries[name]).abs().max().item()
            print(f"{name}: {compared[name]:.1e}")
    unknown = sorted(set(entries) - set(compared) - {*INPUTS, *AC_INPUTS})
    if unknown:
        raise UserError(
            f"{io}: nothing here computes {', '.join(unknown)}; is the file newer than this "
            "library?"
        )
    return {"max_abs_error": compared, "entries": len(compared)}


def _encoder(weights: Path, size: Size, entries: Entries) -> Iterator[tuple[str, Tensor]]:
    """What encoder and predictor make of the inputs, by name of the entry."""
    encoder = load_encoder(weights, size)
    for entry, clip in ENCODER_ENTRIES.items():
        if entry in entries:
            yield entry, encoder(_clip(entries, clip))
    if "encoder.context" not in entries:
        return
    context_ids = _input(entries, "context_index")  # [B, K]
    yield "encoder.context", encoder(_clip(entries, "video"), context_ids)

    # From the context that the public code computed: a difference there is told apart from one
    # here.
    predictor = load_predictor(weights, size)
    positions = encoder.positions(_clip(entries, "video"))
    context = entries["encoder.context"]
    for kind in range(len(predictor.mask_tokens)):
        entry = f"predictor.mask_token_{kind}"
        if entry in entries:
            target_ids = _input(entries, "target_index")  # [B, M]
            yield entry, predictor(context, positions[context_ids], positions[target_ids], kind)


def _action_predictor(ac: Path, size: Size, entries: Entries) -> Iterator[tuple[str, Tensor]]:
    """What the action-conditioned predictor makes of the inputs, by name of the entry."""
    patch = load_encoder(ac, size).patch_size
    predictor = load_action_predictor(ac, size, patch=patch)
    for entry, frames in (("ac.output", None), ("ac.output_first_step", 1)):
        if entry not in entries:
            continue
        tokens, actions, states = (_input(entries, key) for key in AC_INPUTS)
        tokens = tokens.unflatten(1, (actions.shape[1], -1))  # [B, T, N, D]
        output = predictor(tokens[:, :frames], actions[:, :frames], states[:, :frames])
        yield entry, output.flatten(1, 2)


def _clip(entries: Entries, name: str) -> Tensor:
    """[B, T, C, H, W] of a video [B, C, T, H, W]."""
    return _input(entries, name).transpose(1, 2)


def _input(entries: Entries, name: str) -> Tensor:
    if name not in entries:
        raise UserError(f"the io file has no entry {name!r}, from which others are to be computed")
    return entries[name]


def _read(io: Path) -> tuple[dict[str, str], Entries]:
    """(metadata, tensors)."""
    if not io.is_file():
        raise UserError(
            f"{io}: there is no such file; give the safetensors with inputs and outputs as --io"
        )
    try:
        with safe_open(io, "pt") as file:
            return file.metadata() or {}, load_file(io)
    except SafetensorError as error:
        raise UserError(f"{io}: is no whole safetensors file ({error}); copy it again") from None


def _size(sizes: dict[str, str], io: Path) -> Size:
    missing = [key for key in SIZE_KEYS.values() if not sizes.get(key, "").isdecimal()]
    if missing:
        raise UserError(f"{io}: its metadata tells no number for {', '.join(missing)}")
    if float(sizes.get("layer_norm_eps", 1e-6)) != 1e-6:
        raise UserError(
            f"{io}: layer_norm_eps is {sizes['layer_norm_eps']}, but only 1e-6 is known here"
        )
    return Size(**{ours: int(sizes[theirs]) for ours, theirs in SIZE_KEYS.items()})
