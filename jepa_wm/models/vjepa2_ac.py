"""V-JEPA 2's action-conditioned predictor as dynamics: the next frame's tokens from tokens,
actions and poses of a robot's hand so far (Assran et al., 2025).

B batch, T frames, n = grid * grid tokens a frame of width D, N = n + 1 with the pose as one more.
A pose [..., 7] is a place (m), extrinsic xyz Euler angles (rad) and the gripper's opening (0..1);
an action [..., 7] is what is added to the place and the opening, and the turn that is applied
after the pose's own. A model step's block of actions holds `frameskip` of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.models.dynamics import Cache, Dynamics, StepNoise
from jepa_wm.models.latent import Latent
from jepa_wm.models.predictor import ActionPredictor, ActionPredictorSizes
from jepa_wm.models.world_model_settings import VJEPA2ACSettings

POSE = 7  # numbers: place, Euler angles, opening of the gripper


class RobotTokens(Latent):
    """All tokens of a frame, LayerNorm'd without parameters, and one more that holds the pose. A
    goal image has no pose (NaN): from a frame without one nothing can be imagined."""

    proprio_size = POSE
    lossless = True
    decodes = True
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
class FramesSoFar(Cache):
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
    at_once = 64

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
        return each, self.at_once * 2 * layer

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


# ---------------------------------------------------------------- poses


def change_of(blocks: Tensor) -> Tensor:
    """[..., 7] the one change of pose that a block [..., frameskip * 7] of changes adds up to."""
    parts = blocks.unflatten(-1, (-1, POSE))
    turn = to_matrix(parts[..., 0, 3:6])
    for step in range(1, parts.shape[-2]):
        turn = to_matrix(parts[..., step, 3:6]) @ turn
    return torch.cat([parts[..., :3].sum(-2), to_angles(turn), parts[..., 6:].sum(-2)], -1)


def integrate(pose: Tensor, action: Tensor) -> Tensor:
    """The pose after an action, [..., 7]; the opening stays within 0..1."""
    place = pose[..., :3] + action[..., :3]
    turn = to_angles(to_matrix(action[..., 3:6]) @ to_matrix(pose[..., 3:6]))
    return torch.cat([place, turn, (pose[..., 6:] + action[..., 6:]).clamp(0, 1)], -1)


def difference(before: Tensor, after: Tensor) -> Tensor:
    """The action that leads from one pose to another, [..., 7]: `integrate(before,
    difference(before, after))` is `after`."""
    turn = to_angles(to_matrix(after[..., 3:6]) @ to_matrix(before[..., 3:6]).transpose(-1, -2))
    return torch.cat(
        [after[..., :3] - before[..., :3], turn, after[..., 6:] - before[..., 6:]], -1
    )


def to_matrix(angles: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of extrinsic xyz Euler angles [..., 3]: first about x, then y,
    then z."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def to_angles(matrix: Tensor) -> Tensor:
    """Extrinsic xyz Euler angles [..., 3] of rotation matrices [..., 3, 3], y within a quarter
    turn.

    Where y is a quarter turn, x and z turn about the same axis: their sum goes to x.
    """
    sy = -matrix[..., 2, 0]
    level = torch.hypot(matrix[..., 2, 1], matrix[..., 2, 2])  # cos y
    flat = level < 1e-6
    x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    x = torch.where(flat, torch.atan2(-matrix[..., 1, 2], matrix[..., 1, 1]), x)
    return torch.stack([x, torch.atan2(sy, level), torch.where(flat, torch.zeros_like(z), z)], -1)
