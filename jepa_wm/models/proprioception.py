"""Proprioception: named numbers of a state that a robot has of itself, beside what its picture
shows, in the units in which a latent carries them.

n samples of P numbers in their own units, Z the same with two for each angle, N latent tokens of
width D of which Z numbers, from the M'th on, are proprioception."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_wm.core.scaling import TURN, own_scale

STILL = 1e-4  # rad: an angle that varies by less never varied
MOST = 10.0  # spreads that a number counts as off its mean, where little varied in the data


class Proprioception(nn.Module):
    """Z numbers of every token, the last of its dynamic ones: each of mean 0 and spread 1 over the
    training data, an angle as its cosine and its sine of one unit, so that nothing leaps where it
    does. To join them to every token of a frame is DINO-WM's way (Zhou et al., 2025); here they
    are joined as they are, and the dynamics embed them with the token."""

    centre: Tensor
    scale: Tensor

    def __init__(self, units: Sequence[str], first: int) -> None:
        """Of a number for each of the `units` ("" where none is known), behind the `first` numbers
        of a token, which is M'."""
        super().__init__()
        self.size, self.first = len(units), first
        self.turns = [TURN.get(unit) for unit in units]
        self.count = len(units) + sum(turn is not None for turn in self.turns)  # Z
        self.register_buffer("centre", torch.zeros(self.count))
        self.register_buffer("scale", torch.ones(self.count))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the units from training frames' [n, P]; a number that never varied is 0. The cosine
        and the sine of an angle share one, or the one that hardly varies would count most."""
        numbers = self._unrolled(values.double())
        self.centre.copy_(numbers.mean(0))
        self.scale.copy_(own_scale(numbers))
        first = 0
        for turn in self.turns:
            if turn is not None:
                both = numbers[:, first : first + 2].var(0, correction=0).mean().sqrt()
                self.scale[first : first + 2] = both if both > STILL else 1.0
            first += 1 if turn is None else 2

    def forward(self, values: Tensor) -> Tensor:
        """[..., Z] of values [..., P] in their own units, at most MOST spreads from the mean."""
        numbers: Tensor = (self._unrolled(values.to(self.centre)) - self.centre) / self.scale
        return numbers.clamp(-MOST, MOST)

    def joined(self, latents: Tensor, values: Tensor | None) -> Tensor:
        """[..., N, *] latents [..., N, *] without these numbers, with those of values [..., P];
        NaN where there are none, as of a goal that is an image alone."""
        if values is None:
            numbers = latents.new_full((*latents.shape[:-2], self.count), torch.nan)
        else:
            numbers = self(values)
        each = numbers[..., None, :].expand(*latents.shape[:-1], -1)
        seen, static = latents[..., : self.first], latents[..., self.first :]
        return torch.cat([seen, each.to(latents), static], -1)

    def of(self, latents: Tensor) -> Tensor:
        """[..., Z] of latents [..., N, D]: the mean of what their tokens say."""
        return latents[..., self.first : self.first + self.count].mean(-2)

    @property
    def spread(self) -> Tensor:
        """[Z] what differences are divided by, so that the mean of their squares over Z is that
        over the numbers that were named: an angle's two count as one."""
        shares = [1.0 if turn is None else 2.0 for turn in self.turns]
        each = [share for share in shares for _ in range(int(share))]
        return self.scale.new_tensor(each).mul(self.size / self.count).sqrt()

    def left_out(self, latents: Tensor) -> Tensor:
        """[..., N, D - Z] what else there is of latents [..., N, D]."""
        rest = latents[..., self.first + self.count :]
        return torch.cat([latents[..., : self.first], rest], -1)

    def check_known(self, context: Tensor) -> None:
        """Raises ValueError for frames [..., N, D] without it, from which nothing is imagined."""
        if bool(self.of(context).isnan().any()):
            raise ValueError(
                "frames without proprioception tell no future of a model that was trained with "
                f"it: encode them with the {self.size} numbers that latent.proprio names"
            )

    def _unrolled(self, values: Tensor) -> Tensor:
        parts = []
        for number, turn in zip(values.unbind(-1), self.turns, strict=True):
            if turn is None:
                parts.append(number)
            else:
                angle = number * (2 * torch.pi / turn)
                parts += [angle.cos(), angle.sin()]
        return torch.stack(parts, -1)
