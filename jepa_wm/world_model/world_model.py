"""The world model as the planner and the user meet it: load, encode, imagine, distance.

B episodes, S candidates, H horizon, N latent tokens of width D, A action numbers a model step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.heads import Heads
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.mixture import Noise
from jepa_wm.models.rollout import fixed_bytes, imagine_candidates, plan_bytes, unroll_candidates
from jepa_wm.world_model.cuda_graphs import Recordings
from jepa_wm.world_model.saved import is_action_predictor, load_heads, load_latent_model


class WorldModel(nn.Module):
    """A frozen encoder, the latent model on it, and heads that read rewards and states, where they
    were trained."""

    learned_distance = True  # whether `temporal_distance` is there

    def __init__(
        self, encoder: FrozenEncoder, latent: LatentModel, heads: Heads | None = None
    ) -> None:
        super().__init__()
        expected, seen = (
            (latent.sizes["tokens"], latent.sizes["token_width"]),
            (encoder.tokens_per_frame, encoder.width),
        )
        if expected != seen:
            raise UserError(
                f"the dynamics were trained on {expected[0]} tokens of width {expected[1]} a "
                "frame, but the encoder gives "
                f"{seen[0]} of width {seen[1]}; take the encoder they were trained with, or "
                "train dynamics on this one"
            )
        self.encoder, self.latent = encoder.eval(), latent.eval()
        self.heads = None if heads is None else heads.eval()
        self.compiled = False
        self._recordings: Recordings | None = None

    @classmethod
    def load(cls, run: Path | str) -> WorldModel:
        """The world model of a finished run folder (stages `features` and `dynamics`, and `heads`
        if it was run), on the device that this process computes on."""
        run = Path(run)
        if is_action_predictor(run / "dynamics"):
            from jepa_wm.world_model.vjepa2_ac import (
                RobotModel,  # it is a world model too, and stands on this file
            )

            return RobotModel.load(run)
        heads = load_heads(run / "heads") if (run / "heads" / "heads.json").exists() else None
        return cls(
            FrozenEncoder.load(run / "features"), load_latent_model(run / "dynamics"), heads
        ).to(dist().device)

    @property
    def device(self) -> torch.device:
        """Where it is, and what it makes of frames."""
        return self.encoder.mean.device

    @property
    def block(self) -> int:
        """Action numbers between two latents: action size x frameskip."""
        return self.latent.block

    def compile(self, *, backend: str = "inductor") -> None:
        """Have torch.compile make the dynamics' layers; imagining then goes through them instead
        of the stepper that works in place. It pays on a GPU, where one call less is time won; on a
        CPU the stepper is as fast or faster."""
        for dynamics in self.latent.members:
            for block in dynamics.blocks:
                block.compile(backend=backend)
        self.compiled = True

    def record(self) -> None:
        """Have imagining recorded as CUDA graphs, one for every number of plans and of frames
        seen; where gradients are wanted it is computed as before. What they keep comes beside
        planner.mpc.memory_mb. UserError where the model is on no GPU."""
        if self.device.type != "cuda":
            raise UserError(
                f"CUDA graphs need a GPU, and the model is on {self.device}; set "
                "planner.mpc.cuda_graphs=false"
            )
        self._recordings = self._recordings or Recordings()

    def _apply(self, *args: Any, **named: Any) -> WorldModel:
        if self._recordings is not None:  # weights move, and recordings know where they were
            self._recordings = Recordings()
        return super()._apply(*args, **named)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, N, D], where the model is, of uint8 frames [B, h, w, c] from anywhere.
        Raises ValueError for other frames."""
        self._refuse_other_frames(frames)
        with autocast(self.device, self.encoder.precision):
            return self.latent.summarise(self.encoder(frames))

    def compared(self, latents: Tensor) -> Tensor:
        """What of latents [..., N, D] is compared with those of other frames: all."""
        return latents

    @staticmethod
    def _refuse_other_frames(frames: Tensor) -> None:
        if frames.dtype != torch.uint8 or frames.dim() != 4:
            raise ValueError(
                f"frames are {frames.dtype} of shape {tuple(frames.shape)}; give uint8 pictures "
                "[B, h, w, c] (0..255), "
                "which can hold no NaN"
            )

    def imagine(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0
    ) -> Tensor:
        """Futures [B, S, H, N, D] after context [B, C, N, D] with past action blocks [B, C-1, A],
        for raw candidate action blocks [B, S, H, A].

        Where the actions want gradients the futures carry them, cut every `truncate` steps (0:
        nowhere). Of an ensemble the first member imagines, of several outcomes the likeliest comes
        about."""
        return self._futures_of(self.latent.dynamics, context, past, actions, truncate, None)

    def futures(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0, draws: int = 1
    ) -> Tensor:
        """Futures [M, R, B, S, H, N, D], as `imagine`, of all M members; R = `draws` where the
        dynamics have outcomes, each by a chance of its own, which is the same for all plans and in
        every call; else R = 1."""
        noises: list[Noise | None] = [None]
        if self.latent.settings.mixture_components:
            horizon, (tokens, width) = actions.shape[2], context.shape[-2:]
            noises = [
                Noise.seeded(r, horizon=horizon, tokens=tokens, width=width, device=context.device)
                for r in range(draws)
            ]
        members = self.latent.members
        if len(members) == len(noises) == 1:
            return self._futures_of(members[0], context, past, actions, truncate, noises[0])[
                None, None
            ]
        each = [
            [self._futures_of(m, context, past, actions, truncate, noise) for noise in noises]
            for m in members
        ]
        return torch.stack([torch.stack(one) for one in each])

    def _futures_of(
        self,
        dynamics: Dynamics,
        context: Tensor,
        past: Tensor,
        actions: Tensor,
        truncate: int,
        noise: Noise | None,
    ) -> Tensor:
        past, steps = self.latent.scaled(past), self.latent.scaled(actions)
        wanted = _wants_gradient(actions)
        if not wanted and not self.compiled:

            def imagine(context: Tensor, past: Tensor, steps: Tensor, *parts: Tensor) -> Tensor:
                noise = Noise(*parts) if parts else None
                return imagine_candidates(
                    dynamics, context, past, steps, precision=self.encoder.precision, noise=noise
                )

            given = (context, past, steps, *(noise or ()))
            return (
                imagine(*given)
                if self._recordings is None
                else self._recordings(dynamics, imagine, *given)
            )
        with torch.set_grad_enabled(wanted), autocast(context.device, self.encoder.precision):
            return unroll_candidates(
                dynamics, context, past, steps, truncate=truncate, noise=noise
            ).float()

    def temporal_distance(self, latents: Tensor, goal: Tensor, *, margin: float = 0.0) -> Tensor:
        """[B, ...] learned model steps from latents [B, ..., N, D] to goal [B, N, D].

        With a margin the most that is read when one dynamic number of both, whose spread is 1, is
        that much larger or smaller: where a small error changes much, as on the two sides of a
        wall, the worse side counts; and what lies at the goal stays there."""
        metric = self.latent.distance
        with (
            torch.set_grad_enabled(_wants_gradient(latents)),
            autocast(latents.device, self.encoder.precision),
        ):
            pairs = [(latents, goal)]
            if margin:
                pairs = list(
                    zip(*(self.latent.shifted(x, margin) for x in (latents, goal)), strict=True)
                )
            readings = []
            for start, end in pairs:
                there = metric.embed(self.latent.flat(end))
                there = there.view(len(goal), *[1] * (latents.dim() - 3), *there.shape[1:])
                readings.append(metric.between(metric.embed(self.latent.flat(start)), there))
            return readings[0] if len(readings) == 1 else torch.stack(readings).amax(0)

    def reward(self, before: Tensor, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S, H] expected rewards of model steps with raw action blocks [B, S, H, A] that lead
        from latents before [B, N, D] through latents [B, S, H, N, D]. UserError without such a
        head."""
        return self._of_steps(self.needed("reward").reward, before, latents, actions)

    def ended(self, before: Tensor, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S, H] chances that the episode ends in each model step, as `reward`."""
        return self._of_steps(self.needed("termination").termination, before, latents, actions)

    def state(self, latents: Tensor) -> Tensor:
        """[..., Y] the physical state, in its own units, read from latents [..., N, D]. UserError
        without a head."""
        read = self.needed("state").state
        assert read is not None
        with (
            torch.set_grad_enabled(_wants_gradient(latents)),
            autocast(latents.device, self.encoder.precision),
        ):
            return read(self.latent.flat(latents))

    @torch.no_grad()
    def propose(self, here: Tensor, goal: Tensor, horizon: int) -> Tensor:
        """[B, H, A] raw action blocks from latents here [B, N, D] toward goal [B, N, D], by the
        policy alone."""
        heads = self.needed("policy")
        with autocast(here.device, self.encoder.precision):
            blocks = heads.policy(self.latent.flat(here), self.latent.flat(goal))
        longer = blocks[:, -1:].expand(-1, max(0, horizon - blocks.shape[1]), -1)
        return self.latent.unscaled(torch.cat([blocks, longer], 1)[:, :horizon])

    def needed(self, name: str) -> Heads:
        """The heads, if one of that name is among them; else UserError with the remedy."""
        if self.heads is None or getattr(self.heads, name) is None:
            columns = {
                "reward": "reward",
                "termination": "terminated",
                "state": "state",
                "policy": "action",
            }
            raise UserError(
                f"the plan needs a {name} head, which this run has not: train it with `jepa-wm "
                "heads` on trajectories "
                f"with a column '{columns[name]}', or choose another objective and solver"
            )
        return self.heads

    def _of_steps(
        self, head: nn.Module | None, before: Tensor, latents: Tensor, actions: Tensor
    ) -> Tensor:
        assert head is not None
        after = self.latent.flat(latents)
        first = self.latent.flat(before)[:, None, None].expand(-1, latents.shape[1], -1, -1)
        earlier = torch.cat([first, after[:, :, :-1]], 2)  # [B, S, H, F]
        wanted = _wants_gradient(latents) or _wants_gradient(actions)
        with torch.set_grad_enabled(wanted), autocast(latents.device, self.encoder.precision):
            return head(earlier, after, self.latent.scaled(actions))

    def plan_bytes(
        self, horizon: int, *, gradients: bool = False, draws: int = 1, margin: float = 0.0
    ) -> tuple[int, int]:
        """(bytes that imagining and judging one plan takes at most, bytes that it takes for any
        number of plans), estimated from shapes on the safe side; all members' futures and `draws`
        of each are held together, and for gradients all readings of the metric within a margin."""
        metric, dynamics = self.latent.settings.distance, self.latent.dynamics
        judging = 4 * horizon * (12 * metric.width + 4 * metric.groups * metric.components)
        if margin:
            shifted = 2 * self.latent.dynamic_dim
            judging *= shifted if gradients else 1
            judging += 4 * horizon * shifted * dynamics.tokens * dynamics.latent_width
        if self.heads is not None:
            judging += 4 * horizon * (8 * self.heads.settings.width + 4 * self.heads.settings.bins)
        futures = self.latent.settings.ensemble_size * (
            draws if self.latent.settings.mixture_components else 1
        )
        each = futures * plan_bytes(dynamics, horizon, gradients=gradients) + judging
        return each, fixed_bytes(dynamics, precision=self.encoder.precision)


def _wants_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
