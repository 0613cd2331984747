"""Where keypoints start: at what a frame tells of the next, if there is anything, and at random
where there is not."""

import shutil

import pytest
import torch
from ranks import overrides, run_ranks
from torch.nn.functional import one_hot

from jepa_wm.config import load_config
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.models import keypoint_latent
from jepa_wm.models.latent import LatentBatch
from jepa_wm.models.point_motion import distant_shares, share_told, start_points, token_moments
from jepa_wm.models.pooling import LOOK, Keypoints
from jepa_wm.training.latent_task import READ

SIDE = 7


def batches_of(tokens, place, far, actions, *, gap=None):
    """Parts of 64 windows of what `tokens` shows of places [B, T, 2] and of distant ones [B, R,
    2]."""
    count, length, gap = *place.shape[:2], torch.tensor(9.0) if gap is None else gap
    gap = gap.expand(count, length, far.shape[1]) + torch.arange(far.shape[1]) * (gap > 0)
    whole = LatentBatch(
        tokens(place), tokens(far), torch.zeros(count, length, 2), actions, gap,
        torch.arange(count),
    )  # fmt: skip
    return [LatentBatch(*parts) for parts in zip(*(x.split(64) for x in whole), strict=True)]


def moving_tokens(seed, *, strength, count=512, noise=1.0, lasting=1.0, side=SIDE, line=False):
    """(batches that show one token of a pattern, which moves on by a token a step, over what lasts
    in the episode and noise, others of the same kind, [64, T, 2] its place in the last of these
    from -.5 to .5)."""
    g = torch.Generator().manual_seed(seed)
    tokens_a_frame = side if line else side * side
    pattern = torch.randn(16, generator=g)
    room = lasting * torch.randn(2 * count, 1, tokens_a_frame, 16, generator=g)

    def tokens(at):
        index = at[..., 1] if line else at[..., 0] * side + at[..., 1]
        random = noise * torch.randn(*index.shape, tokens_a_frame, 16, generator=g)
        return random + room + strength * one_hot(index, tokens_a_frame)[..., None] * pattern

    begins = torch.randint(0, side, (2 * count, 1, 2), generator=g)
    moves = torch.randint(-1, 2, (2 * count, 2, 2), generator=g)
    place = torch.cat([begins, begins + moves.cumsum(1)], 1).clamp(0, side - 1)
    far = torch.randint(0, side, (2 * count, 4, 2), generator=g)
    if line:
        place[..., 0] = far[..., 0] = 0
    made = batches_of(tokens, place, far, place.diff(dim=1).float())
    return made[: len(made) // 2], made[len(made) // 2 :], place[-64:] / (side - 1) - 0.5


def points(count, *, tokens=SIDE * SIDE, seed=0):
    torch.manual_seed(seed)
    return Keypoints(tokens, 16, count)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize(
    "kind",
    [{"strength": 2.0}, {"strength": 1.0, "noise": 0.1}, {"strength": 1.0, "noise": 0.03}],
    ids=["in noise", "hardly any noise", "clean"],
)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_points_start_at_what_a_frame_tells_of_the_next(kind, seed):
    batches, judges, _ = moving_tokens(seed, **kind)
    keypoints, fresh = points(3), judges[4:]
    assert share_told(fresh, keypoints).max() < 0.15
    assert start_points(keypoints, batches, judges[:4]) >= 1
    assert share_told(fresh, keypoints).max() > 0.25, "before any step"
    read = keypoints(judges[-1].frames).unflatten(-1, (3, 2))
    alike = torch.pdist(read.permute(2, 0, 1, 3).flatten(1)).min()
    assert alike > 0.05, "points that look for the same differ"


@pytest.mark.parametrize("count", [16, 64, 512])
def test_noise_and_few_windows_leave_points_looking_at_random(count):
    keypoints = points(3)
    before = {name: value.clone() for name, value in keypoints.state_dict().items()}
    for seed in range(5):
        batches, judges, _ = moving_tokens(seed, strength=0.0, count=count)
        assert start_points(keypoints, batches, judges) == 0
    assert all(torch.equal(value, before[n]) for n, value in keypoints.state_dict().items())


def still(batches):
    """The same with nothing that differs in an episode."""
    return [b._replace(frames=b.frames * 0 + 3, distant=b.distant * 0 + 3) for b in batches]


def broken(batches):
    """The same with a token that is not a number."""
    frames = batches[0].frames.clone()
    frames[0, 0, 0, 0] = torch.nan
    return [batches[0]._replace(frames=frames), *batches[1:]]


def short(batches):
    """The same of episodes that have no frame beside a window's."""
    return [b._replace(gap=b.gap * 0) for b in batches]


@pytest.mark.parametrize("spoilt", [still, broken, short])
def test_data_that_tell_nothing_leave_the_start_and_its_message_to_the_training(spoilt):
    batches, judges, _ = moving_tokens(0, strength=2.0, count=64)
    keypoints = points(3)
    assert start_points(keypoints, spoilt(batches), judges) == 0
    assert start_points(keypoints, batches, spoilt(judges)) == 0


def test_tokens_in_a_line_and_single_tokens_start_points_or_leave_them():
    batches, judges, place = moving_tokens(0, strength=2.0, side=12, line=True)
    keypoints = points(2, tokens=12)
    assert start_points(keypoints, batches, judges) >= 1
    read = keypoints(judges[-1].frames).detach().unflatten(-1, (2, 2))
    assert correlation(read[..., 0, 1], place[..., 1]) > 0.6
    batches, judges, _ = moving_tokens(0, strength=2.0, side=1)
    assert start_points(points(2, tokens=1), batches, judges) == 0


def test_more_points_than_hidden_numbers_leave_half_of_these_at_random():
    keypoints = points(LOOK + 3)
    before = keypoints.score[0].weight.clone()
    keypoints.start_at(torch.eye(16)[:3], torch.zeros(16))
    enter, leave = keypoints.score[0].weight, keypoints.score[-1].weight
    for point in range(LOOK + 3):
        hidden = int(leave[point].argmax())
        looks_for = torch.eye(16)[hidden % 3]
        assert torch.equal(enter[hidden], looks_for) and hidden == point % (LOOK // 2)
    same = (keypoints.score[0].weight == before).all(1)
    assert same.tolist() == [False] * (LOOK // 2) + [True] * (LOOK // 2)
    assert len(keypoints(torch.randn(49, 16)).unflatten(-1, (-1, 2)).unique(dim=0)) == LOOK + 3


def test_distant_frames_count_once_for_one_side_and_never_from_the_window():
    # Of frames 10, 11: distant ones 4, 4, 7, 20 (the second is the first again), and 4, 11, 8, 9.
    window = torch.tensor([10.0, 11.0])
    distant = torch.tensor([[4.0, 4, 7, 20], [4.0, 11, 8, 9], [10.0, 11, 10, 11]])
    gap = (window[None, :, None] - distant[:, None]).abs()
    assert distant_shares(gap).tolist() == [
        [[0.5, 0, 0.5, 0], [0, 0, 0, 1]],
        [[0.5, 0, 0.5, 0], [0, 0, 0, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]


def test_moments_are_of_what_does_not_last_and_of_all_places_around():
    """At a corner the mean is over the four places that there are."""
    frames = torch.zeros(1, 2, 9, 2)
    frames[0, 0, 0], frames[0, 1, 1] = torch.tensor([1.0, 0]), torch.tensor([1.0, 0])
    distant = torch.full((1, 2, 9, 2), 0.5)
    batch = LatentBatch(
        frames + 0.5, distant, torch.zeros(1, 2, 2), torch.zeros(1, 1, 2),
        torch.tensor([5.0, 7]).expand(1, 2, 2), torch.zeros(1),
    )  # fmt: skip
    keypoints = Keypoints(9, 2, 1)
    keypoints.norm = torch.nn.Identity()
    moments = token_moments([batch], keypoints)
    assert moments.count == 9 and moments.mean[0] == pytest.approx(0.5 + 1 / 9)
    assert moments.covariance[0, 0] == pytest.approx(1 / 9)
    assert moments._product[0, 0] == pytest.approx(1 / 4)
    assert moments.spread(torch.eye(2)).tolist() == pytest.approx([(8 / 81) ** 0.5, 0])


# ------------------------------------------------------------------ what is told


@pytest.mark.parametrize(("size", "follows"), [(2e-7, False), (2e-5, False), (1e-3, True)])
def test_a_point_that_hardly_moves_follows_nothing(size, follows):
    g = torch.Generator().manual_seed(0)
    moves = torch.randn(400, 5, 2, generator=g)
    path = torch.cat([torch.randn(400, 1, 2, generator=g), moves], 1).cumsum(1) * size
    far = path[torch.randperm(400, generator=g), :1]
    gap = torch.full((400, 6, 1), 9.0)
    batch = LatentBatch(path, far, path, moves, gap, torch.arange(400))
    told = share_told([batch], lambda at: at)
    assert (told > 0.9).tolist() == [follows] and (follows or told == 0)


@pytest.mark.parametrize("windows", [8, 30, 100])
def test_as_many_numbers_as_are_fitted_tell_nothing_of_noise(windows):
    told = []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(windows, 7, 64, generator=g)
        gap = torch.full((windows, 3, 4), 9.0)
        batch = LatentBatch(
            x[:, :3], x[:, 3:], x[:, :3, :2], x[:, :2, :2], gap, torch.arange(windows)
        )
        told.append(share_told([batch], lambda at: at))
    assert torch.stack(told).mean() < 0.1


# ------------------------------------------------------------------ in a run


@pytest.fixture
def keypoint_words(tiny_data):
    return [
        *overrides(tiny_data), "latent={name: keypoints, dynamic_points: 3, static_points: 2}",
        "train.latent.steps=4", "train.dynamics.steps=2", "train.distance.steps=2",
    ]  # fmt: skip


def test_all_ranks_begin_where_one_process_does(tmp_path, alone, keypoint_words):
    for size in (2, 1):
        folder = tmp_path / f"run{size}"
        shutil.copytree(alone / "features", folder / "features")
        words = ["dynamics", "--config", "debug", "--run", str(folder), *keypoint_words]
        words.append(f"train.parallel.fsdp={str(size > 1).lower()}")
        assert run_ranks(size, words, tmp_path / f"meet{size}", log=tmp_path / "log") == [0] * size
    many, one = (
        read_metrics(tmp_path / f"run{size}", "dynamics_latent")[-1]["loss"] for size in (2, 1)
    )
    assert many == pytest.approx(one, rel=1e-4)


def test_the_stage_starts_points_once(tmp_path, alone, keypoint_words, monkeypatch):
    shutil.copytree(alone / "features", tmp_path / "run" / "features")
    started = []

    def start(places, batches, judges):
        started.append([sum(len(b.frames) for b in each) for each in (batches, judges)])
        width = places.norm.normalized_shape[0]
        places.start_at(torch.ones(1, width), torch.zeros(width))

    monkeypatch.setattr(keypoint_latent, "start_points", start)
    config = load_config("debug", [*keypoint_words, "train.latent.steps=0"])
    with Run.open(tmp_path / "run", config) as run:
        run_stage("dynamics", run)
    folder = tmp_path / "run/dynamics/checkpoints/latent"
    weights = load_checkpoint(newest_checkpoint(folder))[0]
    assert (weights["places.score.0.weight"][:3] == 1).all()
    assert started == [[READ * config.train.latent.batch] * 2]

    # Gone on with, it has all that a checkpoint holds.
    for name in ("result.json", "latent_model.safetensors", "latent_model.json"):
        (tmp_path / "run/dynamics" / name).unlink()
    with Run.open(tmp_path / "run", config) as run:
        run_stage("dynamics", run)
    assert len(started) == 1
