"""What the predictor has to predict, of the target encoder's tokens.

B clips, T frames (time steps, where a tubelet is longer than one), N tokens a frame, D width, L
levels, G kinds of target, R distant frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_wm.core.distributed import all_mean
from jepa_wm.models.encoder_settings import JepaSettings

FLOOR = 0.01  # power, beside the mean of all, below which a direction is not raised to the others


def latent_targets(
    tokens: Tensor,
    settings: JepaSettings,
    distant: Tensor | None = None,
    alone: Tensor | None = None,
) -> Tensor:
    """[B, T*N, G*L*D] from tokens [B, T, N, L*D] of clips and [B, R, N, L*D] of distant frames:
    LayerNorm of each level without parameters (V-JEPA); for motion less the mean over the distant
    frames, which is what lasts, each frame of the clip as it is `alone` [B, T, N, L*D] (not given:
    as in the clip); centred over the batch and scaled to unit mean square, and whitened, if asked.

    Raises ValueError for motion without distant frames."""
    y, targets = _normed(tokens, settings.target_levels), []
    for kind in kinds_of(settings):
        of_kind = y
        if kind == "motion":
            if distant is None:
                raise ValueError("targets of motion are told from distant frames: give them")
            seen = y if alone is None else _normed(alone, settings.target_levels)
            of_kind = seen - _normed(distant, settings.target_levels).mean(1, keepdim=True)
        if settings.center_targets:
            of_kind = of_kind - all_mean(of_kind.mean((0, 1), keepdim=True))
            # Features that are exactly constant differ by rounding noise, about 1e-7: without a
            # floor it would be a target.
            of_kind = of_kind / all_mean(of_kind.square().mean()).sqrt().clamp(min=1e-3)
        if settings.whiten_targets:
            of_kind = whitened(of_kind)
        targets.append(of_kind)
    return torch.cat(targets, -1).flatten(1, 2)


def kinds_of(settings: JepaSettings) -> list[str]:
    """The G kinds of target in the order in which a target token has them."""
    return [kind for kind in ("tokens", "motion") if kind in settings.target_kinds]


def _normed(tokens: Tensor, levels: int) -> Tensor:
    by_level = tokens.unflatten(-1, (levels, -1))
    return F.layer_norm(by_level, by_level.shape[-1:]).flatten(-2)


def whitened(tokens: Tensor) -> Tensor:
    """Centred tokens [..., D] turned so that every direction has the same power, but for those
    that hardly have any: an encoder cannot do well by putting all into the one direction that is
    predicted best, such as whether something is there instead of where (W-MSE: Ermolov et al.,
    2021). The covariance is that of the whole batch, and an eigenvalue problem of D x D a step."""
    with torch.autocast(tokens.device.type, enabled=False):
        rows = tokens.flatten(0, -2)
        covariance = all_mean(rows.T @ rows / len(rows))
        power, directions = torch.linalg.eigh(covariance.double())
        mean = power.mean()
        # A batch without any difference stays as it is.
        gain = (mean.clamp(min=1e-6) / (power.clamp(min=0) + FLOOR * mean + 1e-6)).sqrt()
        return tokens @ (directions * gain @ directions.T).to(tokens.dtype)
