"""Stages: what a signature declares is what the function is given, and all that it sees."""

import inspect
import json
from typing import Literal, get_args, get_origin

import pytest

from jepa_wm import cli
from jepa_wm.config import Config, load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, evaluate, run_stage
from jepa_wm.core.settings import Section
from jepa_wm.core.stage import OWN, STAGES, dotted_key, field_type, pipeline, stage, value_at


def settings_of(stage, schema):
    """{parameter, or a field of one: (its annotation, that of the field it is matched with)}."""
    hints = inspect.get_annotations(stage.function, eval_str=True)
    pairs = {}
    for name, given in stage.parameters(schema).items():
        if given.part is None:
            pairs[name] = hints.get(name), field_type(given.key, schema)
            continue
        for key, field in zip(given.keys, given.part.model_fields, strict=True):
            pairs[f"{name}.{field}"] = field_type(field, given.part), field_type(key, schema)
    return pairs


def agree(annotation, field):
    """Whether a parameter may have this annotation: the field's own, the class of the entries of a
    table (beside None where the field may be null), or the type of the words it chooses from."""
    if annotation == field:
        return True
    if get_origin(field) is Literal:
        return all(isinstance(word, annotation) for word in get_args(field))
    own, theirs = (set(get_args(kind) or (kind,)) for kind in (annotation, field))
    if Section not in theirs:
        return False
    rest = theirs - {Section}
    return rest <= own and all(issubclass(kind, Section) for kind in own - rest)


@pytest.mark.parametrize("name", STAGES.names())
def test_a_parameter_is_annotated_as_the_section_that_it_is(name):
    declared = STAGES.get(name)
    for parameter, (annotation, field) in settings_of(declared, Config).items():
        assert agree(annotation, field), f"{name}: {parameter}"
    assert set(declared.unrecorded) <= set(declared.keys(Config))
    for key in declared.reads:
        value_at(Config(), key)
    assert all(before in STAGES for before in declared.after)


@pytest.mark.parametrize("name", OWN)
def test_what_is_known_of_a_stage_without_its_module_is_what_it_declares(name):
    declared, known = STAGES.get(name), OWN[name]
    assert (declared.ranks, declared.in_shards) == (known.ranks, known.in_shards)
    assert declared.when is None, "whether it is needed stands where no module has to be loaded"


@pytest.mark.parametrize(
    ("parameter", "key"),
    [
        ("data", "data"),
        ("data_path", "data.path"),
        ("train_dynamics", "train.dynamics"),
        ("train_pretrain_steps", "train.pretrain.steps"),
        ("planner_mpc_horizon", "planner.mpc.horizon"),
    ],
)
def test_a_name_leads_to_its_key(parameter, key):
    assert dotted_key(parameter, Config) == key


def test_a_class_with_some_of_a_sections_fields_is_given_these_alone():
    config = load_config("debug")
    given = STAGES.get("dynamics").settings(config, {"train.precision": "bf16"})
    assert given["settings"].model_dump() == {
        name: getattr(config, name).model_dump() for name in ("latent", "dynamics", "distance")
    }
    assert given["train"].precision == "bf16" and given["train"].latent == config.train.latent
    assert not hasattr(given["train"], "heads") and not hasattr(given["train"], "pretrain")
    recorded = STAGES.get("dynamics").recorded(Config)
    assert {"latent", "train.latent", "train.precision"} <= set(recorded)
    assert not {"", "settings", "train", "train.keep", "train.heads"} & set(recorded)


def test_a_name_that_leads_nowhere_is_a_programming_error():
    with pytest.raises(TypeError, match="train_nothing: leads to no section or value of Config"):
        dotted_key("train_nothing", Config)


@pytest.fixture
def toy(restore):
    """A stage from outside of the package, and what it was given."""
    restore(STAGES)
    given = []

    @stage("toy", after="collect", unrecorded=("train.keep",), seed_offset=7, help="a toy")
    def work(run, seed: int, data_num_frames: int, train_keep: int, shard=None):
        given.append((seed, data_num_frames, train_keep, shard, hasattr(run, "config")))
        return {"seed": seed} if shard is None else {"shard": shard[0]}

    return given


def test_a_stage_of_others_is_a_command_and_part_of_the_pipeline(toy, tmp_path, capsys):
    words = ["toy", "--config", "debug", "--run", str(tmp_path), "--json", "seed=3"]
    assert cli.main([*words, "data.num_frames=6"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 3
    assert toy == [(3, 6, 2, None, False)]
    order = pipeline(load_config("debug"))
    assert order.index("collect") < order.index("toy") < order.index("report")
    launched = ["launch", "pipeline", "--dry-run", "--cluster", "slurm", "--config", "debug"]
    assert cli.main(launched) == 0
    assert "jepa-wm-toy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "toy       a toy" in capsys.readouterr().out


def test_what_is_declared_binds_and_what_is_not_does_not(toy, tmp_path):
    def once(*words):
        return run_stage("toy", tmp_path, load_config("debug", words))

    assert once() == once("train.keep=5") == once("evaluation.budget=3") and len(toy) == 1
    with pytest.raises(UserError, match="num_frames: 5 -> 6"):
        once("data.num_frames=6")
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        once("seed=1")


def test_a_shard_is_asked_for_where_there_are_any(toy, tmp_path):
    config = load_config("debug")
    assert run_stage("toy", tmp_path, config, shard=(1, 3)) == {"shard": 1}
    assert not (tmp_path / "toy" / "result.json").exists()
    with Run.open(tmp_path, config) as run, pytest.raises(UserError, match="cannot be done in sh"):
        run_stage("collect", run, shard=(0, 2))


def test_an_unknown_stage_or_evaluation_is_refused_by_name(tmp_path):
    config = load_config("debug")
    with pytest.raises(UserError, match="no stage is named 'pretrian'; nearest: pretrain"):
        run_stage("pretrian", tmp_path, config)
    with pytest.raises(UserError, match="no stage is named 'eval_kn'; nearest: eval_knn"):
        evaluate("kn", tmp_path, config)
