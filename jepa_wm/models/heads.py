"""Heads on frozen latents: reward, end of the episode, physical state, and policies toward goals.

B samples, F flattened latent width, P numbers that policies read of a latent, A action numbers
of a model step, K bins, Y state numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from jepa_wm.models.blocks import mlp
from jepa_wm.models.head_settings import POLICIES, HeadSettings
from jepa_wm.models.latent_model import fill, read_sizes, save_sized
from jepa_wm.models.policies import Policy, PolicySizes


@dataclass(frozen=True)
class Present:
    """Which heads there are beside policies, as the columns of a trajectory file allow."""

    reward: bool = False
    termination: bool = False
    state: tuple[str, ...] = ()  # names of the Y state numbers; empty: no such head


class Heads(nn.Module):
    """All heads of a world model; those that the data has no column for are None."""

    def __init__(
        self, latent: int, action: int, present: Present, settings: HeadSettings,
        *, policy_inputs: int | None = None,
    ) -> None:  # fmt: skip
        """For latents of F numbers, of which policies read P = `policy_inputs`, all if None, and
        at the start how these F changed in the model steps before. Files of before have no
        `policy_frames`: their policies read one."""
        super().__init__()
        inputs = latent if policy_inputs is None else policy_inputs
        self.policy_frames = settings.policy_frames or 1
        start = inputs + (self.policy_frames - 1) * latent
        read = PolicySizes(start=start, goal=inputs, action=action)
        self.sizes = {"latent": latent, "action": action, "policy_inputs": inputs}
        self.present, self.settings = present, settings
        width = settings.width
        self.policies = nn.ModuleDict(
            {name: POLICIES.get(name)(read, settings) for name in settings.policies}
        )
        self.reward = RewardHead(latent, action, width, settings.bins) if present.reward else None
        self.termination = TerminationHead(latent, action, width) if present.termination else None
        self.state = StateHead(latent, len(present.state), width) if present.state else None

    def policy(self, name: str) -> Policy | None:
        """The policy of that name; None: it was not trained."""
        if name not in self.policies:
            return None
        policy = self.policies[name]
        assert isinstance(policy, Policy)
        return policy

    def all_policies(self) -> list[tuple[str, Policy]]:
        """Each with its name."""
        policies = ((name, self.policy(name)) for name in self.settings.policies)
        return [(name, policy) for name, policy in policies if policy is not None]

    def update_target(self) -> None:
        """Move what follows the weights of policies after a step of the training."""
        for _, policy in self.all_policies():
            policy.update_target()

    def save(self, folder: Path) -> None:
        """`heads.safetensors` and `heads.json` in `folder`; each appears whole or not at all."""
        settings, present = self.settings.model_dump(), asdict(self.present)
        save_sized(self, folder, "heads", settings=settings, present=present, **self.sizes)

    @classmethod
    def load(cls, folder: Path) -> Heads:
        """The heads saved in `folder`; UserError names what is missing."""
        sizes = read_sizes(folder, "heads", stage="heads")
        settings, present = HeadSettings(**sizes.pop("settings")), sizes.pop("present")
        present["state"] = tuple(present["state"])
        heads = cls(settings=settings, present=Present(**present), **sizes)
        fill(heads, folder, "heads")
        return heads


class Transition(nn.Module):
    """An MLP on a latent, the one a model step later, and the scaled actions between them."""

    def __init__(self, latent: int, action: int, width: int, outputs: int) -> None:
        super().__init__()
        # Three maps that are added, not one on all joined: a search would have to copy its latents
        # for that.
        self.before, self.after = nn.Linear(latent, width), nn.Linear(latent, width, bias=False)
        self.act = nn.Linear(action, width, bias=False)
        self.rest = nn.Sequential(
            nn.LayerNorm(width), nn.GELU(), *mlp(width, outputs, width, depth=1)
        )

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        """[..., outputs] in fp32 of latents [..., F] and actions [..., A]."""
        return self.rest(self.before(before) + self.after(after) + self.act(actions)).float()


class RewardHead(nn.Module):
    """The reward of a model step as a distribution over bins that are equally spaced in symlog.

    Its mean is the expected reward, without bias: a target lies on the two bins around it, in
    shares that average to it. Source: the symexp two-hot loss of D. Hafner et al., DreamerV3,
    2023."""

    bins: Tensor

    def __init__(self, latent: int, action: int, width: int, bins: int) -> None:
        super().__init__()
        self.net = Transition(latent, action, width, bins)
        self.register_buffer("bins", torch.zeros(bins))

    def span(self, low: float, high: float) -> None:
        """Spread the bins from the least to the largest reward of the data."""
        # a constant reward has a range too
        ends = symlog(torch.tensor([low, high], dtype=torch.float64)) + torch.tensor([-1e-3, 1e-3])
        first, last = ends.tolist()
        even = torch.linspace(first, last, len(self.bins), dtype=torch.float64)
        self.bins.copy_(symexp(even))

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        """[...] expected rewards of model steps."""
        return self.net(before, after, actions).softmax(-1) @ self.bins

    def loss(self, before: Tensor, after: Tensor, actions: Tensor, reward: Tensor) -> Tensor:
        """Mean cross-entropy for rewards [...]."""
        logits = self.net(before, after, actions)
        return -(two_hot(reward, self.bins) * logits.log_softmax(-1)).sum(-1).mean()


class TerminationHead(nn.Module):
    """The hazard: the chance that an episode which is still on ends within a model step, after
    whichever of its actions; those after the end are then not taken, and the step's reward is what
    was earned up to it."""

    def __init__(self, latent: int, action: int, width: int) -> None:
        super().__init__()
        self.net = Transition(latent, action, width, 1)

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        """[...] chances in 0..1."""
        return self.net(before, after, actions)[..., 0].sigmoid()

    def loss(self, before: Tensor, after: Tensor, actions: Tensor, ended: Tensor) -> Tensor:
        """Mean log loss for ends [...] of 0 and 1."""
        logits = self.net(before, after, actions)[..., 0]
        return nnf.binary_cross_entropy_with_logits(logits, ended.float())


class StateHead(nn.Module):
    """A physical state, such as the robot's own joints, read from a single latent."""

    mean: Tensor
    scale: Tensor

    def __init__(self, latent: int, numbers: int, width: int) -> None:
        super().__init__()
        self.net = mlp(latent, numbers, width, depth=2, norm=True)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))

    def forward(self, latents: Tensor) -> Tensor:
        """[..., Y] in the state's own units, of latents [..., F]."""
        return self.net(latents).float() * self.scale + self.mean

    def loss(self, latents: Tensor, state: Tensor) -> Tensor:
        """Mean error for states [..., Y], each number in units of its spread; large ones count
        linearly."""
        target = (state - self.mean) / self.scale
        return nnf.smooth_l1_loss(self.net(latents).float(), target, beta=0.2)


def symlog(x: Tensor) -> Tensor:
    """A logarithm that is near the identity around 0 and knows signs."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def two_hot(values: Tensor, bins: Tensor) -> Tensor:
    """[..., K] shares of the two bins around each value [...] whose mean is the value, cut to the
    bins' range."""
    values = values.to(bins).clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, values).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    share = ((values - low) / (high - low))[..., None]
    lower, upper = (nnf.one_hot(index, len(bins)).to(bins) for index in (above - 1, above))
    return (1 - share) * lower + share * upper
