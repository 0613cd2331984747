"""The world model as the planner and the user meet it: load, encode, imagine, distance, reward.

B episodes, S plan samples, H horizon, C context frames, N latent tokens of width D, A action
numbers a model step, M members of an ensemble, R futures of each, P numbers of proprioception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.distance import latent_distance
from jepa_wm.models.dynamics import Noise
from jepa_wm.models.heads import Heads
from jepa_wm.models.latent import Belief as Belief  # which an agent holds
from jepa_wm.models.latent import Latent
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.policies import GCIDM, Policy

COLUMNS = {"reward": "reward", "termination": "terminated", "state": "state"}


class WorldModel(nn.Module):
    """A frozen encoder, the latent model on it, and heads that read rewards and states, where they
    were trained."""

    def __init__(
        self, encoder: FrozenEncoder, latent_model: LatentModel, heads: Heads | None = None
    ) -> None:
        super().__init__()
        trained_on = latent_model.sizes["tokens"], latent_model.sizes["token_width"]
        given = encoder.tokens_per_frame, encoder.width
        if trained_on != given:
            raise UserError(
                f"the dynamics were trained on {trained_on[0]} tokens of width {trained_on[1]} a "
                f"frame, but the encoder gives {given[0]} of width {given[1]}; take the encoder "
                "they were trained with, or train dynamics on this one"
            )
        self.encoder, self.latent_model = encoder.eval(), latent_model.eval()
        self.heads = None if heads is None else heads.eval()
        self.compiled = False
        self.block, self.frameskip = latent_model.block, latent_model.frameskip
        self.context_frames = latent_model.context_frames

    @classmethod
    def load(cls, run: Path | str) -> WorldModel:
        """The world model of a finished run folder (stages `features` and `dynamics`, and `heads`
        if it was run), on the device that this process computes on."""
        run = Path(run)
        heads = Heads.load(run / "heads") if (run / "heads" / "heads.json").exists() else None
        encoder = FrozenEncoder.load(run / "features")
        return cls(encoder, LatentModel.load(run / "dynamics"), heads).to(dist().device)

    @property
    def device(self) -> torch.device:
        """Where it is, and what it makes of frames."""
        return self.encoder.mean.device

    @property
    def latent(self) -> Latent:
        """What its latents are."""
        return self.latent_model.latent

    def compile(self, *, backend: str = "inductor") -> None:
        """Have torch.compile make the dynamics' layers; imagining then goes through them instead
        of the rollout that works in place. It pays on a GPU, where one call less is time won; on a
        CPU the rollout in place is as fast or faster."""
        for member in self.latent_model.ensemble:
            for layer in member.layers:
                layer.compile(backend=backend)
        self.compiled = True

    # ------------------------------------------------------------------ encode

    @torch.no_grad()
    def encode(self, frames: Tensor, proprio: Tensor | None = None) -> Tensor:
        """Latents [B, N, D], where the model is, of uint8 frames [B, h, w, c] from anywhere, and
        of their proprioception [B, P] where the latent asks for it: a goal image has none. Raises
        ValueError for others."""
        if frames.dtype != torch.uint8 or frames.dim() != 4:
            raise ValueError(
                f"frames are {frames.dtype} of shape {tuple(frames.shape)}; give uint8 pictures "
                "[B, h, w, c] (0..255), which can hold no NaN"
            )
        size = self.latent.proprio_size
        if proprio is not None and proprio.shape != (len(frames), size):
            raise ValueError(
                f"proprio has shape {tuple(proprio.shape)}; give [{len(frames)}, {size}], a row "
                "for each frame"
            )
        return self.latent.encode(self.encoder(frames), proprio)

    # ------------------------------------------------------------------ imagine

    def imagine(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0,
        member: int = 0, noise: Noise | None = None,
    ) -> Tensor:  # fmt: skip
        """Futures [B, S, H, N, D] after context [B, C, N, D] with past action blocks [B, C-1, A],
        for raw action blocks [B, S, H, A] of plans.

        Where the actions want gradients the futures carry them, cut every `truncate` steps (0:
        nowhere). Of an ensemble one member imagines, of a mixture without noise the likeliest
        component comes about."""
        if self.latent.proprio is not None:
            self.latent.proprio.check_known(context)
        past, steps = self.latent_model.scaled(past), self.latent_model.scaled(actions)
        gradient, precision = wants_gradient(actions), self.encoder.precision
        dynamics = self.latent_model.ensemble[member]
        if not gradient and not self.compiled:
            return dynamics.fast_rollout(context, past, steps, precision=precision, noise=noise)
        with torch.set_grad_enabled(gradient), autocast(context.device, precision):
            return dynamics.rollout(context, past, steps, truncate=truncate, noise=noise).float()

    def futures(
        self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0,
        num_futures: int = 1,
    ) -> Tensor:  # fmt: skip
        """Futures [M, R, B, S, H, N, D], as `imagine`, of all members; R = `num_futures` where the
        dynamics are stochastic, each by noise of its own, which is the same for all plans and in
        every call; else R = 1."""
        noises: list[Noise | None] = [None]
        if self.latent_model.dynamics.stochastic:
            horizon, (tokens, width) = actions.shape[2], context.shape[-2:]
            noises = [
                Noise.seeded(r, horizon=horizon, tokens=tokens, width=width, device=context.device)
                for r in range(num_futures)
            ]
        each = [
            self.imagine(context, past, actions, truncate=truncate, member=member, noise=noise)
            for member in range(len(self.latent_model.ensemble))
            for noise in noises
        ]
        if len(each) == 1:
            return each[0][None, None]  # a view: there may be much of it
        return torch.stack(each).unflatten(0, (-1, len(noises)))

    # ------------------------------------------------------------------ distance and heads

    def distance(
        self, latents: Tensor, goal: Tensor, *, kind: str = "temporal", robust_radius: float = 0.0
    ) -> Tensor:
        """[B, ...] from latents [B, ..., N, D] to goal [B, N, D]: learned model steps (fast steps
        where it was fitted to paths), or one of `latent_distance` between what is compared of
        them. Both are to be believed together (`Latent.believed_together`), since of a map the
        goal's counts for both.

        With a radius, of the learned one the most that is read when one dynamic number of both,
        whose spread is 1, is that much larger or smaller: where a small error changes much, as on
        the two sides of an obstacle, the worse side counts; and what lies at the goal stays there.
        UserError for a model that learned none."""
        if kind != "temporal":
            compared = self.latent.compared
            return latent_distance(compared(latents), compared(goal), kind=kind)
        model, distance = self.latent_model, self.latent_model.needed_distance()
        pairs = [(latents, goal)]
        if robust_radius:
            shifted = (self.latent.perturbations(x, robust_radius) for x in (latents, goal))
            pairs = list(zip(*shifted, strict=True))
        with self._reading(latents):
            field, readings = model.map_field(goal), []
            between = [1] * (latents.dim() - 3)
            for start, end in pairs:
                goals = distance.embed(model.distance_input(end, field))  # [B, G, K]
                goals = goals.view(len(goal), *between, *goals.shape[1:])
                around = None if field is None else field.view(len(goal), *between, -1)
                starts = distance.embed(model.distance_input(start, around))
                readings.append(distance.between(starts, goals))
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
        head = self.needed("state").state
        assert head is not None
        with self._reading(latents):
            return head(self.latent_model.flat(latents))

    @torch.no_grad()
    def propose(self, seen: Tensor, goal: Tensor, horizon: int, *, policy: str) -> Tensor:
        """[B, H, A] raw action blocks from the last of latents seen [B, C, N, D], a model step
        apart, toward goal [B, N, D], by a policy alone. All are to be believed together. UserError
        where it was not trained."""
        model, played, heads = self.latent_model, self.needed_policy(policy), self.heads
        assert heads is not None
        with autocast(seen.device, self.encoder.precision):
            field = model.map_field(goal)
            start = seen[:, -1]
            read = model.policy_start(seen, field, heads.policy_frames)
            inputs = [read, model.policy_input(goal, field)]
            if isinstance(played, GCIDM):
                if model.distance is None:
                    remaining = played.straight(model.flat(start), model.flat(goal))
                else:
                    remaining = self.distance(start[:, None], goal)[:, 0]
                inputs.append(remaining)
            blocks = played(*inputs)
        longer = blocks[:, -1:].expand(-1, max(0, horizon - blocks.shape[1]), -1)
        return model.unscaled(torch.cat([blocks, longer], 1)[:, :horizon])

    def needed_policy(self, name: str) -> Policy:
        """The policy of that name; UserError with the remedy where it was not trained."""
        self._check_heads(f"policy {name}")
        policy = None if self.heads is None else self.heads.policy(name)
        if policy is None:
            trained = [] if self.heads is None else self.heads.settings.policies
            raise UserError(
                f"the plan needs policy {name}, which this run has not (trained: "
                f"{', '.join(trained) or 'none'}): train it with `jepa-wm heads`, "
                "named in train.heads.sizes.policies, or choose another in planner.solver.policy, "
                "planner.mpc.warm_start or evaluation.policies"
            )
        return policy

    def _check_heads(self, what: str) -> None:
        """UserError where the dynamics have no heads."""
        dynamics = self.latent_model.settings.dynamics
        if not dynamics.has_heads:
            raise UserError(
                f"the plan needs a {what}, and dynamics.name {dynamics.name} has no heads: plan "
                "toward a goal image (planner.cost.objective=l1) with a solver that searches"
            )

    def needed(self, name: str) -> Heads:
        """The heads, if one of that name is among them; else UserError with the remedy."""
        self._check_heads(f"{name} head")
        if self.heads is None or getattr(self.heads, name) is None:
            raise UserError(
                f"the plan needs a {name} head, which this run has not: train it with `jepa-wm "
                f"heads` on trajectories with a column '{COLUMNS[name]}', or choose another "
                "objective and solver"
            )
        return self.heads

    def _of_steps(
        self, head: nn.Module | None, before: Tensor, latents: Tensor, actions: Tensor
    ) -> Tensor:
        assert head is not None
        after = self.latent_model.flat(latents)
        first = self.latent_model.flat(before)[:, None, None].expand(-1, latents.shape[1], -1, -1)
        earlier = torch.cat([first, after[:, :, :-1]], 2)  # [B, S, H, F]
        with self._reading(latents, actions):
            return head(earlier, after, self.latent_model.scaled(actions))

    @contextmanager
    def _reading(self, *inputs: Tensor) -> Iterator[None]:
        """In the model's precision, with gradients where an input wants them."""
        gradient, precision = wants_gradient(*inputs), self.encoder.precision
        with torch.set_grad_enabled(gradient), autocast(self.device, precision):
            yield

    # ------------------------------------------------------------------ memory

    def plan_bytes(
        self, horizon: int, *, gradients: bool = False, num_futures: int = 1,
        robust_radius: float = 0.0,
    ) -> tuple[int, int]:  # fmt: skip
        """(bytes that imagining and judging one plan takes at most, bytes that it takes for any
        number of plans), estimated from shapes on the safe side; all members' futures and
        `num_futures` of each are held together, and for gradients all readings of the distance
        within the radius."""
        model, judging = self.latent_model, 0
        if model.distance is not None:
            settings, inputs = model.distance.settings, len(model.distance.centre)
            numbers = 12 * settings.width + 4 * settings.groups * settings.components + 3 * inputs
            judging = 4 * horizon * numbers
        if robust_radius:
            readings = 2 * self.latent.visual_dim
            judging *= readings if gradients else 1
            judging += 4 * horizon * readings * self.latent.tokens * self.latent.shape.width
        if self.heads is not None:
            sizes = self.heads.settings
            judging += 4 * horizon * (8 * sizes.width + 4 * sizes.bins)
        each, fixed = model.dynamics.bytes_per_plan(
            horizon, gradients=gradients, precision=self.encoder.precision
        )
        futures = len(model.ensemble) * (num_futures if model.dynamics.stochastic else 1)
        return futures * each + judging, fixed


def wants_gradient(*inputs: Tensor) -> bool:
    """Whether what is computed from any of them is to lead back to it."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
