"""The state token: one token of a frame, read off its frozen tokens by a pool that is trained
together with the dynamics.

B windows, T frames, R distant frames, n frozen tokens of width E, M dynamic and L static numbers,
P pairs of frames, S directions, Q points of a characteristic function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather
from jepa_wm.models.latent import CompactLatent
from jepa_wm.models.latent_settings import StateTokenSettings
from jepa_wm.models.pooling import GridPool

DIRECTIONS = 64  # that SIGReg looks along, others every step
SHARE = 0.1  # weight of the numbers themselves beside their differences, which bounds them
POINTS, REACH = 17, 4.0  # at which it compares characteristic functions, from 0 on


class StateTokenLatent(CompactLatent):
    """One token of M dynamic numbers, learned by predicting it: the same method whatever actions
    do, as no number of it has to be a place. Actions supervise it through the dynamics alone.

    It is kept from collapsing by SIGReg on how two frames of an episode differ. On the numbers
    themselves it would be met by functions of what is constant in an episode, which are the
    easiest to predict, and what moves would not be seen. Static numbers, where there are any, are
    whatever else tells the dynamics where actions lead. Sources: PLDM (Sobal et al., 2025), LeWM
    (Maes et al., 2026), here on frozen features."""

    joint = True
    places: FramePool
    static: FramePool | None

    def __init__(self, tokens: int, token_width: int, settings: StateTokenSettings) -> None:
        super().__init__(settings.dim, settings.static_dim)
        self.weight, self.static_frames = settings.sigreg, settings.static_frames
        self.places = FramePool(tokens, token_width, settings.dim)
        if settings.static_dim:
            self.static = FramePool(tokens, token_width, settings.static_dim, as_token=True)

    def joint_losses(
        self, latents: Tensor, distant: Tensor, apart: Tensor, step: int
    ) -> dict[str, Tensor]:
        # The first and the last frame of a window, each beside a distant one.
        # Proprioception is not learned, and cannot collapse.
        ends = latents[:, [0, -1], 0, : self.visual_dim]  # [B, 2, M']
        gaps = ends - distant[:, :, 0, : self.visual_dim]
        gaps = all_gather(gaps.flatten(0, 1)) / 2**0.5  # [P, M']
        # A frame beside itself tells nothing.
        differing = gaps[all_gather(apart.flatten().float()) > 0]
        whole = all_gather(ends.flatten(0, 1))
        return {"sigreg": self.weight * (sigreg(differing, step) + SHARE * sigreg(whole, step))}


class FramePool(nn.Module):
    """A grid pool of frames in any number of leading dimensions."""

    def __init__(self, tokens: int, width: int, outputs: int, *, as_token: bool = False) -> None:
        super().__init__()
        self.pool, self.as_token = GridPool(tokens, width, outputs), as_token

    def forward(self, frames: Tensor) -> Tensor:
        """[..., M] of tokens [..., n, E]; [..., 1, M] as a token."""
        pooled = self.pool(frames.reshape(-1, *frames.shape[-2:]))
        numbers: Tensor = pooled.view(*frames.shape[:-2], -1)
        return numbers[..., None, :] if self.as_token else numbers


def sigreg(states: Tensor, step: int) -> Tensor:
    """How far states [P, M] are from standard normal ones: the Epps-Pulley statistic along random
    directions, which depend on the step alone, as their mean and a share of the number of
    states, so that no weight depends on the batch; 0 of no states.

    Source: LeJEPA (Balestriero and LeCun, 2025)."""
    if not len(states):
        return states.sum()
    generator = torch.Generator().manual_seed(step)
    directions = torch.randn(states.shape[-1], DIRECTIONS, generator=generator)
    along = states.float() @ F.normalize(directions, dim=0).to(states.device)  # [P, S]
    points = torch.linspace(0, REACH, POINTS, device=states.device)  # [Q]
    normal = (-points.square() / 2).exp()  # its characteristic function, and the weight
    angles = along[..., None] * points
    real, imaginary = angles.cos().mean(0), angles.sin().mean(0)  # [S, Q]
    apart = (real - normal).square() + imaginary.square()
    # Both sides of 0 are the same.
    return 2 * torch.trapezoid(apart * normal, points, dim=-1).mean()
