"""V-JEPA 2's action-conditioned predictor as dynamics: the next frame's tokens from tokens,
actions and poses of a robot's hand so far (Assran et al., 2025).

B batch, T frames, n = grid * grid tokens a frame of width D, N = n + 1 with the pose as one more,
P model width, A action and S state numbers a frame, E numbers that place the camera, C = 2 or 3
tokens that stand before a frame's own. Poses and actions [..., 7] are those of `models.poses`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.dynamics import Dynamics, Noise, StepNoise
from jepa_wm.models.latent import Latent
from jepa_wm.models.poses import POSE, change_of, difference, integrate
from jepa_wm.models.rope import Rope, grid_positions, rope_tables
from jepa_wm.models.world_model_settings import VJEPA2ACSettings

AT_ONCE = 64  # plans of an episode that are imagined together


class RobotTokens(Latent):
    """All tokens of a frame, LayerNorm'd without parameters, and one more that holds the pose. A
    goal image has no pose (NaN): from a frame without one nothing can be imagined."""

    proprio_size = POSE
    lossless = True
    reads_raw = True
    mean: Tensor
    scale: Tensor

    def __init__(self, tokens: int, token_width: int) -> None:
        super().__init__(tokens + 1, token_width)
        self.register_buffer("mean", torch.zeros(tokens, token_width))
        self.register_buffer("scale", torch.ones(token_width))

    def undo_standardising(self, mean: Tensor, scale: Tensor) -> None:
        """The predictor reads tokens as the encoder gives them."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def compress(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., n + 1, D] of standardised tokens [..., n, D] and poses [..., 7]."""
        tokens = normalised(tokens.float() * self.scale + self.mean)
        if proprio is None:
            proprio = tokens.new_full((*tokens.shape[:-2], POSE), torch.nan)
        return with_pose(tokens, proprio.to(tokens))

    def dynamic(self, compressed: Tensor) -> Tensor:
        return compressed

    def compared(self, latents: Tensor) -> Tensor:
        """[..., n, D] the tokens alone."""
        return latents[..., :-1, :]


@dataclass
class FramesSoFar:
    """The memory of the predictor, which sees every frame so far."""

    tokens: Tensor  # [B, T, n, D]
    poses: Tensor  # [B, T, 7]
    actions: Tensor  # [B, T, 7] taken there

    def repeat(self, times: int) -> FramesSoFar:
        parts = self.tokens, self.poses, self.actions
        return FramesSoFar(*(part.repeat_interleave(times, 0) for part in parts))

    def detach(self) -> None:
        self.tokens, self.poses = self.tokens.detach(), self.poses.detach()

    def append(self, tokens: Tensor, pose: Tensor, action: Tensor) -> None:
        """One more frame [B, n, D], its pose and the action taken there, [B, 7] each."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)
        self.poses = torch.cat([self.poses, pose[:, None]], 1)
        self.actions = torch.cat([self.actions, action[:, None]], 1)


class VJEPA2AC(Dynamics):
    """The predictor on `RobotTokens`. What was done between the frames of a context is how their
    poses differ; where the hand is later follows from the actions alone."""

    scales_actions = False
    longest_horizon = 8

    def __init__(
        self, predictor: ActionPredictor, *, frameskip: int = 1, context_frames: int = 1
    ) -> None:
        super().__init__(POSE * frameskip)
        self.predictor, self.context_frames = predictor, context_frames

    @classmethod
    def of(cls, latent: Latent, settings: VJEPA2ACSettings) -> VJEPA2AC:
        """Fresh dynamics of the settings' size."""
        grid = round((latent.tokens - 1) ** 0.5)
        sizes = ActionPredictorSizes(
            encoder_width=latent.dynamic_dim, grid=grid, width=settings.width,
            depth=settings.depth, num_heads=settings.num_heads,
        )  # fmt: skip
        predictor = ActionPredictor(sizes)
        # Of the released layout; no camera is placed here.
        predictor.extrinsics.requires_grad_(False)
        return cls(predictor, frameskip=settings.frameskip, context_frames=settings.context_frames)

    def begin(self, context: Tensor, past: Tensor) -> FramesSoFar:
        """Raises ValueError for a context without poses."""
        tokens, poses = parted(context)
        if bool(poses.isnan().any()):
            raise ValueError(
                "frames without a pose tell no future: encode them with the poses of the robot's "
                "hand"
            )
        return FramesSoFar(tokens[:, :-1], poses[:, :-1], difference(poses[:, :-1], poses[:, 1:]))

    def step(
        self, latents: Tensor, actions: Tensor, cache: FramesSoFar, noise: StepNoise | None = None
    ) -> Tensor:
        tokens, pose = parted(latents)
        with torch.autocast(tokens.device.type, enabled=False):  # poses are exact
            change = change_of(actions)
            pose_after = integrate(pose, change)
        cache.append(tokens, pose, change)
        after = normalised(self.predictor(cache.tokens, cache.actions, cache.poses)[:, -1])
        return with_pose(after.to(tokens), pose_after)

    def loss(self, latents: Tensor, actions: Tensor, *, rollout: float) -> dict[str, Tensor]:
        """Mean absolute errors of tokens. `forced`: each next frame from the true ones before it;
        `rollout`: the second frame after the first two steps, the first of which is imagined."""
        tokens, poses = parted(latents)
        with torch.autocast(tokens.device.type, enabled=False):
            changes = change_of(actions)
        after = normalised(self.predictor(tokens[:, :-1], changes, poses[:, :-1]))
        losses = {"forced": (after - tokens[:, 1:]).abs().mean()}
        losses["loss"] = losses["forced"]
        if rollout and tokens.shape[1] > 2:
            context = torch.cat([tokens[:, :1], after[:, :1]], 1)
            second = normalised(self.predictor(context, changes[:, :2], poses[:, :2])[:, -1])
            losses["rollout"] = (second - tokens[:, 2]).abs().mean()
            losses["loss"] = losses["forced"] + rollout * losses["rollout"]
        return losses

    @torch.no_grad()
    def fast_rollout(
        self, context: Tensor, past: Tensor, actions: Tensor, *, precision: str = "fp32",
        at_once: int = 0, noise: Noise | None = None,
    ) -> Tensor:  # fmt: skip
        return super().fast_rollout(
            context, past, actions, precision=precision, at_once=at_once or AT_ONCE, noise=noise
        )

    def actions_of(self, proprio: Tensor) -> Tensor:
        """[..., S, 7] the changes of poses [..., S + 1, 7]."""
        return difference(proprio[..., :-1, :], proprio[..., 1:, :])

    def bytes_per_plan(
        self, horizon: int, *, gradients: bool = False, precision: str = "fp32"
    ) -> tuple[int, int]:
        """As every dynamics'; what is fixed is of the plans that are imagined together."""
        predictor = self.predictor
        width, depth = predictor.embed.out_features, len(predictor.blocks)
        tokens = (self.context_frames + horizon) * (predictor.grid**2 + 2)
        # The widest of a layer is the MLP, 4 times; then its attention.
        scores = (width // predictor.head_dim) * tokens**2
        layer = 4 * (tokens * 16 * width + scores)
        # Futures, and three of their size in judging them.
        each = 4 * 4 * horizon * (predictor.grid**2 + 1) * predictor.embed.in_features
        if gradients:
            return each + horizon * depth * layer, 0
        return each, AT_ONCE * 2 * layer

    @property
    def layers(self) -> Iterable[nn.Module]:
        return self.predictor.blocks


def normalised(tokens: Tensor) -> Tensor:
    """Tokens [..., D] as the predictor is trained on them: LayerNorm without parameters."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def with_pose(tokens: Tensor, pose: Tensor) -> Tensor:
    """[..., n + 1, D] latents of tokens [..., n, D] and poses [..., 7]."""
    return torch.cat([tokens, F.pad(pose, (0, tokens.shape[-1] - POSE))[..., None, :]], -2)


def parted(latents: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens [..., n, D], poses [..., 7]) of latents [..., n + 1, D]."""
    return latents[..., :-1, :], latents[..., -1, :POSE]


@dataclass(frozen=True, kw_only=True)
class ActionPredictorSizes:
    """What an action-conditioned predictor is made of: its own sizes, and those of the tokens,
    actions and states that it meets."""

    encoder_width: int
    grid: int
    width: int
    depth: int
    num_heads: int
    action_size: int = POSE
    state_size: int = POSE
    extrinsics_size: int = 6
    mlp_ratio: float = 4.0
    rope: Rope = "vjepa2"
    rope_base: float = 10_000.0


class ActionPredictor(nn.Module):
    """A block-causal transformer: each frame is an action token, a state token, perhaps one for
    the camera, and its patches, and sees itself and all frames before (Assran et al., 2025)."""

    def __init__(self, sizes: ActionPredictorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.grid, self.head_dim = sizes.grid, width // sizes.num_heads
        self.rope, self.rope_base = sizes.rope, sizes.rope_base
        self.embed = nn.Linear(sizes.encoder_width, width)
        self.action = nn.Linear(sizes.action_size, width)
        self.state = nn.Linear(sizes.state_size, width)
        self.extrinsics = nn.Linear(sizes.extrinsics_size, width)
        self.blocks = nn.ModuleList(
            Block(width, sizes.num_heads, sizes.mlp_ratio) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, sizes.encoder_width)
        init_transformer(self, self.blocks)

    def forward(
        self, tokens: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None
    ) -> Tensor:
        """The tokens one frame later, [B, T, N, D], for tokens [B, T, N, D] of frames that were
        encoded one by one, and actions [B, T, A], states [B, T, S] and, for a model trained with
        them, extrinsics [B, T, E] there.

        Raises ValueError if the frames are not of the model's own grid.
        """
        if tokens.shape[2] != self.grid**2:
            raise ValueError(
                f"tokens has {tokens.shape[2]} tokens a frame, the model {self.grid} x {self.grid}"
            )
        # Conditions are tokens before a frame's patches: without a camera a frame is merely one
        # token shorter.
        conditions = [self.action(actions), self.state(states)]
        if extrinsics is not None:
            conditions.append(self.extrinsics(extrinsics))
        before = torch.stack(conditions, 2)  # [B, T, C, P]
        x = torch.cat([before, self.embed(tokens)], 2)
        frames, count = x.shape[1], before.shape[2]
        # Whole frames are hidden, not single tokens: those of one frame are known at once.
        cos, sin = rope_tables(
            self._positions(frames, count, x.device), self.head_dim, self.rope_base, self.rope
        )
        bias = self._no_future(frames, x.shape[2], x.device)
        x = x.flatten(1, 2)  # [B, T*(C+N), P]
        for block in self.blocks:
            x = block(x, (cos, sin), bias)
        return self.project(self.norm(x.unflatten(1, (frames, -1))[:, :, count:]))

    def _positions(self, frames: int, conditions: int, device: torch.device) -> Tensor:
        """[T*(C+N), 3] time, row, column; what stands before the patches turns in time only."""
        patches = grid_positions(frames, self.grid, self.grid, device=device).view(frames, -1, 3)
        before = torch.zeros(frames, conditions, 3, dtype=patches.dtype, device=device)
        before[..., 0] = torch.arange(frames, device=device)[:, None]
        return torch.cat([before, patches], 1).flatten(0, 1)

    @staticmethod
    def _no_future(frames: int, tokens: int, device: torch.device) -> Tensor | None:
        """[T*(C+N), T*(C+N)] additive mask that hides later frames; None for one frame."""
        if frames == 1:
            return None
        frame = torch.arange(frames, device=device).repeat_interleave(tokens)
        hidden = frame[None] > frame[:, None]
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -1e4)
