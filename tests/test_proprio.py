"""Proprioception: what a robot knows of itself and no picture shows is foretold and planned with,
and reaches nothing that a goal image has to be compared by."""

import math
import shutil
import signal

import numpy as np
import pytest
import torch
from planners import planner
from ranks import run_ranks
from safetensors.torch import load_file
from small_models import dynamics_settings

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import Interrupted, UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.supervision import reading_states
from jepa_wm.data.quantities import described
from jepa_wm.data.state_columns import StateColumns
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.evals.episodes import goal_proprio
from jepa_wm.features.cache import Features
from jepa_wm.integrations.stable_worldmodel import CostServer
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import (
    FactoredLatentSettings,
    KeypointLatentSettings,
    RobotTokensSettings,
    StateTokenSettings,
    TokenLatentSettings,
)
from jepa_wm.models.proprioception import Proprioception
from jepa_wm.models.world_model_settings import DistanceSettings, MLPSettings, WorldModelSettings
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.training import loop
from jepa_wm.training.dynamics import make_model
from jepa_wm.world_model.latents import Latents
from jepa_wm.world_model.proprio import proprio_columns, proprio_of
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.tasks import make_task
from jepa_wm.worlds.world import Actions

# ---------------------------------------------------------------- the numbers themselves


def test_numbers_have_mean_0_and_spread_1_and_angles_do_not_leap():
    torch.manual_seed(0)
    values = torch.stack([5 + 3 * torch.randn(500), 180 * (2 * torch.rand(500) - 1)], 1)
    proprio = Proprioception(("m", "deg"), first=2)
    proprio.fit(values)
    numbers = proprio(values)
    assert numbers.shape == (500, 3) and proprio.count == 3 and proprio.size == 2
    assert torch.allclose(numbers.mean(0), torch.zeros(3), atol=1e-5)
    spread = numbers.var(0, correction=0)  # of an angle, both together
    assert torch.allclose(torch.stack([spread[0], spread[1:].mean()]), torch.ones(2), atol=1e-5)
    turned = torch.tensor([[5.0, 179.99], [5.0, -179.99], [5.0, 0.0]])
    near, far = (proprio(turned)[[0, 0], :] - proprio(turned)[[1, 2], :]).norm(dim=-1)
    assert near < 1e-3 < far
    never = Proprioception(("",), first=0)
    never.fit(torch.full((9, 1), 7.0))
    assert float(never(torch.tensor([7.0]))) == 0


def test_what_hardly_varied_does_not_outweigh_all_else():
    torch.manual_seed(0)
    # The cosine of a small angle varies far less than its sine; one at rest only by rounding.
    values = torch.stack([0.01 * torch.randn(500), torch.pi / 2 + 1e-6 * torch.randn(500)], 1)
    proprio = Proprioception(("rad", "rad"), first=0)
    proprio.fit(values)
    numbers = proprio(values).abs().amax(0)
    assert 1 < numbers[1] < 6 and numbers[0] < 0.2 and (numbers[2:] < 1e-4).all()
    # A joint at rest but for noise that moves when plans are made.
    rest = Proprioception(("m",), first=0)
    rest.fit(1e-9 * torch.randn(500, 1))
    assert float(rest(torch.tensor([0.1]))) == 10


def test_an_angle_counts_as_one_number_of_a_cost():
    torch.manual_seed(0)
    proprio = Proprioception(("m", "rad", "m"), first=0)
    values = torch.randn(5000, 3) * torch.tensor([2.0, 30.0, 0.1])  # the angle points anywhere
    proprio.fit(values)
    apart = (proprio(values[::2]) - proprio(values[1::2])) / proprio.spread
    lift, cosine, sine, grip = (apart.square() / 4).mean(0)  # [Z], a share of the mean each
    for share in (lift, cosine + sine, grip):
        assert share * 3 == pytest.approx(2.0, rel=0.08), "of three numbers, not of four"


def test_a_name_that_two_numbers_have_is_refused():
    known, units = ("arm angle", "gripper", "gripper"), ("rad ", "-", "m / s")
    read = StateColumns.named(["arm_angle"], known, units, whose="this")
    assert (read.ids, read.units) == ((0,), ("rad",))
    with pytest.raises(UserError, match="'gripper', which 2 numbers of the state of this"):
        StateColumns.named(["gripper"], known, units, whose="this")


def test_principal_components_leave_out_proprioception(data, knowing, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_wm.models.latent_model.MANY", 4)
    shutil.copytree(knowing[0] / "features", tmp_path / "run" / "features")
    words = ["latent={name: tokens}", "latent.proprio=[height]"]
    result = learned(data, tmp_path / "run", *words, "train.dynamics.steps=3")
    assert LatentModel.load(tmp_path / "run" / "dynamics").components is not None
    assert all(math.isfinite(row["relative_error"]) for row in result["rollout"])


def test_they_stand_behind_what_the_picture_shows_in_every_token():
    proprio = Proprioception(("", ""), first=1)
    latents, values = torch.arange(12.0).view(2, 2, 3), torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    joined = proprio.joined(latents, values)
    assert joined[1].tolist() == [[6, 4, 5, 7, 8], [9, 4, 5, 10, 11]]
    assert torch.equal(proprio.left_out(joined), latents)
    assert torch.equal(proprio.of(joined), values)
    assert proprio.of(proprio.joined(latents, None)).isnan().all()


# ---------------------------------------------------------------- every latent, all dynamics

KINDS = {
    "factored": FactoredLatentSettings(dynamic_dim=3, static_dim=2, components=6, width=8),
    "keypoints": KeypointLatentSettings(dynamic_points=2, static_points=1, map_channels=2),
    "state_token": StateTokenSettings(dim=3, static_dim=2),
    "tokens": TokenLatentSettings(),
}
UNITS = ("m", "rad")


def models(kind, how=None):
    """(latent model with a length and an angle as proprioception, the same without)."""
    distance = DistanceSettings(groups=2, components=2, width=8)
    made = []
    for names, units in ((("lift", "turn"), UNITS), ((), ())):
        torch.manual_seed(0)
        settings = WorldModelSettings(
            latent=KINDS[kind].model_copy(update={"proprio": names}),
            dynamics=how or MLPSettings(width=8, context_frames=2), distance=distance,
        )  # fmt: skip
        made.append(LatentModel(9, 8, 2, settings, proprio_units=units).eval())
    made[1].latent.load_state_dict(
        {k: v for k, v in made[0].latent.state_dict().items() if not k.startswith("proprio.")}
    )
    made[1].distance.load_state_dict(made[0].distance.state_dict())
    return made


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_any_latent_carries_it_and_goals_are_compared_without(kind):
    model, plain = models(kind)
    frames, values = torch.randn(4, 9, 8), torch.randn(4, 2)
    latents, own = model.latent.encode(frames, values), plain.latent.encode(frames)
    assert latents.shape[-1] == own.shape[-1] + 3 == model.latent.shape.width
    assert model.latent.dynamic_dim == plain.latent.dynamic_dim + 3
    assert torch.equal(model.latent.visual(latents), own)
    assert torch.equal(model.latent.static_of(latents), plain.latent.static_of(own))
    angle = torch.stack([values[:, 1].cos(), values[:, 1].sin()], 1)
    torch.testing.assert_close(model.latent.proprio.of(latents)[:, 1:], angle)
    # What a goal image is compared by is the same to the bit, and knows no number of it.
    image = model.latent.encode(frames)
    for read in (lambda m, x: m.latent.compared(x), lambda m, x: m.flat(x),
                 lambda m, x: m.distance_input(x, m.map_field(x)),
                 lambda m, x: m.policy_input(x, m.map_field(x))):  # fmt: skip
        assert torch.equal(read(model, latents), read(plain, own))
        assert torch.equal(read(model, image), read(plain, own))
    shifted = model.latent.perturbations(latents, 0.1)
    assert len(shifted) == len(plain.latent.perturbations(own, 0.1))
    assert all(torch.equal(model.latent.proprio.of(x), model.latent.proprio.of(latents))
               for x in shifted)  # fmt: skip


@pytest.mark.parametrize("components", [0, 2, None])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_cached_rollout_with_it_equals_the_uncached_one(kind, components):
    if components is None:
        how = MLPSettings(width=8, context_frames=2)
    elif kind == "keypoints":
        return pytest.skip("a transformer reads no token map")
    else:
        how = dynamics_settings(components, width=8, depth=1, num_heads=1, context_frames=2)
    model, _ = models(kind, how)
    for p in model.dynamics.parameters():
        torch.nn.init.normal_(p, std=0.3)
    context = model.latent.encode(torch.randn(2, 3, 9, 8), torch.randn(2, 3, 2))
    past, plans = torch.randn(2, 2, model.block), torch.randn(2, 2, 4, model.block)
    imagined = model.dynamics.fast_rollout(context, past, plans)
    for s in range(2):
        latents, taken = context, past
        for h in range(4):
            taken = torch.cat([taken, plans[:, s, h : h + 1]], 1)
            latents = torch.cat([latents, model.dynamics(latents, taken)[:, -1:]], 1)
        torch.testing.assert_close(imagined[:, s], latents[:, 3:], atol=1e-4, rtol=1e-4)
    foretold = model.latent.proprio.of(imagined)
    assert (foretold - model.latent.proprio.of(context)[:, None, -1:]).abs().amin() > 0


# ---------------------------------------------------------------- a lift that no picture shows

NAMES, ABOUT = ("place", "height", "secret"), {"place": "m", "height": "m", "secret": "m"}
WORDS = [
    "data.image_size=24",
    "encoder={patch_size: 8, width: 24, depth: 1, num_heads: 2}",
    "jepa={patch_init: normal, num_heads: 1, width: 24}",
    "features={stride: 2, num_norm_frames: 100}",
    "latent={name: factored, dynamic_dim: 1, static_dim: 0, components: 8, width: 32}",
    "dynamics={name: mlp, frameskip: 2, context_frames: 1, width: 48, depth: 2}",
    "distance={groups: 2, components: 2, width: 8}",
    "train.pretrain.steps=0",
    "train.latent={steps: 60, batch: 32, frames: 4, lr: 3.0e-3, warmup: 5, save_every: 25}",
    "train.dynamics={steps: 250, batch: 64, frames: 4, lr: 5.0e-3, warmup: 5, save_every: 100}",
    "train.distance={steps: 20, batch: 16, frames: 8, warmup: 5}",
    "train.heads.steps=5",
    "planner.mpc.also_evaluate=[]",
    "train.precision=fp32",
]
SPACE = ActionSpace.of_block([-0.1] * 2, [0.1] * 2, block=2, action_repeat=True)


class Lift:
    """A cart whose place the picture shows; it carries a lift, whose height it does not."""

    action_space = Actions(np.full(2, -0.1, np.float32), np.full(2, 0.1, np.float32))
    state_names, state_units = NAMES, ("m", "m", "m")

    def __init__(self, state):
        self.now = np.array(state, np.float32)

    def __len__(self):
        return len(self.now)

    def step(self, action):
        self.now[:, :2] = (self.now[:, :2] + action).clip(0, 1)

    def render(self):
        frames = np.zeros((len(self), 24, 24, 3), np.uint8)
        for frame, column in zip(frames, (16 * self.now[:, 0]).astype(int), strict=True):
            frame[8:16, column : column + 8] = 255
        return frames

    def state(self):
        return self.now.copy()


def record(path, count, seed):
    r = np.random.default_rng(seed)
    columns = {"pixels": ((24, 24, 3), "u1"), "action": ((2,), "f4"), "state": ((3,), "f4")}
    writer = TrajectoryWriter(path, np.full(count, 20), columns)
    for row in writer.offset:
        world = Lift([[*r.uniform(0, 1, 2), r.normal()]])
        for t in range(20):
            action = r.uniform(-0.1, 0.1, (1, 2)).astype(np.float32)
            for name, values in (("pixels", world.render()), ("action", action),
                                 ("state", world.state())):  # fmt: skip
                writer.write(name, int(row) + t, values)
            world.step(action)
    writer.close(**described(NAMES, list(ABOUT.values())))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("lift")
    for part, count, seed in (("train", 40, 0), ("heldout", 12, 1)):
        record(root / f"{part}.h5", count, seed)
    return root


def learned(data, folder, *words):
    """The result of the dynamics stage."""
    config = load_config("debug", [f"data.path={data}", *WORDS, *words])
    with Run.open(folder, config) as run:
        for stage in ("collect", "features"):
            run_stage(stage, run)
        return run_stage("dynamics", run)


KNOWS = "latent.proprio=[height]"


@pytest.fixture(scope="module")
def knowing(data, tmp_path_factory):
    """(run folder, result) of a model that reads the height of the lift."""
    folder = tmp_path_factory.mktemp("knowing") / "run"
    return folder, learned(data, folder, KNOWS)


def test_what_no_picture_shows_is_foretold_with_it_and_not_without(data, knowing, tmp_path):
    folder, result = knowing
    blind = learned(data, tmp_path / "run", "latent.proprio=[]")
    height, unseen = (one["rollout"][2]["state_errors"]["height"] for one in (result, blind))
    assert height["error"] < 0.08 and unseen["error"] > 2 * height["error"], (height, unseen)
    assert unseen["error"] > 0.15, "about the mean distance of a height from their mean"
    # The state's other numbers stay out of the model.
    secret = result["rollout"][2]["state_errors"]["secret"]["error"]
    assert secret > 0.5 * blind["rollout"][2]["state_errors"]["secret"]["error"]
    assert result["states_read"] == ["height"] and "states_read" not in blind
    assert "reads states as proprioception (height)" in reading_states(result)
    assert reading_states(blind) == ""
    model = LatentModel.load(folder / "dynamics")
    heights = Trajectories(data / "train.h5").states()[:, 1]
    assert float(model.latent.proprio.centre) == pytest.approx(heights.mean(), rel=1e-4)
    assert float(model.latent.proprio.scale) == pytest.approx(heights.std(), rel=1e-4)


def test_stopped_and_resumed_is_the_same_to_the_bit(data, knowing, tmp_path, monkeypatch):
    original, taken = loop._one_step, []

    def stopping(*args):
        taken.append(1)
        if len(taken) in (30, 200, 320):
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(loop, "_one_step", stopping)
    for _ in range(3):
        with pytest.raises(Interrupted):
            learned(data, tmp_path / "run", KNOWS)
    learned(data, tmp_path / "run", KNOWS)
    files = (f / "dynamics" / "latent_model.safetensors" for f in (tmp_path / "run", knowing[0]))
    first, second = (file.read_bytes() for file in files)
    assert first == second


@pytest.mark.parametrize(
    "latent",
    [
        "{name: keypoints, dynamic_points: 2, static_points: 1, map_channels: 2}",
        "{name: state_token, dim: 3, static_dim: 2}",
        "{name: tokens}",
    ],
)
def test_every_latent_is_trained_with_it(data, knowing, tmp_path, latent):
    shutil.copytree(knowing[0] / "features", tmp_path / "run" / "features")
    words = [f"latent={latent}", "latent.proprio=[height]", "train.latent.steps=4"]
    result = learned(data, tmp_path / "run", *words, "train.dynamics.steps=6")
    model = LatentModel.load(tmp_path / "run" / "dynamics")
    train = Trajectories(data / "train.h5")
    heights = model.latent.proprio(torch.from_numpy(train.states()[:, 1:2]))
    features, _ = Features.both_of_run(tmp_path / "run", str(data))
    read = Latents(model, features).at(np.array([3, 5]), np.array([0, 4]))
    torch.testing.assert_close(model.latent.proprio.of(read), heights[[60, 104]])
    assert all(math.isfinite(row["relative_error"]) for row in result["rollout"])


def test_two_ranks_train_what_one_does(data, knowing, tmp_path):
    few = [f"train.{part}.steps=3" for part in ("dynamics", "distance")]
    words = [*WORDS, "latent={name: state_token, dim: 3, static_dim: 2, proprio: [height]}", *few]
    words = [f"data.path={data}", *words]
    weights = []
    for name, fsdp in (("alone", None), ("ranks", "true")):
        folder = tmp_path / name
        shutil.copytree(knowing[0] / "features", folder / "features")
        line = ["dynamics", "--config", "debug", "--run", str(folder), *words]
        if fsdp is None:
            assert cli.main(line) == 0
        else:
            line += [f"train.parallel.fsdp={fsdp}"]
            assert run_ranks(2, line, tmp_path / "meet", log=tmp_path / "log") == [0, 0]
        weights.append(load_file(folder / "dynamics" / "latent_model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=1e-3, msg=name)
    for name in ("latent.proprio.centre", "latent.proprio.scale"):
        assert torch.equal(weights[0][name], weights[1][name])


# ---------------------------------------------------------------- acting

PLAN = {"objective": "l1", "also_evaluate": (), "horizon": 3, "samples": (64, 4, 8)}
START, GOAL = [[0.5, 0.2, 0.0]], [[0.5, 0.8, 0.0]]


def agent_of(folder, world, **plan):
    model = WorldModel.load(folder)
    return Agent(model, SPACE, planner(**PLAN | plan), proprio=proprio_of(model, world))


def height_after(folder, goal_proprio, **plan):
    """Of the lift, after four decisions toward a goal that differs in its height alone."""
    world = Lift(START)
    agent = agent_of(folder, world, **plan)
    agent.reset(Lift(GOAL).render(), seeds=[0], goal_proprio=goal_proprio)
    for _ in range(4):
        for action in agent.act(world.render()).swapaxes(0, 1):
            world.step(action)
    return float(world.now[0, 1])


def test_goals_that_carry_it_are_reached_in_it_and_images_alone_are_goals_too(knowing):
    folder, high = knowing[0], np.array([[0.8]], np.float32)
    assert height_after(folder, high, proprio=1.0, steps="last") > 0.6
    # It is a cost where it is asked for, and nowhere else.
    assert height_after(folder, high) == height_after(folder, None)
    with pytest.raises(UserError, match=r"compares height with the goal's, and the goal is an im"):
        height_after(folder, None, proprio=1.0)


def test_an_agent_learns_of_no_other_number_of_the_state(knowing):
    world = Lift([[0.3, 0.6, 5.0], [0.1, 0.2, 7.0]])
    model = WorldModel.load(knowing[0])
    read = proprio_of(model, world)
    assert read().tolist() == world.now[:, 1:2].tolist()
    plans = []
    for secret in (5.0, -5.0):
        world = Lift([[0.3, 0.6, secret]])
        agent = agent_of(knowing[0], world)
        agent.reset(Lift(GOAL).render(), seeds=[0])
        plans.append(agent.act(world.render()))
    assert np.array_equal(*plans)


def test_what_an_agent_lacks_is_said_with_what_to_do(knowing):
    model, world = WorldModel.load(knowing[0]), Lift(START)
    agent = Agent(model, SPACE, planner(**PLAN))
    agent.reset(world.render(), seeds=[0])
    with pytest.raises(
        UserError, match=r"reads 1 finite numbers .*\(height\).*give Agent proprio"
    ):
        agent.act(world.render())
    agent = agent_of(knowing[0], world)
    with pytest.raises(UserError, match=r"was given \[1, 2\].*goal_proprio="):
        agent.reset(world.render(), seeds=[0], goal_proprio=np.zeros((1, 2)))
    frames = torch.from_numpy(world.render())
    with pytest.raises(ValueError, match="frames without proprioception tell no future"):
        model.imagine(model.encode(frames)[:, None], torch.zeros(1, 0, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(
        UserError, match=r"hands over pictures alone; train with latent.proprio=\["
    ):
        CostServer(model, planner(**PLAN))


# ---------------------------------------------------------------- names and units


def test_names_that_are_not_there_are_refused_before_any_training(data, tmp_path):
    words = [f"data.path={data}", *WORDS, "latent.proprio=[heigth]"]
    message = r"latent.proprio names 'heigth', which is no number of the state of .*train.h5 "
    message += r"\(nearest: height; there: .*; name one of these, or set latent.proprio=\[\]"
    with Run.open(tmp_path / "run", load_config("debug", words)) as run:
        with pytest.raises(UserError, match=message):
            run_stage("collect", run)
        features = type("Features", (), {})()
        features.data, features.tokens = (
            Trajectories(data / "train.h5"),
            lambda *_: torch.ones(1, 9, 8),
        )
        settings = WorldModelSettings(latent=FactoredLatentSettings(proprio=("heigth",)))
        with pytest.raises(UserError, match=message):
            make_model(settings, features)
    words = ["latent.proprio=[agent_z]", "collect={episodes: 2, heldout_episodes: 2}"]
    with (
        Run.open(tmp_path / "rooms", load_config("debug", words)) as run,
        pytest.raises(UserError, match="of the world two_rooms .*nearest: agent_[xy]"),
    ):
        run_stage("collect", run)
    assert not list((tmp_path / "rooms" / "collect").glob("*.h5")), "nothing was collected"


def test_a_file_whose_names_are_not_one_a_number_is_refused(tmp_path):
    columns = {"pixels": ((2, 2, 3), "u1"), "action": ((1,), "f4"), "state": ((3,), "f4")}
    for about, message in (
        ({"state_names": "a b"}, "the state has 3 numbers, state_names 2"),
        ({"state_names": "a b c", "state_units": "m m"}, "state_units 2; convert the data again"),
    ):
        writer = TrajectoryWriter(tmp_path / "odd.h5", np.full(1, 2), columns)
        for name, (shape, dtype) in columns.items():
            writer.write(name, 0, np.zeros((2, *shape), dtype))
        writer.close(**about)
        with pytest.raises(UserError, match=message):
            StateColumns.of_data(("a",), Trajectories(tmp_path / "odd.h5"))
        assert StateColumns.of_data((), Trajectories(tmp_path / "odd.h5")).names == ()


def test_a_world_without_the_number_or_with_another_unit_is_refused(knowing):
    model = WorldModel.load(knowing[0])
    other = type("Other", (Lift,), {"state_names": ("place", "width", "secret")})(START)
    with pytest.raises(
        UserError, match="names 'height', which is no number of the state of the w"
    ):
        proprio_of(model, other)
    feet = type("Feet", (Lift,), {"state_units": ("m", "ft", "m")})(START)
    with pytest.raises(UserError, match="'height' is in ft in the world, and the model was train"):
        proprio_columns(model, feet)
    unknown = type("Unknown", (Lift,), {"state_units": ()})(START)
    assert proprio_columns(model, unknown) == StateColumns(("height",), (1,), ("",))


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("debug", ["planner.cost.proprio=1"], "compares what latent.proprio names, which is noth"),
        ("debug", ["latent.proprio=[a, b, a]"], "latent.*proprio.*names one twice; leave it out"),
        ("vjepa2_ac_droid", ["latent.proprio=[a]"], r"the whole state.*set latent.proprio=\[\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, words, message):
    with pytest.raises(UserError, match=message):
        load_config(config, words)


def test_tasks_whose_goals_are_worlds_carry_the_named_numbers_and_others_none():
    config = load_config("debug", ["latent.proprio=[agent_x, agent_y]"])
    task = make_task(config.world, None)
    episodes = task.sample(3, 0)
    model = type("Model", (), {})()
    model.latent_model = type("Parts", (), {})()
    model.latent_model.settings, model.latent_model.proprio_units = config, ("px", "px")
    carried = goal_proprio(model, task, episodes)
    assert np.allclose(carried, episodes.goal) and carried.shape == (6, 2)
    images = type("Images", (), {"name": "images"})()
    with pytest.raises(UserError, match="goals of the task images are images alone"):
        goal_proprio(model, images, episodes)


def test_results_name_what_of_the_state_is_read():
    assert TokenLatentSettings().read_states == ()
    assert TokenLatentSettings(proprio=("height",)).read_states == ("height",)
    assert RobotTokensSettings().read_states == ("pose",)
