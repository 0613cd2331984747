"""Where a search begins: doing nothing is what the world says, and no box's corner is a
beginning."""

import gymnasium
import numpy as np
import pytest
import torch
from planners import planner

from jepa_wm.core.errors import UserError
from jepa_wm.evals.returns import constant_actions
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace, space_of
from jepa_wm.planning.cost import PlanningContext
from jepa_wm.planning.search import RecedingHorizon, search
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.planning.terms import Effort, effort, effortless
from jepa_wm.worlds.gym import GymWorld
from jepa_wm.worlds.two_rooms.world import TwoRooms

BOXES = [(0, 512), (0, 1), (5, 6), (-6, -5), (-0.1, 1), (-3, 0)]
CPU = torch.device("cpu")


def first_error(solver, low, high, *, max_norm=None, idle=None, **settings):
    """The error of the first action, as a share of the box, for targets at a tenth and at nine
    tenths of it."""
    space = ActionSpace((low,) * 2, (high,) * 2, max_norm, idle=idle)
    seeds = [torch.Generator().manual_seed(i) for i in range(20)]
    errors = []
    for share in (0.1, 0.9):
        target = low + share * (high - low)
        plan = search(
            planner(solver, **settings).solver.make(space, 6),
            lambda plans, target=target: ((plans - target) / (high - low)).square().mean((-1, -2)),
            generator=seeds,
        )
        errors.append(float(((plan.actions[:, 0] - target) / (high - low)).norm(dim=-1).mean()))
    return errors


@pytest.mark.parametrize("solver", ["cem", "icem", "mppi", "random", "gradient", "cem_gradient"])
@pytest.mark.parametrize(("low", "high"), BOXES)
def test_any_box_is_searched_as_well_as_a_centred_one(solver, low, high):
    few = {"samples": (128, 4, 16), "descent": (16, 8)}
    centred, errors = first_error(solver, -1, 1, **few), first_error(solver, low, high, **few)
    assert (np.array(errors) < np.array(centred) + 0.02).all(), "idling may even be near"


def test_a_world_that_idles_at_a_side_is_searched_from_the_middle():
    space = ActionSpace((0.0, -1.0), (1.0, 1.0), idle=(0.0, 0.5))
    assert space.idle_step() == (0, 0.5) and space.first_step() == (0.5, 0)
    assert (
        ActionSpace((0.0,), (512.0,)).idle_step()
        == ActionSpace((0.0,), (512.0,)).first_step()
        == (256,)
    )
    assert ActionSpace((-1.0,), (3.0,)).idle_step() == (0,) and ActionSpace(
        (-1.0,), (3.0,)
    ).first_step() == (1,)
    block = ActionSpace.of_block(
        (0.0, -1.0), (1.0, 1.0), block=2, action_repeat=False, idle=(0.0, 0.5)
    )
    assert block.idle_step() == (0, 0.5, 0, 0.5)
    assert max(first_error("cem", 0, 1, idle=(0.0, 0.0), samples=(128, 4, 16))) < 0.15
    for idle in ((0.0,), (0.0, 2.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="is no action of the box"):
            ActionSpace((0.0, -1.0), (1.0, 1.0), idle=idle)


@pytest.mark.parametrize(
    ("low", "high", "reach"), [(0, 1, 1), (0, 100, 1), (-100, 100, 1), (0.2, 3, 1), (0, 1, 9)]
)
def test_a_ball_is_searched_where_it_meets_the_box(low, high, reach):
    space = ActionSpace((float(low),) * 4, (float(high),) * 4, float(reach), 2)
    first = torch.tensor(space.first_step()).view(2, 2)
    assert (first.norm(dim=-1) <= 0.71 * max(reach, 1) + 1e-6).all() and (first >= low).all()
    drawn = first.flatten() + 0.7 * space.half_width(first) * torch.randn(4000, 4)
    cut = ~(space.project(drawn) == drawn).view(4000, 2, 2).all(-1)
    assert cut.float().mean() < 0.75, "most of what is drawn is not all at the sides"
    for plans in (space.project(drawn), space.uniform(torch.rand(4000, 4))):
        groups = plans.view(-1, 2, 2)
        assert (
            (groups.norm(dim=-1) <= reach + 1e-5).all()
            and (groups >= low - 1e-6).all()
            and (groups <= high).all()
        )
    far = torch.tensor([0.9, 0.3] * 2)
    inside = far.norm() / 2**0.5 <= reach and low <= 0.3 and high >= 0.9
    assert not inside or torch.equal(space.project(far), far)


def test_pinned_numbers_stay_pinned_in_a_ball():
    space = ActionSpace((-1.0, 0.6), (1.0, 0.6), 1.0)
    assert (space.project(torch.randn(100, 2) * 9)[:, 1] == 0.6).all()
    assert space.project(torch.tensor([9.0, 9.0])).tolist() == pytest.approx([0.8, 0.6])


class Car(gymnasium.Env):
    """Steers and gives gas; says what idling is where it is told to."""

    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def __init__(self, space, idle=None, meanings=None):
        self.action_space = space
        if idle is not None:
            self.idle_action = idle
        if meanings is not None:
            self.get_action_meanings = lambda: meanings

    def reset(self, *, seed=None, options=None):
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((8, 8, 3), np.uint8), 0.0, False, False, {}


def test_worlds_say_what_doing_nothing_is():
    assert space_of(TwoRooms(), frameskip=2, action_repeat=True).idle == (0, 0)
    box, three = (
        gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([1, 1])),
        gymnasium.spaces.Discrete(3),
    )
    held = {"frameskip": 2, "action_repeat": True}
    assert space_of(GymWorld(lambda: Car(box, [0.5, 0.0])), **held).idle == (0.5, 0)
    silent = space_of(GymWorld(lambda: Car(box)), **held)
    assert silent.idle is None and silent.idle_step() == (0, 0.5)
    assert space_of(GymWorld(lambda: Car(three, 1)), **held).idle == 1
    assert (
        space_of(GymWorld(lambda: Car(gymnasium.spaces.Discrete(3, start=5), 6)), **held).idle == 1
    )
    assert (
        space_of(GymWorld(lambda: Car(three, meanings=["UP", "DOWN", "NOOP"])), **held).idle == 2
    )
    assert (
        space_of(GymWorld(lambda: Car(three, meanings=["UP", "DOWN", "FIRE"])), **held).idle
        is None
    )
    assert space_of(GymWorld(lambda: Car(box, meanings=["NOOP", "FIRE"])), **held).idle is None, (
        "choices it has not"
    )
    for wrong in ([2.0, 0.0], [0.0], 0.0):
        with pytest.raises(UserError, match="idle_action .* is none of the actions"):
            space_of(GymWorld(lambda wrong=wrong: Car(box, wrong)), **held)
    wide = gymnasium.spaces.Box(5, 6, (6,), np.float32)
    assert constant_actions(GymWorld(lambda: Car(wide)))[0].tolist() == [5.5] * 6
    space = DiscreteSpace.of_block(3, block=2, action_repeat=False, idle=2)
    assert space.idle_step() == (0, 0, 1, 0, 0, 1)
    with pytest.raises(ValueError, match="idle 3 is none of the 3 choices"):
        DiscreteSpace.of_block(3, block=2, action_repeat=False, idle=3)


def test_where_actions_are_places_doing_nothing_is_to_stay():
    box = gymnasium.spaces.Box(0, 512, (2,), np.float32)
    space = space_of(
        GymWorld(lambda: Car(box), action_kind="absolute"), frameskip=2, action_repeat=True
    )
    assert (
        space.absolute
        and not space_of(GymWorld(lambda: Car(box)), frameskip=2, action_repeat=True).absolute
    )
    last = torch.tensor([[3.0, 4.0], [500.0, 9.0]])
    there = effort_in(space, last)
    assert there == Effort(size=2, idle=last)
    plans = last[:, None, None].repeat(1, 5, 3, 2)
    assert there(plans, plans).tolist() == [[0] * 5] * 2 and effort(plans, plans).min() > 0
    moved = plans + 2 * torch.ones_like(plans)
    assert there(plans, moved).tolist() == [[4] * 5] * 2
    scored = []

    def cost(plans):
        scored.append(plans)
        return plans.sum((-1, -2))

    for solver in ("cem", "icem", "mppi", "random", "gradient", "cem_gradient", "policy"):
        mpc = RecedingHorizon(planner(solver, samples=(128, 6, 16)).solver.make(space, 3))
        stay = last[:, None]
        mpc.reset([0, 1], device=CPU)
        for _ in range(2):  # without a warm start, and with one
            scored.clear()
            mpc.plan(cost, known=stay.expand(-1, 3, -1))
            tried = (scored[0] == stay.repeat(1, 3, 2)[:, None]).all(-1).all(-1)
            assert tried.any(1).all() or solver == "policy", solver
        assert torch.equal(mpc._left[:, :, -1], mpc._left[:, :, -2])


def effort_in(space, last=None):
    nowhere = {"model": None, "settings": PlannerSettings(), "latents": None, "past": None}
    return effortless(PlanningContext(**nowhere, last_action=last, space=space))


def test_before_any_place_was_gone_to_none_takes_less_effort_than_another():
    space = ActionSpace((0.0, 0.0), (512.0, 512.0), absolute=True)
    plans = torch.rand(2, 5, 1, 2).repeat(1, 1, 3, 2) * 512
    assert effort_in(space)(plans, plans).abs().max() == 0, "each plan stays where it first goes"
    plans[:, 0, 2, 2:] += 10  # the last of six actions
    assert (
        effort_in(space)(plans, plans).tolist()
        == [[pytest.approx(100 / 6, rel=1e-3), 0, 0, 0, 0]] * 2
    )


def test_effort_is_told_from_what_the_world_says_does_nothing():
    plans = torch.tensor([0.5, 0.0]).repeat(2, 4, 3, 2)
    assert (
        effort_in(ActionSpace((0.0, -1.0), (1.0, 1.0), idle=(0.5, 0.0)))(plans, plans).max() == 0
    )
    assert effort_in(ActionSpace((0.0, -1.0), (1.0, 1.0))) is effort and effort_in(None) is effort
    known, unknown = (
        DiscreteSpace.of_block(3, block=2, action_repeat=False, idle=idle) for idle in (1, None)
    )
    choices = known.to_model(torch.eye(3).repeat(1, 2))[
        None, :, None
    ]  # [1, 3, 1, 6]: one choice throughout
    assert effort_in(known)(choices, choices).flatten().tolist() == pytest.approx(
        [2 / 3, 0, 2 / 3]
    )
    assert len(set(effort_in(unknown)(choices, choices).flatten().tolist())) == 1
    assert unknown.idle_step() == (1, 0, 0, 1, 0, 0)


def test_what_a_wrapper_makes_other_actions_of_does_not_say_what_idling_is():
    box, six = (
        gymnasium.spaces.Box(np.float32([0, 0]), np.float32([10, 10])),
        gymnasium.spaces.Discrete(6),
    )
    held = {"frameskip": 1, "action_repeat": True}
    wraps = gymnasium.wrappers
    one = np.float32(1)
    scaled = space_of(
        GymWorld(lambda: wraps.RescaleAction(Car(box, [0.5, 0.5]), -one, one)), **held
    )
    assert scaled.idle is None and scaled.idle_step() == (0, 0)
    for place in (0, 5):
        names = [*"ABCDE"]
        names.insert(place, "NOOP")
        few = GymWorld(
            lambda names=names: wraps.TransformAction(
                Car(six, meanings=names), lambda action: action + 2, gymnasium.spaces.Discrete(2)
            )
        )
        assert space_of(few, **held).idle is None

    class Says(gymnasium.Wrapper):
        idle_action = (1.0, 2.0)

    assert space_of(GymWorld(lambda: Says(Car(box))), **held).idle == (1, 2)
    assert space_of(GymWorld(lambda: wraps.TimeLimit(Car(box, [3.0, 4.0]), 9)), **held).idle == (
        3,
        4,
    )


def test_a_plan_to_stay_is_tried_where_the_solver_keeps_none():
    space, scored = ActionSpace((0.0,), (512.0,), absolute=True), []
    settings = planner("icem", samples=(8, 1, 2), keep_elites=0.0)
    mpc = RecedingHorizon(settings.solver.make(space, 2))
    mpc.reset([0], device=CPU)
    mpc.plan(
        lambda plans: scored.append(plans) or plans.sum((-1, -2)),
        known=torch.full((1, 2, 1), 77.0),
    )
    assert (scored[0] == 77).all(-1).all(-1).any()


def test_a_policy_without_a_proposal_does_nothing():
    space = ActionSpace((0.0,), (1.0,), idle=(0.0,))
    plan = search(
        planner("policy").solver.make(space, 2),
        lambda plans: plans.sum((-1, -2)),
        generator=[torch.Generator()],
    )
    assert plan.actions.flatten().tolist() == [0, 0]
    assert plan.cost.item() == 0
