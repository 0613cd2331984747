"""Terms of an objective beside the distance to a goal image, each against a plain computation of
what it says."""

import pytest
import torch

from jepa_wm.planning.terms import (
    LinearLimits,
    Objective,
    Return,
    Smoothness,
    ToState,
    disagreement,
    effort,
)

B, S, H, N, D, A = 2, 3, 4, 5, 6, 4


@pytest.fixture
def future():
    g = torch.Generator().manual_seed(0)
    return torch.randn(B, S, H, N, D, generator=g), torch.randn(B, S, H, A, generator=g)


def test_reward_is_discounted_and_ends_with_the_episode(future):
    latents, actions = future

    def reward(latents, actions):
        return latents.mean((-2, -1)) - actions.square().sum(-1)

    def ended(latents, actions):
        return latents[..., 0, 0].sigmoid()

    expected = torch.zeros(B, S)
    on = torch.ones(B, S)
    for h in range(H):
        expected += 0.9**h * on * reward(latents, actions)[..., h]
        on = on * (1 - ended(latents, actions)[..., h])
    torch.testing.assert_close(
        Return(reward=reward, ended=ended, discount=0.9)(latents, actions), expected
    )
    endless = sum(0.9**h * reward(latents, actions)[..., h] for h in range(H))
    torch.testing.assert_close(Return(reward=reward, discount=0.9)(latents, actions), endless)
    at_once = Return(
        reward=reward, ended=lambda latents, actions: torch.ones(B, S, H), discount=0.9
    )
    torch.testing.assert_close(
        at_once(latents, actions), reward(latents, actions)[..., 0], msg="the end itself counts"
    )


def test_a_state_is_reached_in_units_of_its_scale(future):
    latents, actions = future
    goal, scale = torch.randn(B, 2), torch.tensor([1.0, 10.0])

    def read(latents):
        return latents[..., 0, :2]

    term = ToState(goal=goal, read=read, scale=scale, mode="last")
    expected = ((read(latents)[:, :, -1] - goal[:, None]) / scale).square().mean(-1)
    torch.testing.assert_close(term(latents, actions), expected)
    plain = ToState(goal=goal, read=read, mode="all")(latents, actions)
    torch.testing.assert_close(plain, (read(latents) - goal[:, None, None]).square().mean((2, 3)))


def test_members_that_agree_cost_nothing(future):
    latents, _ = future
    spread = torch.randn(3, B, S, H, N, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(disagreement(spread), spread.var(0).mean((2, 3, 4)))
    assert not disagreement(latents.expand(3, -1, -1, -1, -1, -1)).any()
    with pytest.raises(ValueError, match="1 ensemble members cannot disagree"):
        disagreement(latents[None])


def test_smoothness_compares_successive_environment_actions(future):
    latents, actions = future
    each, before = actions.view(B, S, 2 * H, 2), torch.randn(B, 2)
    gaps = [(each[:, :, t + 1] - each[:, :, t]).square().mean(-1) for t in range(2 * H - 1)]
    torch.testing.assert_close(Smoothness(size=2)(latents, actions), sum(gaps) / len(gaps))
    gaps.append((each[:, :, 0] - before[:, None]).square().mean(-1))
    torch.testing.assert_close(
        Smoothness(size=2, before=before)(latents, actions), sum(gaps) / len(gaps)
    )
    assert torch.equal(Smoothness(size=A)(latents, actions[:, :, :1]), torch.zeros(B, S)), (
        "a single action"
    )
    steady = actions[:, :, :1, :2].repeat(1, 1, H, 2)
    assert not Smoothness(size=2)(latents, steady).any()


def test_limits_cost_what_exceeds_them_and_can_be_checked(future):
    latents, actions = future
    matrix, bound = (
        torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]),
        torch.tensor([0.5, 0.2]),
    )
    limits = LinearLimits(matrix=matrix, bound=bound)
    over = (actions[..., 0] + actions[..., 1] - 0.5).clamp(min=0) + (-actions[..., 2] - 0.2).clamp(
        min=0
    )
    torch.testing.assert_close(limits(latents, actions), over.mean(-1))
    inside = torch.tensor([0.25, 0.25, -0.2, 9.0]).expand(B, S, H, A)
    assert not limits(latents, inside).any() and limits(latents, inside + 0.1).all()


def test_all_terms_add_up_and_carry_gradients(future):
    latents, actions = future[0], future[1].requires_grad_()
    moved = latents + actions.sum(-1)[..., None, None]
    terms = (
        (-1.0, Return(reward=lambda latents, actions: latents.mean((-2, -1)))),
        (0.5, ToState(goal=torch.zeros(B, 2), read=lambda latents: latents[..., 0, :2])),
        (2.0, lambda latents, actions: disagreement(torch.stack([latents, 2 * latents]))),
        (0.1, effort), (0.2, Smoothness(size=2)),
        (9.0, LinearLimits(matrix=torch.ones(1, A), bound=torch.zeros(1))),
    )  # fmt: skip
    total = Objective(terms)(moved, actions)
    torch.testing.assert_close(total, sum(weight * term(moved, actions) for weight, term in terms))
    for _, term in terms:
        (slope,) = torch.autograd.grad(term(moved, actions).sum(), actions, retain_graph=True)
        assert torch.isfinite(slope).all() and slope.any()
