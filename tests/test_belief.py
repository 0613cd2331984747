"""What is believed of static numbers, and what training is given, comes from frames that an agent
could have seen."""

import numpy as np
import pytest
import torch
from small_models import small_latent_model

from jepa_wm.config import load_config
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.models.latent import Latent, running_mean
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import (
    FactoredLatentSettings,
    KeypointLatentSettings,
    TokenLatentSettings,
)
from jepa_wm.models.world_model_settings import DistanceSettings, MLPSettings, WorldModelSettings
from jepa_wm.training import dynamics, samples
from jepa_wm.training.settings import TrainDistance
from jepa_wm.world_model import rollout_error as rollout_errors
from jepa_wm.world_model.latents import Latents, fast_step

LENGTHS = [31, 26, 12, 31]
SKIP = 4


class Store:
    """Features in memory, as `features.cache.Features` hands them out: N = 4 tokens of width 6."""

    def __init__(self, data, stride):
        self.data, self.stride, self.numbers = data, stride, 24
        self.counts = -(-data.lengths // stride)
        self._first = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        g = torch.Generator().manual_seed(3)
        self.store = torch.randn(int(self.counts.sum()), 4, 6, generator=g).bfloat16()

    def __len__(self):
        return len(self.store)

    def index(self, episode, frame):
        return self._first[episode] + frame // self.stride

    def tokens(self, episode, frame):
        return self.store[torch.from_numpy(self.index(episode, frame))]

    def rows(self, rows):
        return self.store[torch.from_numpy(rows)]

    def slab(self, first, last):
        return self.store[first:last]

    def changed_after(self, frame):
        """The same with all frames after number `frame` of every episode changed."""
        other = Store(self.data, self.stride)
        for first, count in zip(self._first, self.counts, strict=True):
            later = int(first) + frame // self.stride + 1
            other.store[later : int(first + count)] += 5
        return other


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows, r = sum(LENGTHS), np.random.default_rng(0)
    columns = {
        "pixels": ((2, 2, 3), "u1"),
        "action": ((2,), "f4"),
        "state": ((2,), "f4"),
        "reward": ((), "f4"),
    }
    writer = TrajectoryWriter(
        tmp_path_factory.mktemp("belief") / "train.h5", np.array(LENGTHS), columns
    )
    writer.write("pixels", 0, np.zeros((rows, 2, 2, 3), "u1"))
    for name, size in (("action", (rows, 2)), ("state", (rows, 2)), ("reward", (rows,))):
        writer.write(name, 0, r.normal(size=size).astype("f4"))
    writer.close(state_groups="agent:0,1")
    return Trajectories(writer.path)


def latent_model(static=3, **changes):
    torch.manual_seed(0)
    latent = TokenLatentSettings()
    if static is not None:
        latent = FactoredLatentSettings(
            dynamic_dim=2, static_dim=static, components=6, width=16, static_frames=3
        )
    sizes = {"frameskip": SKIP, "context_frames": 3, **changes}
    model = small_latent_model(latent, tokens=4, token_width=6, **sizes)
    if static is not None:
        model.latent.components.fit(torch.randn(40, 4, 6))
    return model.eval()


def test_a_running_belief_is_the_mean_of_what_an_agent_has_read():
    readings = torch.randn(11, 1, 3)
    every = running_mean(readings)
    for t in range(11):
        torch.testing.assert_close(every[t], readings[: t + 1].mean(0))
        torch.testing.assert_close(
            running_mean(readings, every=4)[t], readings[t % 4 : t + 1 : 4].mean(0)
        )
    latent, goal = Latent(1, 2, 3), torch.randn(1, 5)
    start = torch.cat([torch.randn(1, 2), every[4]], -1)
    believed = latent.believed_with_goal(start[None], torch.tensor([5]), goal[None])
    expected = torch.cat([readings[:5], goal[None, :, 2:]]).mean(0)
    torch.testing.assert_close(believed[:, 0, :, 2:], expected.expand(2, 1, 3))
    assert torch.equal(believed[0, 0, :, :2], start[:, :2])
    assert running_mean(torch.zeros(5, 1, 0)).shape == (5, 1, 0)


@pytest.mark.parametrize(("static", "components"), [(3, 0), (3, 2), (0, 0), (None, 0)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_no_later_frame_is_in_what_is_given_of_an_earlier_one(data, stride, static, components):
    model, features = latent_model(static, mixture_components=components), Store(data, stride)
    last = 4
    one, other = (Latents(model, some) for some in (features, features.changed_after(last)))
    episode, frame = (
        np.repeat(np.arange(4), last // stride + 1),
        np.tile(np.arange(0, last + 1, stride), 4),
    )
    assert torch.equal(one.at(episode, frame), other.at(episode, frame))
    later = np.full_like(frame, 8)
    assert not torch.equal(one.at(episode, later), other.at(episode, later))
    believed, again = (x.at(episode, later, belief_at=frame) for x in (one, other))
    assert torch.equal(
        model.latent.static_of(believed), model.latent.static_of(one.at(episode, frame))
    )
    assert torch.equal(model.latent.static_of(believed), model.latent.static_of(again))


@pytest.mark.parametrize("stride", [1, 4])
def test_static_numbers_on_the_way_to_a_goal_are_those_of_an_agent(data, stride):
    """The mean of what it read in the frames it saw, a model step apart, and in the goal image."""
    model, features = latent_model(), Store(data, stride)
    latents = Latents(model, features)
    with torch.no_grad():
        own = model.latent.static_of(model.latent.encode(features.store))
    first, goal = 8, 8 + 2 * stride
    episode, ends = np.array([0, 1]), np.array([[first, first], [goal, goal]])
    pair = latents.flat_together(episode, ends.T, *ends).transpose(0, 1)
    assert pair.shape == (2, 2, 5)
    for i, e in enumerate((0, 1)):
        seen = [int(features.index(np.array(e), np.array(f))) for f in (0, 4, 8, goal)]
        torch.testing.assert_close(pair[:, i, 2:], own[seen].mean(0).expand(2, -1))

    # What is read of another episode's frame is its dynamic numbers alone.
    of, frames = np.array([[0, 2], [1, 3]]), np.array([[first, 24]] * 2)
    beside = latents.together(episode, frames, *ends, of=of)
    assert torch.equal(beside[:, 1, 0, 2:], pair[0, :, 2:])
    others = latents.at(of[:, 1], frames[:, 1])
    assert torch.equal(beside[:, 1, :, :2], others[..., :2])

    # Frames of an episode together: all as an agent believes that stands at one of them.
    frames = np.array([[0, first, goal, 24], [first, first, goal, 24]])
    both = latents.together(np.array([0, 1]), frames, *np.array([[first] * 2, [goal] * 2]))
    torch.testing.assert_close(both[:, 1:3, 0], pair.transpose(0, 1))
    assert torch.equal(both[..., 2:], both[:, :1, :, 2:].expand(2, 4, 1, 3))
    alone = latents.at(np.array([0, 1]), np.array([24, 24]))
    assert torch.equal(both[:, 3, :, :2], alone[..., :2])


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("static", [3, 0, None])
def test_a_path_is_how_far_a_latent_moved_in_fast_steps(data, stride, static):
    model, features = latent_model(static), Store(data, stride)
    path = Latents(model, features).path().numpy()
    with torch.no_grad():
        numbers = model.latent.encode(features.store)[..., : model.latent.dynamic_dim].flatten(1)
    each = np.split(path, np.cumsum(features.counts)[:-1])
    whole, every = [], SKIP // stride
    for way, episode in zip(each, numbers.split(features.counts.tolist()), strict=True):
        known = [*range(0, len(episode) - 1, every), len(episode) - 1]
        moved = episode[known].diff(dim=0).norm(dim=1).numpy()
        assert way[0] == 0 and (np.diff(way) >= 0).all()
        np.testing.assert_allclose(np.diff(way[: every + 1]), way[every] / every, rtol=1e-6)
        whole.append(moved / np.diff(way[known]))
    unit = np.concatenate(whole)
    np.testing.assert_allclose(unit, unit[0], rtol=1e-4)
    steps = np.concatenate([np.diff(way[::every]) for way in each])
    assert steps.max() > 1 - 1e-6 and steps[steps < 1 + 1e-6].sum() / steps.sum() > 0.7


def test_a_fast_step_is_a_movers_however_often_it_stands_still():
    r = np.random.default_rng(0)
    moving = r.uniform(0.1, 0.3, 300)
    fast = fast_step(moving)
    assert 0.27 < fast < 0.3
    still = np.abs(r.normal(0, 1e-3, 9700))
    assert abs(fast_step(np.concatenate([moving, still])) - fast) < 0.03
    assert fast_step(np.zeros(9)) == fast_step(np.zeros(0)) == 1


@pytest.mark.parametrize("static", [3, None])
@pytest.mark.parametrize("measure", ["steps", "path"])
def test_ranks_draw_together_what_one_process_draws_for_the_distance(data, measure, static):
    model = latent_model(static)
    model.distance.settings = model.distance.settings.model_copy(update={"measure": measure})
    settings = TrainDistance(batch=8, frames=5)
    task = dynamics.distance_task(model, Latents(model, Store(data, 2)), settings, 0, "fp32")
    with torch.no_grad():
        whole, *parts = (
            task.losses(3, part)["loss"] for part in (slice(0, 8), slice(0, 4), slice(4, 8))
        )
        other = task.losses(4, slice(0, 8))["loss"]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    assert parts[0] != parts[1] and other != whole


def config_for(**changes):
    words = {"frames": 3, "batch": 64, **changes}
    training = ", ".join(f"{name}: {value}" for name, value in words.items())
    return load_config(
        "debug",
        [
            f"dynamics.frameskip={SKIP}",
            "features.stride=2",
            "train.precision=fp32",
            f"train.dynamics={{{training}}}",
        ],
    )


@pytest.mark.parametrize("map_channels", [0, 3])
def test_points_of_what_is_constant_are_held_and_a_map_is_trained(data, map_channels):
    """With the dynamics the map alone is trained of a latent; what was trained before stays."""
    latent = KeypointLatentSettings(
        dynamic_points=1, static_points=2, static_frames=3, map_channels=map_channels
    )
    sizes = WorldModelSettings(
        latent=latent,
        dynamics=MLPSettings(frameskip=SKIP, context_frames=3, width=16),
        distance=DistanceSettings(groups=2, components=2, width=8),
    )
    model = LatentModel(4, 6, 2, sizes)
    features, settings = Store(data, 2), config_for().train.dynamics
    frames = dynamics.Frames(model, features)
    frames.hold_known()
    episode, frame = np.array([0, 1, 3]), np.array([2, 4, 30])
    with torch.no_grad():
        own = model.latent.encode(features.tokens(episode, frame))
    assert own.shape[-1] == 2 + 4 + 4 * map_channels
    assert torch.equal(frames.dynamic(episode, frame), own[..., :2])
    torch.testing.assert_close(frames.static(episode, frame), own[..., 2:])

    sampler = dynamics.windows(features, model.settings, 0, settings.frames, "dynamics")
    task = dynamics.dynamics_task(model, frames, sampler, settings, "fp32")
    task.losses(0, slice(None))["loss"].backward()
    learned = {name for name, p in model.latent.named_parameters() if p.grad is not None}
    trained = {id(p) for p in task.model.parameters()} - {
        id(p) for p in model.dynamics.parameters()
    }
    named = {name for name, p in model.latent.named_parameters() if id(p) in trained}
    assert learned == named and bool(named) == bool(map_channels)
    assert all(name.startswith("static.") for name in named)


@pytest.mark.parametrize("context", [1, 2])
def test_dynamics_training_reads_what_is_static_before_what_it_foretells(
    data, monkeypatch, context
):
    model, settings = latent_model(rollout_context=context), config_for().train.dynamics
    given = []
    monkeypatch.setattr(
        LatentModel, "dynamics_losses", lambda self, latents, *_, **__: given.append(latents) or {}
    )
    chosen = []
    sample = dynamics.WindowSampler.batch

    def batch(self, *args):
        chosen.append(sample(self, *args))
        return chosen[-1]

    monkeypatch.setattr(dynamics.WindowSampler, "batch", batch)
    plain = Store(data, 2)
    for features in (plain, plain.changed_after(4)):
        frames = dynamics.Frames(model, features)
        # What is found in the data as a whole is the same for both.
        model.latent.components.fit(plain.store)
        frames._held = model.latent.components(features.store)
        frames.hold_known()
        sampler = dynamics.windows(features, model.settings, 0, settings.frames, "dynamics")
        task = dynamics.dynamics_task(model, frames, sampler, settings, "fp32")
        for step in range(4):
            task.losses(step, slice(None))
    first = np.concatenate([frame[:, 0] for _, frame, _ in chosen[:4]])
    one, other = (torch.cat(given[k : k + 4]) for k in (0, 4))
    early = torch.from_numpy(first <= 4)
    assert 20 < early.sum() < len(early) - 20
    static = [model.latent.static_of(x) for x in (one, other)]
    assert torch.equal(static[0][early], static[1][early]) and not torch.equal(
        static[0], static[1]
    )
    assert not torch.equal(one[early], other[early]), "the frames to be foretold did change"
    assert (static[0] == static[0][:, :1]).all()


@pytest.mark.filterwarnings("ignore:.*episodes are left out")
def test_rollouts_are_judged_with_what_an_agent_believes_there(data, monkeypatch):
    model, features = latent_model(), Store(data, 2)
    given = []

    def rollout_one(context, past, actions):
        given.append(context)
        return context[:, -1:].repeat(1, actions.shape[1], 1, 1)

    monkeypatch.setattr(model.dynamics, "rollout_one", rollout_one)
    found = []
    for held in (features, features.changed_after(8)):
        rows = rollout_errors.rollout_errors(model, held, features, windows=40)
        assert len(rows) == (31 - 1) // SKIP - model.context_frames + 1, (
            "one short episode does not shorten them all"
        )
        found.append(given[-1])
    starts = rollout_errors.WindowSampler(
        data, frames=len(rows) + 3, frameskip=SKIP, stride=2, seed=0, setting=""
    ).batch(0, 40)[1][:, 0]  # fmt: skip
    whole = torch.from_numpy(starts == 0)  # whose context ends at frame 8
    assert whole.any() and torch.equal(found[0][whole], found[1][whole])
    static = model.latent.static_of(found[0])
    assert (static == static[:, :1]).all()


def head_samples(data, model, stride, terminated=None):
    columns = {
        name: data.column(name).reshape(len(data.actions), -1) for name in ("reward", "state")
    }
    columns = {"reward": columns["reward"][:, 0], "state": columns["state"]}
    if terminated is not None:
        columns["terminated"] = terminated
    taken, ended = samples.ends(data, terminated)
    rest = {"stride": stride, "seed": 0}
    return samples.Samples(
        data,
        Latents(model, Store(data, stride)),
        model,
        "fp32",
        columns,
        samples.StepSampler(data, taken=taken, ended=ended, frameskip=SKIP, **rest),
        samples.GoalSampler(data, steps=2, frameskip=SKIP, **rest),
        samples.FrameSampler(data, **rest),
    )


@pytest.mark.parametrize("stride", [2, 4])
def test_heads_are_taught_what_a_planner_imagines(data, stride):
    """One model step on, from as many frames as an agent has seen by then, and with what it
    believes there."""
    model = latent_model()
    drawn = head_samples(data, model, stride, np.zeros(len(data.actions), np.float32))
    before, after, actions, truth = drawn.steps(0, 50)
    episode, frame, rows, taken, _ = drawn.model_steps.batch(0, 50)
    assert taken.all(), "nothing ends, so nothing is cut"
    assert set(np.minimum(frame // SKIP, 2)) == {0, 1, 2}
    for i in range(50):
        seen = np.arange(frame[i] % SKIP, frame[i] + 1, SKIP)[-3:]
        context = drawn.latents.at(
            np.full(len(seen), episode[i]), seen, belief_at=np.array(frame[i])
        )
        past = [
            data.actions[data.offsets[episode[i]] + f :][:SKIP].reshape(1, -1) for f in seen[:-1]
        ]
        acts = torch.cat(
            [
                model.scaled(torch.from_numpy(np.concatenate(past)))[None]
                if past
                else torch.zeros(1, 0, model.block),
                actions[None, i : i + 1],
            ],
            1,
        )
        with torch.no_grad():
            expected = model.dynamics(context[None], acts)[0, -1]
        torch.testing.assert_close(after[i], expected.flatten(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(before[i], context[-1].flatten())
        assert truth["reward"][i].item() == pytest.approx(
            data.column("reward")[rows[i]].sum(), abs=1e-5
        )


def test_where_an_episode_ends():
    """By the first row that says so, even where that is the last; a recording that stops has no
    end."""
    data = type(
        "Data",
        (),
        {"lengths": np.array([5, 5, 5, 1]), "offsets": np.array([0, 5, 10, 15]), "episodes": 4},
    )()
    terminated = np.zeros(16)
    terminated[[3, 9, 11]] = 1
    terminated[13] = 1  # what goes on after an end is none of it
    taken, ended = samples.ends(data, terminated)
    assert taken.tolist() == [4, 5, 2, 0] and ended.tolist() == [True, True, True, False]
    taken, ended = samples.ends(data, None)
    assert taken.tolist() == [4, 4, 4, 0] and ended.tolist() == [True, True, True, False]
