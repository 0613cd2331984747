"""What `jepa-wm bench train` measures: sizes, a fresh model of a size with clips and masks, and
its operations.

B clips, T frames, C channels, S side in px, K context tokens, M target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.models.jepa import JEPA
from jepa_wm.models.masks import Masked
from jepa_wm.models.rope import Rope
from jepa_wm.models.settings import BlockMask, EncoderSettings, JepaSettings

# V-JEPA's two masks
LONG, SHORT = BlockMask(num_blocks=2, spatial_scale=(0.7, 0.7)), BlockMask()


@dataclass(frozen=True)
class Case:
    """What is measured."""

    width: int = 192
    depth: int = 12
    num_heads: int = 3
    predictor_width: int = 96
    predictor_depth: int = 6
    predictor_heads: int = 3
    frames: int = 16
    tubelet_size: int = 2
    side: int = 64  # px
    patch_size: int = 8
    batch: int = 8
    repeats: int = 5
    rope: Rope = "rotation"


QUICK = Case(
    width=32, depth=1, num_heads=1, predictor_width=32, predictor_depth=1, predictor_heads=1, frames=4, side=32, batch=4,
    repeats=1,
)  # fmt: skip
LARGE = Case(  # V-JEPA 2's ViT-L/16
    width=1024, depth=24, num_heads=16, predictor_width=384, predictor_depth=12, predictor_heads=12, side=256, patch_size=16,
    batch=32, repeats=8, rope="vjepa2",
)  # fmt: skip


def fresh(case: Case) -> tuple[JEPA, Tensor, list[Masked]]:
    """A model with its targets as V-JEPA has them, uint8 frames [B, T, S, S, C] and masks, on the
    CPU."""
    torch.manual_seed(0)
    encode = EncoderSettings(patch_size=case.patch_size, tubelet_size=case.tubelet_size, width=case.width, depth=case.depth,
                    num_heads=case.num_heads,
                    attention="clip", locality=0.0, rope=case.rope)  # fmt: skip
    predict = JepaSettings(width=case.predictor_width, depth=case.predictor_depth, num_heads=case.predictor_heads,
                      masks=(SHORT, LONG), masked_weight=1, center_targets=False, num_distant_frames=0,
                      temporal_contrast=0.0, episode_contrast=0.0,
                      inverse_dynamics=0.0, vicreg=0.0, max_targets=0)  # fmt: skip
    model = JEPA(case.side, encode, predict)
    frames = torch.randint(
        256, (case.batch, case.frames, case.side, case.side, 3), dtype=torch.uint8
    )
    return (
        model,
        frames,
        model.draw_masks(case.batch, case.frames, torch.Generator().manual_seed(0)),
    )


def flops(case: Case, masks: list[Masked]) -> float:
    """Multiplications and additions of the matrix products of a step: a backward pass costs twice
    a forward one."""

    def block(count: int, width: int) -> float:
        return count * (24 * width**2 + 4 * count * width)

    n = case.frames // case.tubelet_size * (case.side // case.patch_size) ** 2
    pixels = 2 * case.tubelet_size * 3 * case.patch_size**2 * case.width
    total = n * pixels + case.depth * block(
        n, case.width
    )  # the target sees all and learns nothing
    for mask in masks:
        k, m = mask.context_ids.shape[1], mask.target_ids.shape[1]
        total += 3 * (k * pixels + case.depth * block(k, case.width))
        total += 3 * (case.predictor_depth * block(k + m, case.predictor_width))
        total += 3 * 2 * case.width * case.predictor_width * (k + m)  # in and out
    return case.batch * total
