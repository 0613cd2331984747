"""What state numbers are: groups in one unit each, angles that come round; who says so, from world
to score."""

import json

import h5py
import numpy as np
import pytest
import torch

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.quantities import Quantities, described
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.evals.labelled import Labelled, Part
from jepa_wm.evals.scores import score
from jepa_wm.features.probes import RidgeProbe
from jepa_wm.training import patch_init
from jepa_wm.worlds.collect import record
from jepa_wm.worlds.gym import GymWorld
from jepa_wm.worlds.two_rooms.gym_env import TwoRoomsEnv
from jepa_wm.worlds.world import RandomActions

PUSHT = Quantities(
    {"agent": [0, 1], "block": [2, 3], "angle": [4]},
    {"agent": "px", "block": "px", "angle": "rad"},
)


def test_groups_are_found_among_what_is_unrolled():
    """Cosines stand in the angles' places, sines behind all; groups may share numbers."""
    known = Quantities({"a": [0, 2], "b": [1], "c": [2]}, {"a": "rad", "b": "px", "c": "rad"})
    state = np.array([[0.3, 7.0, 1.2, 5.0]])
    values = known.unrolled(state)[0]
    groups = known.unrolled_groups(len(values))
    expected = {"a": [0.3, 1.2], "c": [1.2]}
    for name, angles in expected.items():
        both = [*np.cos(angles), *np.sin(angles)]
        np.testing.assert_allclose(values[groups[name]], both)
    assert groups["b"] == [1] and Quantities({"x": [1]}).unrolled_groups(3) == {"x": [1]}


@pytest.mark.parametrize(("unit", "turn"), [("rad", 2 * np.pi), ("deg", 360.0)])
def test_an_angle_is_off_by_the_shorter_way_round(unit, turn):
    known = Quantities({"x": [0], "angle": [1]}, {"x": "m", "angle": unit})
    truth = np.array([[500.0, 0.01 * turn], [500.0, 0.99 * turn], [0.0, -3.25 * turn]])
    guess = np.array([[0.0, 0.99 * turn], [0.0, 0.01 * turn], [0.0, 0.25 * turn]])
    errors = known.errors(guess, truth)
    assert np.allclose(errors["x"], [500, 500, 0]), "only angles come round"
    assert np.allclose(errors["angle"], [0.02 * turn, 0.02 * turn, 0.5 * turn])


def test_speeds_of_angles_do_not_come_round():
    known = Quantities({"spin": [0]}, {"spin": "rad/s"})
    assert known.errors(np.array([[7.0]]), np.array([[0.0]]))["spin"] == 7


def test_what_is_fitted_to_an_angle_does_not_leap_where_the_angle_does():
    r = np.random.default_rng(0)
    state = r.uniform(-20, 20, (500, 5)).astype(np.float32)
    again = PUSHT.rolled(PUSHT.unrolled(state))
    assert (
        np.abs(PUSHT.difference(again, state)).max() < 1e-5
        and np.abs(again[:, 4]).max() <= np.pi + 1e-6
    )
    near = np.array([[0, 0, 0, 0, np.pi - 0.01], [0, 0, 0, 0, -np.pi + 0.01]])
    assert np.abs(np.diff(PUSHT.unrolled(near), axis=0)).max() < 0.03
    assert Quantities({"x": [0]}).unrolled(state) is state


def test_a_linear_probe_reads_an_angle_through_its_whole_turn():
    """A latent that holds the pointer on the circle: as a plain number the angle leaps where the
    circle does not."""
    r = np.random.default_rng(0)
    state = np.concatenate(
        [r.uniform(0, 99, (600, 4)), r.uniform(0, 2 * np.pi, (600, 1))], 1
    ).astype(np.float32)
    latent = np.concatenate([state[:, :4], np.cos(state[:, 4:]), np.sin(state[:, 4:])], 1)
    latent = latent @ r.normal(size=(6, 6)).astype(np.float32)
    probe = RidgeProbe(
        torch.from_numpy(latent), torch.from_numpy(PUSHT.unrolled(state)), penalty=1e-6
    )
    errors = PUSHT.errors(PUSHT.rolled(probe.predict(torch.from_numpy(latent)).numpy()), state)
    assert errors["angle"].max() < 0.01 and errors["block"].max() < 0.5
    plain = RidgeProbe(torch.from_numpy(latent), torch.from_numpy(state), penalty=1e-6)
    assert (
        PUSHT.errors(plain.predict(torch.from_numpy(latent)).numpy(), state)["angle"].mean() > 0.3
    )


def test_state_errors_take_units():
    guess, truth = np.array([[3.0, 4, 6.2]]), np.zeros((1, 3))
    errors = Quantities({"agent": [0, 1], "angle": [2]}, {"angle": "rad"}).errors(guess, truth)
    assert errors == pytest.approx({"agent": 5.0, "angle": 2 * np.pi - 6.2}, abs=1e-5)


def test_scores_tell_units_and_take_angles_the_shorter_way():
    truth = np.array([[1.0, 359.0], [2.0, 1.0], [3.0, 0.0], [4.0, 2.0]])
    known = Quantities({"x": [0], "turn": [1]}, {"turn": "deg"})
    part = Part(None, known.unrolled(truth), np.arange(4), np.array([0, 0, 1, 1]))
    data = Labelled(part, part, None, known)
    result = score(known.unrolled(truth + np.array([0.0, 359.0])), part, data)
    assert result["x"]["error"] == 0 and result["x"]["unit"] == ""
    assert (
        result["turn"]["error"] == pytest.approx(1, abs=1e-3) and result["turn"]["unit"] == "deg"
    )
    spread = np.array([-1.5, 0.5, -0.5, 1.5])
    assert result["turn"]["r2"] == pytest.approx(1 - 4 / (spread**2).sum(), abs=1e-3)


@pytest.mark.parametrize(
    ("names", "units", "message"),
    [
        (
            ("block_x", "block_angle"),
            ("px", "rad"),
            "state_units of the group 'block' are px and rad",
        ),
        (("block_x", "block_y"), ("px", ""), "state_units of the group 'block' are none and px"),
        (("a", "b"), ("px",), "are 1 for 2 numbers of the state; give one for each"),
    ],
)
def test_units_that_do_not_fit_are_refused(names, units, message):
    with pytest.raises(UserError, match=message):
        described(names, units)
    with pytest.raises(UserError, match=message):
        GymWorld(TwoRoomsEnv, state_names=names, state_units=units)


def test_unknown_is_said_as_nothing():
    assert "state_units" not in described(("a_x", "a_y"), ()) | described(("a_x", "a_y"), ("", ""))
    about = described(("a_x", "a_y", "b"), ("", "", "m / s"))
    assert about["state_units"] == "- - m/s"
    known = Quantities.parse("a:0,1 b:2", "- - m/s", 3)
    assert known.groups == {"a": [0, 1], "b": [2]} and known.units == {"a": "", "b": "m/s"}
    assert Quantities.parse("a:0", "", 1).units == {}


def test_two_rooms_and_gymnasium_worlds_write_their_units(tiny_data, tmp_path):
    assert Trajectories(tiny_data / "train.h5").quantities.units == {
        "agent": "px",
        "wall": "px",
        "door": "px",
    }
    world = GymWorld(
        TwoRoomsEnv,
        state_names=("agent_x", "agent_y", "wall", "door"),
        state_units=("cm", "cm", "", ""),
    )
    record(
        tmp_path / "x.h5",
        world,
        lambda seeds: RandomActions(seeds, mean_repeat=2),
        np.arange(2),
        4,
    )
    data = Trajectories(tmp_path / "x.h5")
    assert data.attributes["state_units"] == "cm cm - -" and data.quantities.units == {
        "agent": "cm",
        "wall": "",
        "door": "",
    }


def test_convert_writes_units_keeps_those_of_our_own_files_and_refuses_others(
    tmp_path, tiny_data, capsys
):
    source = str(tiny_data / "train.h5")
    assert cli.main(["convert", source, str(tmp_path / "kept.h5")]) == 0
    assert Trajectories(tmp_path / "kept.h5").attributes["state_units"] == "px px px px"
    words = ["--names", "agent_x", "agent_y", "wall", "turn", "--units", "m", "m", "-", "rad"]
    assert cli.main(["convert", source, str(tmp_path / "named.h5"), *words]) == 0
    assert Trajectories(tmp_path / "named.h5").quantities.units == {
        "agent": "m",
        "wall": "",
        "turn": "rad",
    }
    capsys.readouterr()
    for wrong, said in (
        (["--units", "m"], "are 1 for 4 numbers"),
        (["--units", "m", "rad", "m", "m"], "'agent' are m and rad"),
    ):
        assert cli.main(["convert", source, str(tmp_path / "not.h5"), *wrong]) != 0
        error = capsys.readouterr().err
        assert said in error and "train.h5: --units" in error and "Traceback" not in error
    assert not (tmp_path / "not.h5").exists()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"state_units": "px rad - -"}, "x.h5: state_units of the group 'agent' are px and rad"),
        ({"state_units": "px"}, "x.h5: state_units 'px' are 1 for 4 numbers"),
        ({"state_groups": "agent:0,9"}, "x.h5: state_groups has 'agent:0,9'"),
        ({"state_groups": "agent=0,1"}, "x.h5: state_groups has 'agent=0,1'"),
    ],
)
def test_a_file_that_contradicts_itself_is_named(tiny_data, tmp_path, attributes, message):
    (tmp_path / "x.h5").write_bytes((tiny_data / "train.h5").read_bytes())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs.update(attributes)
    with pytest.raises(UserError, match=message):
        assert Trajectories(tmp_path / "x.h5").quantities


def test_attributes_stored_as_bytes_are_read(tiny_data, tmp_path):
    (tmp_path / "x.h5").write_bytes((tiny_data / "train.h5").read_bytes())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs.update(
            {name: np.bytes_(str(file.attrs[name])) for name in ("state_units", "state_groups")}
        )
    assert Trajectories(tmp_path / "x.h5").quantities.units == {
        "agent": "px",
        "wall": "px",
        "door": "px",
    }


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """Trajectories of a rod that turns (rad) and a dot beside it (m), both told by the action."""
    root, r = tmp_path_factory.mktemp("turning"), np.random.default_rng(0)
    row, column = np.mgrid[:32, :32] - 15.5
    for part, episodes in (("train", 6), ("heldout", 3)):
        columns = {"pixels": ((32, 32, 3), "u1"), "action": ((1,), "f4"), "state": ((2,), "f4")}
        writer = TrajectoryWriter(root / f"{part}.h5", np.full(episodes, 24), columns)
        for start in writer.offset:
            speed = r.uniform(0.2, 0.5) * r.choice([-1, 1])
            angle = r.uniform(0, 6) + speed * np.arange(24)
            frames = np.zeros((24, 32, 32, 3), np.uint8)
            for t, a in enumerate(angle):
                along, across = (
                    column * np.cos(a) + row * np.sin(a),
                    row * np.cos(a) - column * np.sin(a),
                )
                frames[t][(along > 0) & (abs(across) < 2)] = 255
            state = np.stack([0.01 * np.arange(24), angle], 1)
            values = {"pixels": frames, "action": np.full((24, 1), speed), "state": state}
            for name, each in values.items():
                writer.write(name, int(start), each.astype(columns[name][1]))
        writer.close(**described(("place", "angle"), ("m", "rad")))
    return root


def test_a_run_tells_each_quantity_in_its_own_unit(turning, tmp_path, monkeypatch):
    monkeypatch.setattr(patch_init, "PATCHES", 2000)
    from test_recipes import RECORDED

    words = [f"data.path={turning}", *RECORDED]
    with Run.open(tmp_path / "run", load_config("pusht", words)) as run:
        seen = run_stage("pretrain", run)
        run_stage("features", run)
        rows = run_stage("dynamics", run)["rollout"]
    assert {name: entry["unit"] for name, entry in seen["probe"].items()} == {
        "place": "m",
        "angle": "rad",
    }
    assert seen["probe"]["angle"]["error"] <= np.pi
    for row in rows:
        assert {name: entry["unit"] for name, entry in row["state_errors"].items()} == {
            "place": "m",
            "angle": "rad",
        }
        assert all(0 < entry["error"] <= np.pi for entry in row["state_errors"].values())
    assert "px" not in json.dumps([seen, rows])


def test_a_normalised_error_is_one_for_the_constant_and_counts_angles_the_short_way():
    columns = Quantities({"place": (0, 1), "turn": (2,), "still": (3,)}, {"turn": "rad"})
    g = np.random.default_rng(0)
    truth = np.concatenate([g.normal(size=(500, 2)), g.uniform(3.0, 3.3, (500, 1))], 1)
    truth = np.concatenate([truth, np.ones((500, 1))], 1)
    constant = np.array([0.0, 0.0, 3.15, 1.0])
    exact = columns.normalised_errors(truth, truth, constant)
    assert exact == {"place": 0.0, "turn": 0.0}, "nothing can be told of what never varies"
    none = columns.normalised_errors(np.broadcast_to(constant, truth.shape), truth, constant)
    assert none == {"place": 1.0, "turn": 1.0}
    around = columns.normalised_errors(truth - [0, 0, 2 * np.pi, 0], truth, constant)
    assert around["turn"] == pytest.approx(0, abs=1e-9)
    half = truth + 0.5 * (constant - truth)
    assert columns.normalised_errors(half, truth, constant)["place"] == pytest.approx(0.25)
