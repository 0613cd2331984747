"""What the heads are taught of an episode's end is what a planner meets: the hazard and the reward
of a model step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jepa_wm.data.windows import FrameSampler, GoalSampler, StepSampler
from jepa_wm.models.head_settings import HeadSettings
from jepa_wm.models.heads import RewardHead, TerminationHead
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import TokenLatentSettings
from jepa_wm.models.world_model_settings import (
    DeterministicSettings,
    DistanceSettings,
    WorldModelSettings,
)
from jepa_wm.training import samples

SKIP = 5
CHANCE = np.array([0.02, 0.05, 0.10])  # that an action ends the episode, in each of three places


class Places:
    """Latents [.., 1, 3] of frames: which of three places an episode is in."""

    def __init__(self, place):
        self.place = torch.eye(3)[torch.from_numpy(place)]

    def at(self, episode, frame, *, belief_at=None):
        return self.place[torch.from_numpy(np.array(episode))][..., None, :]

    def flat(self, episode, frame):
        return self.at(episode, frame).flatten(-2)


def drawn(stride, *, ending_row, episodes=3000):
    """Samples of episodes that end by chance, or else are cut at a length that no model step ends
    at. An end pays 1.

    `ending_row` is where a file says so: at the action that ended the episode, whose frame is the
    last but one, or in the last row where it stores no frame after the end."""
    r = np.random.default_rng(0)
    place = r.integers(3, size=episodes)
    until, cut = (
        r.geometric(CHANCE[place]),
        SKIP * r.integers(5, 40, episodes) + 2,
    )  # actions until the one and other
    ended, actions_taken = until <= cut, np.minimum(until, cut)
    lengths = actions_taken + np.where(ended & (ending_row == "last"), 0, 1)
    offsets, rows = np.cumsum(lengths) - lengths, int(lengths.sum())
    terminated = np.zeros(rows, np.float32)
    terminated[(offsets + actions_taken - 1)[ended]] = 1
    actions = (
        r.normal(size=(rows, 1)).astype(np.float32).cumsum(0) % 2 - 1
    )  # smooth, as those of most policies
    data = SimpleNamespace(
        path="x.h5", lengths=lengths, offsets=offsets, episodes=episodes, actions=actions
    )
    torch.manual_seed(0)
    settings = WorldModelSettings(
        dynamics=DeterministicSettings(
            frameskip=SKIP, width=16, depth=1, num_heads=1, context_frames=2
        ),
        latent=TokenLatentSettings(),
        distance=DistanceSettings(groups=2, components=2, width=8),
    )
    model, rest = LatentModel(1, 3, 1, settings).eval(), {"stride": stride, "seed": 0}
    model.take_units(actions)
    taken, over = samples.ends(data, terminated)
    assert (over == ended).all() and (taken == actions_taken).all()
    return samples.Samples(
        data,
        Places(place),
        model,
        "fp32",
        {"terminated": terminated, "reward": terminated.copy()},
        StepSampler(data, taken=taken, ended=over, frameskip=SKIP, **rest),
        GoalSampler(data, steps=2, frameskip=SKIP, **rest),
        FrameSampler(data, **rest),
    )


@pytest.mark.filterwarnings("ignore:.*episodes are left out")
@pytest.mark.parametrize(
    ("stride", "ending_row"), [(5, "last but one"), (1, "last but one"), (5, "last")]
)
def test_a_planner_is_told_the_true_hazard_and_reward_of_a_model_step(stride, ending_row):
    """For actions that go on past the end, as those of a plan do: nothing but the place tells that
    it will end."""
    seen = drawn(stride, ending_row=ending_row)
    torch.manual_seed(0)
    sizes = HeadSettings(width=32)
    hazard, reward = TerminationHead(3, SKIP, 32), RewardHead(3, SKIP, 32, sizes.bins)
    reward.span(0, 1)
    parameters = [*hazard.parameters(), *reward.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)
    for step in range(300):
        before, after, actions, truth = seen.steps(step, 256)
        loss = hazard.loss(before, after, actions, truth["terminated"])
        loss = loss + reward.loss(before, after, actions, truth["reward"])
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 300)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    true = 1 - (1 - CHANCE) ** SKIP  # .096, .226, .410
    whole = np.flatnonzero(seen.model_steps.taken > SKIP)[
        :600
    ]  # plans: blocks as they are in the data
    plans = seen.data.actions[seen.data.offsets[whole][:, None] + np.arange(SKIP)][..., 0]
    with torch.no_grad():
        acts = seen.model.scaled(torch.from_numpy(plans))
        for place, chance in enumerate(true):
            here = torch.eye(3)[place].expand(len(acts), 3)
            there = seen.model.dynamics(here[:, None, None], acts[:, None])[:, 0, 0]
            assert hazard(here, there, acts).mean().item() == pytest.approx(chance, rel=0.15)
            assert reward(here, there, acts).mean().item() == pytest.approx(chance, rel=0.15)
