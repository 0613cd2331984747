"""Action-conditioned dynamics, z(t+1) ~ p(z(t+1) | z(t), a(t)): what all of them have in common.

B batch, S plan samples, H horizon, T frames, C context frames, N tokens a frame, D latent width, A
action numbers between two frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jepa_wm.core.precision import autocast


class StepNoise(NamedTuple):
    """The noise of a model step, the same for all plans (common random numbers)."""

    choice: Tensor  # [] in 0..1
    normal: Tensor  # [N, D] standard normal


class Noise(NamedTuple):
    """The noise of every step of a future."""

    choice: Tensor  # [H]
    normal: Tensor  # [H, N, D]

    @classmethod
    def seeded(
        cls, seed: int, *, horizon: int, tokens: int, width: int, device: torch.device
    ) -> Noise:
        """The same for the same seed; longer horizons begin with the shorter ones."""
        g = torch.Generator().manual_seed(seed)
        steps = [
            (torch.rand((), generator=g), torch.randn(tokens, width, generator=g))
            for _ in range(horizon)
        ]
        choice, normal = (torch.stack(part).to(device) for part in zip(*steps, strict=True))
        return cls(choice, normal)

    def at(self, step: int) -> StepNoise:
        return StepNoise(self.choice[step], self.normal[step])


class Cache:
    """What dynamics remember of the frames before the latest one; nothing, where they see one."""

    def repeat(self, times: int) -> Cache:
        """The same for `times` plans of each sample, sample-major."""
        return self

    def detach(self) -> None:
        """Cut the gradient here."""


class Dynamics(nn.Module):
    """One model of the dynamics. One's own define `step` and `loss`, and `begin` where it sees
    more than one frame; the rest is made of these, and overridden where it can be faster."""

    stochastic = False  # whether `step` samples by noise
    scales_actions = True  # whether actions come centred and scaled
    longest_horizon = 32  # model steps that rollout errors are measured over, at most
    at_once = 0  # plans of each context that a search computes together; 0: all

    def __init__(self, action_size: int) -> None:
        """`action_size` is A."""
        super().__init__()
        self.action_size = action_size

    # ------------------------------------------------------------------ to be defined

    def begin(self, context: Tensor, past: Tensor) -> Any:
        """The memory (`Cache`) of all frames of context [B, C, N, D] but the last, with the
        actions past [B, C-1, A] between them."""
        return Cache()

    def step(
        self, latents: Tensor, actions: Tensor, cache: Any, noise: StepNoise | None = None
    ) -> Tensor:
        """[B, N, D] the frame after latents [B, N, D], which the cache then remembers too, under
        actions [B, A]. Without noise it is the likeliest."""
        raise NotImplementedError

    def loss(self, latents: Tensor, actions: Tensor, *, rollout: float) -> dict[str, Tensor]:
        """`loss` and its parts for windows of latents [B, T, N, D] and actions [B, T-1, A];
        `rollout` is the weight of what is imagined over several steps."""
        raise NotImplementedError

    def bytes_per_plan(
        self, horizon: int, *, gradients: bool = False, precision: str = "fp32"
    ) -> tuple[int, int]:
        """(bytes that imagining one plan takes at most, bytes that it takes for any number of
        plans), estimated on the safe side."""
        raise NotImplementedError

    def actions_of(self, proprio: Tensor) -> Tensor:
        """[..., S, a] the environment actions that led through proprioception [..., S + 1, P];
        for dynamics whose settings say `acts_by_proprio`."""
        raise NotImplementedError

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The parts that torch.compile makes one by one."""
        return [self]

    # ------------------------------------------------------------------ made of these

    def rollout(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0,
        noise: Noise | None = None,
    ) -> Tensor:  # fmt: skip
        """[B, S, H, N, D] futures of plans [B, S, H, A] after context [B, C, N, D] and past
        [B, C-1, A], with gradients where they are enabled.

        The context is computed once and shared by all. `truncate` > 0 cuts the gradient between
        frames every so many steps: a frame then blames only the actions since the last cut.
        Raises ValueError for a horizon of 0 or an action width that it was not trained with."""
        self.check_plans(actions)
        b, s, horizon, _ = actions.shape
        cache = self.begin(context, past).repeat(s)
        latents = context[:, -1].repeat_interleave(s, 0)  # [B*S, N, D]
        steps = actions.flatten(0, 1)  # [B*S, H, A]
        frames = []
        for h in range(horizon):
            if truncate and h and h % truncate == 0:
                latents = latents.detach()
                cache.detach()
            step_noise = None if noise is None else noise.at(h)
            latents = self.step(latents, steps[:, h], cache, step_noise)
            frames.append(latents)
        return torch.stack(frames, 1).unflatten(0, (b, s))

    def rollout_one(self, context: Tensor, past: Tensor, actions: Tensor) -> Tensor:
        """[B, H, N, D] the future of one plan [B, H, A] for each context, as `rollout`."""
        return self.rollout(context, past, actions[:, None])[:, 0]

    @torch.no_grad()
    def fast_rollout(
        self, context: Tensor, past: Tensor, actions: Tensor, *, precision: str = "fp32",
        at_once: int = 0, noise: Noise | None = None,
    ) -> Tensor:  # fmt: skip
        """`rollout` for search, in fp32 and without gradients. Up to `at_once` plans of each
        context (0: `self.at_once`) are computed together; the result depends on it but for
        rounding."""
        at_once = at_once or self.at_once or actions.shape[1]
        with autocast(context.device, precision):
            pieces = [
                self.rollout(context, past, piece, noise=noise)
                for piece in actions.split(at_once, 1)
            ]
        return torch.cat(pieces, 1).float()

    def check_plans(self, actions: Tensor) -> None:
        """Raises ValueError for plans [B, S, H, A] that cannot be imagined."""
        if actions.shape[2] == 0 or actions.shape[3] != self.action_size:
            raise ValueError(
                f"actions of shape {tuple(actions.shape)}: the horizon must be at least 1 and the "
                f"model takes {self.action_size} numbers a step (action size x frameskip)"
            )
