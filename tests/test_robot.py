"""V-JEPA 2-AC's layout: poses add up as rotations do, imagining is the predictor step by step, and
the example runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import in_layout

from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.predictor import ActionPredictor, ActionPredictorSizes
from jepa_wm.models.vit import Encoder
from jepa_wm.models.vjepa2_ac import (
    VJEPA2AC,
    difference,
    integrate,
    normalised,
    parted,
    to_angles,
    to_matrix,
    with_pose,
)

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "vjepa2_ac.py"
angle = st.floats(-1.5, 1.5)
poses = st.lists(angle, min_size=7, max_size=7).map(
    lambda x: torch.tensor([*x[:6], min(1.0, abs(x[6]))], dtype=torch.float64)
)


@given(st.lists(angle, min_size=3, max_size=3))
@settings(deadline=None)
def test_matrices_are_rotations_about_x_then_y_then_z(angles):
    a = torch.tensor(angles, dtype=torch.float64)
    about = []
    for axis in range(3):
        one = torch.zeros(3, dtype=torch.float64)
        one[axis] = a[axis]
        about.append(to_matrix(one))
        assert torch.allclose(about[-1][axis], torch.eye(3, dtype=torch.float64)[axis])
    assert torch.allclose(to_matrix(a), about[2] @ about[1] @ about[0])
    assert torch.allclose(to_matrix(a) @ to_matrix(a).T, torch.eye(3, dtype=torch.float64))
    assert torch.allclose(to_angles(to_matrix(a)), a, atol=1e-9)


def test_a_quarter_turn_about_y_keeps_the_rotation():
    a = torch.tensor([[0.3, np.pi / 2, 0.4], [-1.0, -np.pi / 2, 0.2]], dtype=torch.float64)
    assert torch.allclose(to_matrix(to_angles(to_matrix(a))), to_matrix(a), atol=1e-6)


@given(poses, poses)
@settings(deadline=None)
def test_a_difference_leads_from_one_pose_to_the_other(before, after):
    reached = integrate(before, difference(before, after))
    assert torch.allclose(reached[[0, 1, 2, 6]], after[[0, 1, 2, 6]], atol=1e-9)
    assert torch.allclose(to_matrix(reached[3:6]), to_matrix(after[3:6]), atol=1e-7)
    batched = integrate(before.expand(2, 3, 7), difference(before, after).expand(2, 3, 7))
    assert torch.allclose(batched[1, 2], reached, atol=1e-9)


def test_the_gripper_stays_between_open_and_closed():
    pose, action = torch.tensor([0.0, 0, 0, 0, 0, 0, 0.9]), torch.tensor([0.0, 0, 0, 0, 0, 0, 0.5])
    assert integrate(pose, action)[6] == 1 and integrate(pose, -3 * action)[6] == 0


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    sizes = ActionPredictorSizes(encoder_width=24, grid=2, width=24, depth=2, num_heads=2)
    return ActionPredictor(sizes).eval()


@torch.no_grad()
def test_imagining_is_the_predictor_step_by_step(predictor):
    g = torch.Generator().manual_seed(1)
    tokens, pose, actions = (
        torch.randn(2, 4, 24, generator=g),
        torch.rand(2, 7, generator=g),
        torch.randn(2, 3, 2, 7),
    )
    start = with_pose(normalised(tokens), pose)[:, None]
    futures, way = parted(
        VJEPA2AC(predictor).fast_rollout(start, start.new_zeros(2, 0, 7), actions, at_once=2)
    )
    assert futures.shape == (2, 3, 2, 4, 24) and way.shape == (2, 3, 2, 7)
    b, s = 1, 2
    first = normalised(tokens[b])[None, None]
    one = normalised(predictor(first, actions[b, s, None, :1], pose[b, None, None]))
    moved = integrate(pose[b], actions[b, s, 0])
    both, states = torch.cat([first, one], 1), torch.stack([pose[b], moved])[None]
    two = normalised(predictor(both, actions[b, s, None], states)[:, -1:])
    torch.testing.assert_close(futures[b, s], torch.cat([one, two], 1)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(way[b, s], torch.stack([moved, integrate(moved, actions[b, s, 1])]))


def run_example(weights, trajectory, folder, *words):
    command = [
        sys.executable,
        EXAMPLE,
        weights,
        trajectory,
        "--out",
        folder / "energy.png",
        *words,
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(EXAMPLE.parents[1]),
    }
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    nothing, taken, found = map(float, done.stdout.splitlines()[0].split(":")[1].split())
    assert found <= nothing and taken > 0 and (folder / "energy.png").stat().st_size > 5000
    return done.stdout


def test_the_example_runs_on_a_made_up_model(tmp_path):
    torch.manual_seed(0)
    rope = {"rope": "vjepa2", "rope_base": 10_000.0}
    settings = EncoderSettings(
        patch_size=16,
        tubelet_size=2,
        width=24,
        depth=1,
        num_heads=2,
        attention="clip",
        locality=0,
        **rope,
    )
    models = {
        "encoder": Encoder(32, settings),
        "action_predictor": ActionPredictor(
            ActionPredictorSizes(encoder_width=24, grid=2, width=24, depth=1, num_heads=2, **rope)
        ),
    }
    torch.save(in_layout(models, ("encoder", "action_predictor")), tmp_path / "ac.pt")
    r = np.random.default_rng(0)
    frames, states = (
        r.integers(0, 255, (1, 2, 40, 40, 3), np.uint8),
        r.uniform(0, 0.1, (1, 2, 7)).astype(np.float32),
    )
    np.savez(tmp_path / "trajectory.npz", observations=frames, states=states)
    few = ("--num-samples", "20", "--iterations", "2", "--grid", "3")
    run_example(
        tmp_path / "ac.pt", tmp_path / "trajectory.npz", tmp_path, "--sizes", "32", "2", "2", *few
    )


@pytest.mark.shared
def test_the_example_runs_on_the_robot_and_the_released_layout(shared, tmp_path):
    from safetensors import safe_open

    with safe_open(shared / "reference" / "vjepa2_tiny_io.safetensors", "pt") as file:
        about = file.metadata()
    sizes = [about["img_size"], about["encoder_heads"], about["ac_heads"]]
    weights = shared / "reference" / "vjepa2_tiny_ac.pt"
    few = ("--num-samples", "20", "--iterations", "2", "--grid", "3")
    run_example(
        weights,
        next((shared / "data" / "franka_vjepa2").glob("*.npz")),
        tmp_path,
        "--sizes",
        *sizes,
        *few,
    )
