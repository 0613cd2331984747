"""Candidates in pieces: the same costs and gradients, never more plans than the bound, and a bound
that is kept."""

import weakref
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_dynamics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepa_wm.core.errors import UserError
from jepa_wm.models.distance import latent_distance
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.cost import MB, in_chunks, plans_within
from jepa_wm.planning.search import search
from jepa_wm.planning.settings import CEM, Gradient
from jepa_wm.planning.terms import ToGoal

TARGET = torch.randn(7, 1, 1, 1, generator=torch.Generator().manual_seed(0))


def bowls(scored, episodes):
    def price(plans, rows):
        assert len(plans) == len(range(*rows.indices(episodes)))
        scored.append(plans.shape[0] * plans.shape[1])
        return (plans - TARGET[:episodes][rows]).square().sum((-2, -1))

    return price


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_costs_and_gradients_are_those_of_one_piece(episodes, samples, most, gradients):
    plans = torch.randn(episodes, samples, 3, 2, generator=torch.Generator().manual_seed(1))
    plans.requires_grad_(gradients)
    whole, pieces = [], []
    expected = bowls(whole, episodes)(plans, slice(0, episodes))
    costs = in_chunks(bowls(pieces, episodes), plans, most=most)
    assert torch.equal(costs, expected)
    assert max(pieces) <= most and sum(pieces) == episodes * samples
    assert len(pieces) <= -(-episodes // max(1, most // samples)) * -(-samples // most), (
        "no more than needed"
    )
    if gradients:
        ours, theirs = (torch.autograd.grad(c.square().sum(), plans)[0] for c in (costs, expected))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [CEM, Gradient])
def test_a_search_in_pieces_is_the_same_search(kind):
    space, generators = ActionSpace((-1.0,) * 2, (1.0,) * 2), [torch.Generator() for _ in range(4)]
    solver = kind(num_samples=37, iterations=4).make(space, 3)
    plans = []
    for most in (10**6, 50, 5):
        for g in generators:
            g.manual_seed(3)
        cost = partial(in_chunks, bowls([], 4), most=most)
        plans.append(search(solver, cost, generator=generators))
    for other in plans[1:]:
        assert torch.equal(plans[0].actions, other.actions) and torch.equal(
            plans[0].trace, other.trace
        )


def test_a_bound_below_one_candidate_is_refused_with_the_remedy():
    assert plans_within(10, 3 * MB) == 3
    with pytest.raises(
        UserError,
        match="planner.mpc.memory_mb 0.5 is below one plan, which takes about 0.8 MB; raise",
    ):
        plans_within(0.5, int(0.8 * MB))


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        list(self._new(args))  # what comes from outside, such as weights, is not counted
        out = func(*args, **(kwargs or {}))
        for storage in self._new(out):
            self.alive += storage.nbytes()
            weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    def _new(self, values):
        for tensor in tree_leaves(values):
            if (
                isinstance(tensor, torch.Tensor)
                and (storage := tensor.untyped_storage()) not in self.known
            ):
                self.known.add(storage)
                yield storage

    def _gone(self, size):
        self.alive -= size


@pytest.fixture
def one_thread():
    """What other threads make, PeakMemory does not see."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("gradients", "precision", "tokens"),
    [
        (False, "fp32", 4), (False, "bf16", 4), (True, "fp32", 4),
        (False, "fp32", 49), (False, "bf16", 49), (True, "fp32", 49),
        (False, "fp32", 256),
    ],
)  # fmt: skip
def test_the_bound_is_kept_by_what_is_alive(gradients, precision, tokens):
    torch.manual_seed(0)
    model = small_dynamics(
        tokens=tokens,
        latent_width=24,
        action_size=4,
        width=64,
        depth=3,
        num_heads=2,
        context_frames=3,
    ).eval()
    context, past, goal = (
        torch.randn(2, 3, tokens, 24),
        torch.randn(2, 2, 4),
        torch.randn(2, tokens, 24),
    )
    rollout = model.rollout if gradients else partial(model.fast_rollout, precision=precision)
    largest = []

    def price(actions, rows):
        largest.append(actions.shape[0] * actions.shape[1])
        term = ToGoal(goal=goal[rows], distance=partial(latent_distance, kind="l2"), mode="all")
        return term(rollout(context[rows], past[rows], actions), actions)

    each, fixed = model.bytes_per_plan(5, gradients=gradients, precision=precision)
    plans = torch.randn(2, 24, 5, 4, requires_grad=gradients)
    results = {}
    for fit in (3, 8, 48):
        bound = (fixed + (fit + 0.5) * each) / MB
        most = plans_within(bound, each, fixed)
        largest.clear()
        with PeakMemory() as memory:
            results[fit] = in_chunks(price, plans, most=most).detach()
        assert max(largest) <= most == fit
        assert memory.peak <= bound * MB, f"{memory.peak / MB:.2f} MB alive, {bound:.2f} allowed"
        if fit == 3:
            assert memory.peak > 0.15 * bound * MB, (
                "an estimate far too safe would waste the machine"
            )
    rounding = 1e-6 if precision == "fp32" else 2e-2
    for fit in (3, 8):
        torch.testing.assert_close(results[fit], results[48], atol=rounding, rtol=rounding)
