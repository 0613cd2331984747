"""Imagining: one step, teacher-forced steps, and a free unroll with a key/value cache, for
training and for search.

B batch, S candidates, T frames, C context frames, H horizon, N tokens a frame, D latent width, A
action numbers, P model width, W window."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_wm.core.precision import autocast
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.fast_rollout import FastRollout, Weights
from jepa_wm.models.mixture import MixtureHead, Noise
from jepa_wm.models.threads import side_by_side

# Tokens computed together on a CPU. Fewer read every weight too often from slow memory, more push
# the tokens out of the cache; between 512 and 4096 the time differs by a few per cent.
TOKENS_AT_ONCE = 1024
# On a GPU this many keep all of it busy; more would only take more memory.
TOKENS_ON_GPU = 2**16


def one_step(model: Dynamics, latent: Tensor, action: Tensor) -> Tensor:
    """[B, N, D] one frame after latent [B, N, D] under action [B, A]."""
    return model(latent[:, None], action[:, None])[:, 0]


def teacher_forced(model: Dynamics, latents: Tensor, actions: Tensor) -> Tensor:
    """[B, T, N, D]: entry t is the guess of frame t + 1 from the true frames up to t and actions
    [B, T, A]."""
    return model(latents, actions)


def unroll(model: Dynamics, context: Tensor, past: Tensor, actions: Tensor) -> Tensor:
    """[B, H, N, D] imagined frames after context [B, C, N, D], with past actions [B, C-1, A] and
    actions [B, H, A]."""
    return unroll_candidates(model, context, past, actions[:, None])[:, 0]


def unroll_candidates(
    model: Dynamics,
    context: Tensor,
    past: Tensor,
    actions: Tensor,
    *,
    truncate: int = 0,
    noise: Noise | None = None,
) -> Tensor:
    """[B, S, H, N, D] futures of S candidate plans [B, S, H, A], with gradients where they are
    enabled.

    The context is computed once and shared by all. `truncate` > 0 cuts the gradient between frames
    every so many steps: a frame then blames only the actions since the last cut. `noise` is that
    of stochastic dynamics; without it each step takes the likeliest component. Raises
    ValueError for a horizon of 0 or an action width that the model was not trained with."""
    _check(model, actions)
    b, s, horizon, _ = actions.shape
    seen = context.shape[1] - 1
    cache = [layer.repeat(s) for layer in model.cache_of(context[:, :-1], past)]
    latent = context[:, -1:].repeat_interleave(s, 0)  # [B*S, 1, N, D]
    steps = actions.flatten(0, 1)  # [B*S, H, A]
    frames = []
    for h in range(horizon):
        if truncate and h and h % truncate == 0:
            latent = latent.detach()
            for layer in cache:
                assert layer.keys is not None and layer.values is not None
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        latent = model(
            latent,
            steps[:, h : h + 1],
            cache=cache,
            start=seen + h,
            noise=None if noise is None else noise.at(h),
        )
        frames.append(latent)
    return torch.cat(frames, 1).unflatten(0, (b, s))


@torch.no_grad()
def imagine_candidates(
    model: Dynamics, context: Tensor, past: Tensor, actions: Tensor, *, precision: str = "fp32", at_once: int = 0,
    noise: Noise | None = None,
) -> Tensor:  # fmt: skip
    """`unroll_candidates` for search, [B, S, H, N, D] in fp32: no gradients and, step for step, no
    fresh memory.

    Up to `at_once` plans are computed together; 0: as many as suit the device. On a CPU such
    pieces run side by side, a thread each. The result depends on neither but for rounding. Raises
    as `unroll_candidates`."""
    _check(model, actions)
    b, s, horizon, _ = actions.shape
    seen = context.shape[1] - 1
    with autocast(context.device, precision):
        cache = model.cache_of(context[:, :-1], past)
    weights, steps = Weights.of(model, precision), actions.flatten(0, 1)  # [B*S, H, A]
    samples = torch.arange(b * s, device=context.device) // s
    frames = torch.empty(b * s, horizon, *context.shape[2:], device=context.device)

    def imagine(some: slice) -> None:
        stepper = FastRollout(weights, some.stop - some.start, frames=seen + horizon)
        stepper.remember(cache, samples[some], seen=seen)
        latent = context[samples[some], -1]
        for h in range(horizon):
            latent = stepper.step(
                latent, steps[some, h], time=seen + h, noise=None if noise is None else noise.at(h)
            )
            frames[some, h] = latent

    pieces = _pieces(b * s, model.tokens, context.device, at_once)
    if context.device.type == "cpu":
        side_by_side(imagine, pieces)
    else:  # one after another: each fills the device, and its memory is the next one's
        for some in pieces:
            imagine(some)
    return frames.unflatten(0, (b, s))


def _pieces(plans: int, tokens: int, device: torch.device, at_once: int) -> list[slice]:
    """Slices of the plans, of nearly equal size."""
    if not at_once:
        at_once = max(1, (TOKENS_AT_ONCE if device.type == "cpu" else TOKENS_ON_GPU) // tokens)
    count = -(-plans // at_once)
    if (
        device.type == "cpu" and plans * tokens >= TOKENS_AT_ONCE // 2
    ):  # else the work is too little to share
        threads = torch.get_num_threads()
        count = min(plans, -(-count // threads) * threads)
    return [slice(plans * i // count, plans * (i + 1) // count) for i in range(count)]


def plan_bytes(model: Dynamics, horizon: int, *, gradients: bool = False) -> int:
    """Bytes that imagining one plan takes at most, its latents and three more of their size for an
    objective included.

    An estimate from shapes, on the safe side: it counts the memory of the context and all working
    memory for every plan, though plans of one episode share the former and a CPU has the latter
    for a few plans only."""
    n, width, window, depth = (
        model.tokens,
        model.embed.out_features,
        model.context_frames,
        len(model.blocks),
    )
    heads = width // model.head_dim
    latents = (
        4 * horizon * n * model.latent_width
    )  # the futures, then differences and products of them
    scores = heads * n * window * n  # attention of one layer
    if gradients:
        kept = (
            24 + 4 * window
        ) * width * n + 3 * scores  # what one layer of one step leaves for the way back
        return 4 * (2 * latents + horizon * depth * kept)
    memory = (
        2 * depth * (2 * window - 1) * width * n
    )  # the ring, and the context it is filled from
    working = (
        16 + 14 * (window - 1)
    ) * width * n + 3 * scores  # of one layer, for a frame and for the context
    if isinstance(model.head, MixtureHead):
        working += 8 * model.head.mixture_components * n * model.latent_width
    return 4 * (latents + memory + working)


def fixed_bytes(model: Dynamics, *, precision: str) -> int:
    """Bytes that imagining takes whatever the number of plans: the weights in bf16, twice, while
    they change hands."""
    return 0 if precision == "fp32" else 2 * 2 * sum(p.numel() for p in model.parameters())


def _check(model: Dynamics, actions: Tensor) -> None:
    if actions.shape[2] == 0 or actions.shape[3] != model.action_size:
        raise ValueError(
            f"actions of shape {tuple(actions.shape)}: the horizon must be at least 1 and the model takes "
            f"{model.action_size} numbers a step (action size x frameskip)"
        )
