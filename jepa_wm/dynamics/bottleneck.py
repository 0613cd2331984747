"""A label-free summary of frozen tokens: a few slots that keep what actions change, and what changes their effect.

B samples, n frozen tokens of width E, N slots of width D, A action numbers.
"""

from __future__ import annotations

from torch import Tensor, nn

from jepa_wm.core.schema import Bottleneck
from jepa_wm.encode.pool import AttentivePool


class Slots(nn.Module):
    """An attentive pool over a frame's tokens, its output cut into N slots of width D."""

    def __init__(self, tokens: int, token_width: int, settings: Bottleneck) -> None:
        super().__init__()
        self.shape = (settings.slots, settings.width)
        self.pool = AttentivePool(tokens, token_width, settings.slots * settings.width, queries=settings.queries)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., N, D] in fp32 from frozen tokens [..., n, E]."""
        lead = tokens.shape[:-2]
        return self.pool(tokens.reshape(-1, *tokens.shape[-2:])).float().view(*lead, *self.shape)
