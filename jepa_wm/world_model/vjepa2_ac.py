"""The world model whose dynamics are V-JEPA 2's action-conditioned predictor, as planner and
report meet it.

B episodes, S candidates, C frames of context, H horizon, N tokens a frame, D width. A latent is a
frame's normalised tokens and one more that holds the pose, [N + 1, D]; an environment action is a
change of pose, 7 numbers, and a model step's block of actions has frameskip of them (see
`dynamics.poses`)."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.action_predictor import ActionPredictor
from jepa_wm.models.heads import Heads
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.settings import DynamicsSettings, WorldModelSettings
from jepa_wm.world_model.saved import load_action_predictor
from jepa_wm.world_model.vjepa2_ac_rollout import change_of, imagine_after, normalised
from jepa_wm.world_model.world_model import WorldModel

POSE = 7  # numbers: place, Euler angles, opening of the gripper
AT_ONCE = 64  # plans that are imagined together


class PoseLatent(LatentModel):
    """The predictor with the units of its actions; of its latents nothing is summarised, and
    nothing is static."""

    def __init__(
        self, predictor: ActionPredictor, settings: DynamicsSettings, low: Tensor, high: Tensor
    ) -> None:
        """`low` and `high` [7] are how far one environment step's change of pose reaches in the
        data."""
        nn.Module.__init__(self)
        self.predictor, self.block = predictor, POSE * settings.frameskip
        self.settings = WorldModelSettings(**dict(settings), latent=None)
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)

    @property
    def dynamic_dim(self) -> int:
        """All numbers of a token."""
        return self.predictor.embed.in_features


class RobotModel(WorldModel):
    """A frozen encoder and V-JEPA 2's action-conditioned predictor on it. Distances are between
    tokens, as l1 of V-JEPA 2-AC; there is no learned one, and there are no heads."""

    latent: PoseLatent
    learned_distance = False

    def __init__(self, encoder: FrozenEncoder, latent: PoseLatent) -> None:
        nn.Module.__init__(self)
        predictor = latent.predictor
        expected, seen = (
            (predictor.grid**2, predictor.embed.in_features),
            (encoder.tokens_per_frame, encoder.width),
        )
        if expected != seen:
            raise UserError(
                f"the action-conditioned predictor was trained on {expected[0]} tokens of width {expected[1]} a frame, "
                f"but the encoder gives {seen[0]} of width {seen[1]}; take the encoder it was trained with"
            )
        self.encoder, self.latent, self.heads, self.compiled = (
            encoder.eval(),
            latent.eval(),
            None,
            False,
        )
        self._recordings = None

    @classmethod
    def load(cls, run: Path | str) -> RobotModel:
        """That of a finished run folder (stages `features` and `dynamics`), on the device this
        process computes on."""
        predictor, settings, low, high = load_action_predictor(Path(run) / "dynamics")
        latent = PoseLatent(predictor, settings, torch.tensor(low), torch.tensor(high))
        return cls(FrozenEncoder.load(Path(run) / "features"), latent).to(dist().device)

    @torch.no_grad()
    def encode(self, frames: Tensor, poses: Tensor | None = None) -> Tensor:
        """Latents [B, N + 1, D] of uint8 frames [B, h, w, c] with their poses [B, 7]; a goal image
        has none, and from a frame without one nothing can be imagined. Raises ValueError for
        others."""
        self._refuse_other_frames(frames)
        if poses is not None and poses.shape != (len(frames), POSE):
            raise ValueError(
                f"poses have shape {tuple(poses.shape)}; give [{len(frames)}, {POSE}], one for each frame"
            )
        seen = normalised(self.encoder.raw(frames))
        pose = seen.new_full((len(frames), POSE), torch.nan) if poses is None else poses.to(seen)
        return self._with_pose(seen, pose)

    def compared(self, latents: Tensor) -> Tensor:
        """[..., N, D] the tokens alone."""
        return latents[..., :-1, :]

    def imagine(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0
    ) -> Tensor:
        """Futures [B, S, H, N + 1, D] after context [B, C, N + 1, D], for blocks of changes of
        pose [B, S, H, frameskip * 7]; what was done before is seen in the context's poses. Raises
        ValueError where one of these is not known."""
        poses = context[..., -1, :POSE]
        if bool(poses.isnan().any()):
            raise ValueError(
                "frames without a pose tell no future: encode them with the poses of the robot's hand"
            )
        wanted = actions.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(wanted):
            changes = change_of(actions)
            with autocast(context.device, self.encoder.precision):
                futures, ways = imagine_after(
                    self.latent.predictor,
                    self.compared(context),
                    poses,
                    changes,
                    at_once=AT_ONCE,
                    truncate=truncate,
                )
            return self._with_pose(futures.float(), ways.float())

    def futures(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0, draws: int = 1
    ) -> Tensor:
        """[1, 1, B, S, H, N + 1, D], as `imagine`: the predictor is one, and sees one future."""
        return self.imagine(context, past, actions, truncate=truncate)[None, None]

    def temporal_distance(self, latents: Tensor, goal: Tensor, *, margin: float = 0.0) -> NoReturn:
        """UserError: a learned distance is of another kind of dynamics."""
        raise UserError(
            "a learned distance is of dynamics.kind latent; set planner.cost.objective=l1, as V-JEPA 2-AC has it"
        )

    def needed(self, name: str) -> Heads:
        """UserError: heads are of another kind of dynamics."""
        raise UserError(
            f"the plan needs a {name} head, and heads are of dynamics.kind latent, not vjepa2_ac: plan toward a goal "
            "image (planner.cost.objective=l1) with a solver that searches"
        )

    def compile(self, *, backend: str = "inductor") -> None:
        """Have torch.compile make the predictor's layers."""
        for block in self.latent.predictor.blocks:
            block.compile(backend=backend)
        self.compiled = True

    def record(self) -> None:
        """UserError: imagining grows by a frame a step here, which no recording can."""
        raise UserError(
            "planner.mpc.cuda_graphs is of dynamics.kind latent; set planner.mpc.cuda_graphs=false, or planner.mpc.compile=true"
        )

    def plan_bytes(
        self, horizon: int, *, gradients: bool = False, draws: int = 1, margin: float = 0.0
    ) -> tuple[int, int]:
        """(bytes of one plan, bytes of those that are imagined together), as
        `WorldModel.plan_bytes`."""
        predictor, settings = self.latent.predictor, self.latent.settings
        width, depth = predictor.embed.out_features, len(predictor.blocks)
        tokens = (settings.context_frames + horizon) * (predictor.grid**2 + 2)
        layer = 4 * (
            tokens * 16 * width + (width // predictor.head_dim) * tokens**2
        )  # the widest is the MLP, 4 times
        each = (
            4 * 4 * horizon * (predictor.grid**2 + 1) * predictor.embed.in_features
        )  # futures, and in judging them
        return (each + horizon * depth * layer, 0) if gradients else (each, AT_ONCE * 2 * layer)

    def _with_pose(self, tokens: Tensor, pose: Tensor) -> Tensor:
        """[..., N + 1, D] of tokens [..., N, D] and poses [..., 7]."""
        return torch.cat([tokens, F.pad(pose, (0, tokens.shape[-1] - POSE))[..., None, :]], -2)
