"""Second moments of vectors beside those of the next frame, and the directions in which a frame
tells of the next.

n vectors of P numbers."""

from __future__ import annotations

import torch
from torch import Tensor


class LaggedMoments:
    """Sums over vectors and those that follow them a frame later."""

    def __init__(self, size: int) -> None:
        """`size` is P."""
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.double)
        self._outer = torch.zeros(size, size, dtype=torch.double)
        self._square = torch.zeros(size, size, dtype=torch.double)
        self._product = torch.zeros(size, size, dtype=torch.double)

    def add(
        self, vectors: Tensor, now: Tensor, following: Tensor, around: Tensor | None = None
    ) -> None:
        """Vectors [n, P] as they are, what may be told of them [n, P] and of those that follow at
        the same places [n, P]. What follows `around` [n, P] a place, in the mean, is told in the
        stead of these where it is given: what is small moves on."""
        self.count += len(vectors)
        self._sum += vectors.sum(0).cpu().double()
        self._outer += (vectors.T @ vectors).cpu().double()
        self._square += (now.T @ now + following.T @ following).cpu().double() / 2
        self._product += (now.T @ (following if around is None else around)).cpu().double()

    @property
    def mean(self) -> Tensor:
        """[P] of the vectors as they are."""
        return self._sum / self.count

    def spread(self, directions: Tensor) -> Tensor:
        """[K] standard deviations of the vectors as they are along directions [K, P]."""
        covariance = self._outer / self.count - self.mean.outer(self.mean)
        along = directions.double()
        return ((along @ covariance) * along).sum(1).clamp(min=0).sqrt().float()

    @property
    def covariance(self) -> Tensor:
        """[P, P] of what may be told."""
        return self._square / self.count

    def whitening(self) -> Tensor:
        """[P, P] directions as columns, by falling variance, each over its standard deviation and
        that of the median one, so that noise is not blown up."""
        variance, directions = torch.linalg.eigh(self.covariance)
        scaled = directions / (variance + variance.median()).sqrt().clamp(min=1e-9)
        return scaled.flip(1)

    def predictable(self, floor: float) -> tuple[Tensor, Tensor]:
        """(products [P] of the directions now and following, rising; [P, P] the directions as
        columns): whitened, but for a variance of `floor` that is added to each, and turned so that
        none tells of another (temporal ICA: Molgedey and Schuster, 1994). Products of one place
        and floor 0 are correlations."""
        variance, directions = torch.linalg.eigh(self.covariance)
        white = directions / (variance + floor).sqrt()
        lagged = self._product / self.count
        products, turn = torch.linalg.eigh(white.T @ (lagged + lagged.T) / 2 @ white)
        return products, white @ turn
