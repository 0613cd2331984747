"""All frozen tokens of a frame as its latent, or the means of neighbours.

n frozen tokens of width D, N latent tokens."""

from __future__ import annotations

import math

from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.models.latent import Latent


class TokenLatent(Latent):
    """All frozen tokens of a frame, or the means of `merge` x `merge` neighbours, all of them
    dynamic.

    A mean keeps the width, so that dynamics sized for a token shrink with their number. Side by
    side in one token nothing would be lost, but dynamics sized for four times the width cost more
    than those of four times the tokens."""

    decodes = True

    def __init__(self, tokens: int, token_width: int, merge: int = 1) -> None:
        """Raises UserError where `merge` does not divide the grid. Frames are square, and so is
        their grid: a number of tokens that is no square is none's."""
        side = math.isqrt(tokens)
        if merge > 1 and side**2 != tokens:
            raise UserError(
                f"latent.merge {merge} joins neighbours in a square grid, and the encoder gives "
                f"{tokens} tokens a frame, which are none; set latent.merge=1"
            )
        if side % merge:
            divisors = [str(m) for m in range(1, side + 1) if side % m == 0]
            raise UserError(
                f"latent.merge {merge} does not divide the {side} x {side} tokens of a frame; set "
                f"it to one of {', '.join(divisors)}, or data.image_size to another multiple of "
                "the encoder's patch"
            )
        super().__init__(tokens // merge**2, token_width)
        self.merge, self.side, self.lossless = merge, side // merge, merge == 1

    def compress(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., N, D] of frozen tokens [..., n, D]."""
        tokens = tokens.float()
        if self.merge == 1:
            return tokens
        grid = tokens.unflatten(-2, (self.side, self.merge, self.side, self.merge))
        return grid.mean((-4, -2)).flatten(-3, -2)

    def decoded(self, latents: Tensor) -> Tensor:
        """[..., n, D] every frozen token as its mean."""
        visual = self.visual(latents)
        if self.merge == 1:
            return visual
        grid = visual.unflatten(-2, (self.side, self.side))
        rows = grid.repeat_interleave(self.merge, -3)
        return rows.repeat_interleave(self.merge, -2).flatten(-3, -2)

    def dynamic(self, compressed: Tensor) -> Tensor:
        return compressed
