"""The latent world model: what summarises frozen tokens, what moves the summary, and how far two
summaries are apart.

B batch, T frames, n frozen tokens of width E, N latent tokens of width D, A action numbers between
two frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.action_units import ActionStatistics
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.dynamics_losses import forced_loss, rollout_loss
from jepa_wm.models.factored_latent import Components, FactoredLatent
from jepa_wm.models.settings import WorldModelSettings
from jepa_wm.models.temporal_distance import TemporalDistance

MANY = 8192  # numbers of a latent above which distance and heads read its principal components
COMPONENTS = 512  # of a latent of many tokens


class LatentModel(nn.Module):
    """A summary (or all frozen tokens), dynamics and temporal distance: all that is trained on
    frozen features."""

    action_centre: Tensor
    action_scale: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self, tokens: int, token_width: int, action_size: int, settings: WorldModelSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = {"tokens": tokens, "token_width": token_width, "action_size": action_size}
        b = settings.latent
        self.summary = FactoredLatent(tokens, token_width, b) if b else None
        count, width = (1, b.dynamic_dim + b.static_dim) if b else (tokens, token_width)
        self.block = action_size * settings.frameskip
        members = [
            Dynamics(
                tokens=count, latent_width=width, action_size=self.block, width=settings.width, depth=settings.depth,
                num_heads=settings.num_heads, context_frames=settings.context_frames, mixture_components=settings.mixture_components,
                static_dim=b.static_dim if b else 0,
            )
            for _ in range(settings.ensemble_size)
        ]  # fmt: skip
        self.dynamics, self.others = members[0], nn.ModuleList(members[1:])
        self.numbers = count * width  # of a latent
        self.components = (
            Components(self.numbers, COMPONENTS) if b is None and self.numbers > MANY else None
        )
        self.flat_width = self.numbers if self.components is None else COMPONENTS
        self.distance = TemporalDistance(self.flat_width, settings.distance)
        self.register_buffer("action_centre", torch.zeros(action_size))
        self.register_buffer("action_scale", torch.ones(action_size))
        self.register_buffer("action_low", torch.full((action_size,), -torch.inf))
        self.register_buffer("action_high", torch.full((action_size,), torch.inf))

    @property
    def members(self) -> list[Dynamics]:
        """The models of the ensemble, the first one included."""
        return [self.dynamics, *(model for model in self.others if isinstance(model, Dynamics))]

    def summarise(self, tokens: Tensor) -> Tensor:
        """Latents [..., N, D] in fp32 of frozen tokens [..., n, E]."""
        return tokens.float() if self.summary is None else self.summary(tokens)

    def flat(self, latents: Tensor) -> Tensor:
        """[..., F] what the distance and heads read of latents [..., N, D]: all their numbers end to
        end, or where these are many their principal components, which keep where in the picture
        something is."""
        return latents.flatten(-2) if self.components is None else self.components(latents)

    @property
    def dynamic_dim(self) -> int:
        """How many numbers of a latent token come first and are moved by actions; the others
        last."""
        return self.dynamics.latent_width - self.dynamics.static_dim

    def static(self, latents: Tensor) -> Tensor:
        """[..., N, L] the numbers of latents [..., N, D] that stay as they are in an episode; L
        may be 0."""
        return latents[..., self.dynamic_dim :]

    def with_static(self, latents: Tensor, static: Tensor) -> Tensor:
        """[..., N, D] the latents with these static numbers [..., N, L] (they broadcast) in place
        of their own."""
        dynamic = latents[..., : self.dynamic_dim]
        return torch.cat([dynamic, static.expand(*dynamic.shape[:-1], -1)], -1)

    def shifted(self, latents: Tensor, by: float) -> list[Tensor]:
        """Latents [..., N, D] with one dynamic number of every token more or less by so much: two
        for each of them."""
        shifts = by * torch.eye(latents.shape[-1], device=latents.device)[: self.dynamic_dim]
        return [latents + sign * shift for shift in shifts for sign in (1, -1)]

    def scaled(self, actions: Tensor) -> Tensor:
        """Action blocks [..., A] in the units the dynamics work in: each action number cut to
        where the data reach, less its centre, divided by its scale. One that never varied is 0."""
        low, high, centre, scale = (
            part.repeat(self.settings.frameskip)
            for part in (self.action_low, self.action_high, self.action_centre, self.action_scale)
        )
        return (actions.clamp(low, high) - centre) / scale

    def unscaled(self, actions: Tensor) -> Tensor:
        """The inverse of `scaled`; a number that never varied has the value it had."""
        scale = torch.where(self.action_low < self.action_high, self.action_scale, 0)
        return actions * scale.repeat(self.settings.frameskip) + self.action_centre.repeat(
            self.settings.frameskip
        )

    @torch.no_grad()
    def take_units(self, actions: np.ndarray) -> dict[int, str]:
        """Take the units of the action numbers from the data's [N, a]; returns {number: what it
        was} of those that never or hardly varied."""
        found = ActionStatistics.of(actions)
        for name in ("centre", "scale", "low", "high"):
            getattr(self, f"action_{name}").copy_(torch.from_numpy(getattr(found, name)))
        return {
            i: f"{'always' if found.low[i] == found.high[i] else 'nearly always'} {found.centre[i]:g}"
            for i in np.nonzero(found.steady)[0].tolist()
        }

    def dynamics_losses(
        self,
        latents: Tensor,
        actions: Tensor,
        *,
        rollout: float,
        context: int = 1,
        member: int = 0,
    ) -> dict[str, Tensor]:
        """Losses for latents [B, T, N, D] that no longer change and the raw action blocks between
        them [B, T-1, A].

        `forced`: each next latent from the true ones before it; `rollout`: a window imagined from
        its first `context` frames. Both are squared errors, or negative log likelihoods a number
        where the dynamics have outcomes."""
        model, acts = self.members[member], self.scaled(actions)
        losses = {"forced": forced_loss(model, latents, acts)}
        losses["loss"] = losses["forced"]
        if rollout and acts.shape[1] > context:
            losses["rollout"] = rollout_loss(model, latents, acts, context=context)
            losses["loss"] = losses["forced"] + rollout * losses["rollout"]
        return losses
