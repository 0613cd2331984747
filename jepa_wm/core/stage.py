"""Stages: functions whose signature is their declaration.

    @stage(after="features", ranks=True)
    def dynamics(run: Run, data_path: str | None, train: DynamicsTraining)

A parameter is the section or value of the config that its name leads to, with underscores for dots
where it lies deeper: `data_path` is data.path. Where its class has only some of that section's
fields (of the config's, if the name leads nowhere), it is these alone. A stage is given nothing
else, and its result counts for that and for what the stages before it were given. `run` is the run
folder, `shard` (k, n) the part that one of several processes does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jepa_wm.core.registry import Choice, Registry

Result = dict[str, Any]
Keep = Literal["once", "newest", "own"]
RUN, SHARD = "run", "shard"  # parameters that are no settings
ALSO = {"planning": "plan"}  # evaluation -> the stage of the pipeline that it is
EVAL = "eval_"  # what the names of evaluations begin with in the table of stages
_PROBES = ("rollout", "collapse", "linear", "attentive", "knn", "state")  # in one file
_EVALS = (*_PROBES, "pretext", "offsets", "diagnose", "offline")


class OwnStage(NamedTuple):
    """What is known of one of our own stages without the module that registers it, which loads
    PyTorch; its decorator and its signature declare the same."""

    module: str
    summary: str = ""  # its line in the help
    ranks: bool = False
    in_shards: bool = False
    when: Callable[..., bool] | None = None  # see `Stage`


OWN = {  # in the order of the pipeline
    "collect": OwnStage(
        "jepa_wm.worlds.collect", "let a policy explore the world and store the trajectories"
    ),
    "pretrain": OwnStage(
        "jepa_wm.training.pretrain",
        "pretrain the encoder: masked latent prediction and the recipe's regularisers",
        ranks=True,
        when=lambda features_backbone: features_backbone is None,
    ),
    "features": OwnStage(
        "jepa_wm.features.cache", "freeze the encoder and encode all frames once", in_shards=True
    ),
    "dynamics": OwnStage(
        "jepa_wm.training.dynamics",
        "train the latent, its action-conditioned dynamics and the temporal distance",
        ranks=True,
    ),
    "heads": OwnStage(
        "jepa_wm.training.heads",
        "train heads: rewards, ends, states and a policy, from the columns there are",
        ranks=True,
        when=lambda planner, evaluation_policies: planner.needs_heads or bool(evaluation_policies),
    ),
    "plan": OwnStage(
        "jepa_wm.evals.goal_reaching",
        "reach goal images by planning in latent space; success with intervals",
        in_shards=True,
    ),
    "report": OwnStage("jepa_wm.report.report", "one HTML page: curves, GIFs, tables"),
    **{EVAL + k: OwnStage(f"jepa_wm.evals.{'probes' if k in _PROBES else k}") for k in _EVALS},
}


@dataclass(frozen=True)
class Given:
    """What a parameter is given: the section or value at a dotted key ("" is the whole config), or
    the fields of it that a class `part` has."""

    key: str
    part: type[BaseModel] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys of all that it holds."""
        if self.part is None:
            return (self.key,)
        return tuple(f"{self.key}.{name}".lstrip(".") for name in self.part.model_fields)

    def value(self, config: BaseModel, fixed: Mapping[str, Any]) -> Any:
        """It, of a config; `fixed` values stand in at their dotted keys."""
        values = [fixed.get(key, value_at(config, key)) for key in self.keys]
        part = self.part
        return part(**dict(zip(part.model_fields, values, strict=True))) if part else values[0]


@dataclass(frozen=True)
class Stage:
    """A function with what the pipeline has to know of it."""

    name: str
    function: Callable[..., Result]
    after: tuple[str, ...]  # the stages whose output it reads
    ranks: bool  # several ranks may do it as one job
    keep: Keep  # once: a finished result is found again; newest: made anew; own: stored by itself
    reads: tuple[str, ...]  # dotted keys that name files outside of the run
    unrecorded: tuple[str, ...]  # dotted keys that change how it is done, and not what comes out
    headline: tuple[str, ...]  # keys of its result that `demo` tells at the top
    # whether the pipeline needs it, always if None; its parameters are settings
    when: Callable[..., bool] | None
    seed_offset: int  # added to the seed, so that stages draw apart from each other
    summary: str  # its line in the help

    def __call__(self, *given: Any, **settings: Any) -> Result:
        """The function itself: nothing is found again, timed or stored."""
        return self.function(*given, **settings)

    @property
    def in_shards(self) -> bool:
        """Whether several processes may do a part each."""
        return SHARD in inspect.signature(self.function).parameters

    def parameters(self, schema: type[BaseModel]) -> dict[str, Given]:
        """{parameter: what of the config it is given} of all settings of the function."""
        return {
            name: _given(name, self.function, schema)
            for name in inspect.signature(self.function).parameters
            if name not in (RUN, SHARD)
        }

    def keys(self, schema: type[BaseModel]) -> list[str]:
        """The dotted keys of all settings of the function."""
        return [key for given in self.parameters(schema).values() for key in given.keys]

    def settings(
        self, config: BaseModel, fixed: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """{parameter: what it is given}; `fixed` values stand in at their dotted keys."""
        parameters = self.parameters(type(config))
        return {name: given.value(config, fixed or {}) for name, given in parameters.items()}

    def recorded(self, schema: type[BaseModel]) -> tuple[str, ...]:
        """The dotted keys that its result depends on, beside those of the stages before it."""
        return tuple(key for key in self.keys(schema) if key not in self.unrecorded)


STAGES: Registry[Stage] = Registry(
    "stages", "stage", {name: own.module for name, own in OWN.items()}
)


def stage(
    name: str | None = None,
    *,
    after: str | tuple[str, ...] = (),
    ranks: bool = False,
    keep: Keep = "once",
    reads: tuple[str, ...] = (),
    unrecorded: tuple[str, ...] = (),
    headline: tuple[str, ...] = (),
    when: Callable[..., bool] | None = None,
    seed_offset: int = 0,
    help: str = "",
) -> Callable[[Callable[..., Result]], Stage]:
    """A decorator that enters a function into the table of stages, under its own name unless
    another is given; see `Stage` for what is declared."""

    def enter(function: Callable[..., Result]) -> Stage:
        own = name or function.__name__
        summary = help or (OWN[own].summary if own in OWN else "")
        upstream = (after,) if isinstance(after, str) else after
        made = Stage(
            own, function, upstream, ranks, keep, reads, unrecorded, headline, when, seed_offset,
            summary,
        )  # fmt: skip
        return STAGES.register(own)(made)

    return enter


def on_ranks(name: str) -> bool:
    """Whether several ranks may do the command as one job; imports none of our own stages."""
    known = OWN.get(name) or (STAGES.get(name) if name in STAGES else None)
    return known is not None and known.ranks


def in_shards(name: str) -> bool:
    """Whether several processes may do a part of the command each; imports none of our own
    stages."""
    known = OWN.get(name) or (STAGES.get(name) if name in STAGES else None)
    return known is not None and known.in_shards


def pipeline(config: BaseModel) -> list[str]:
    """The stages that a config needs, each behind those that it reads; evaluations are none."""
    names = [name for name in STAGES.names() if not name.startswith(EVAL)]
    theirs = {name: STAGES.get(name) for name in names if name not in OWN}
    # Ours stand in their order, and what is needed is asked without loading them.
    *before, page = (name for name in OWN if name in names and _needed(OWN[name].when, config))
    ordered = dict.fromkeys(before)
    # The page tells of all others; theirs come between, those of the same kind last.
    for name in sorted(theirs, key=lambda name: theirs[name].keep == "own"):
        chain = (one for one in with_upstream(name) if one in theirs)
        ordered |= {one: None for one in chain if _needed(theirs[one].when, config)}
    return [*ordered, page]


def _needed(when: Callable[..., bool] | None, config: BaseModel) -> bool:
    """Whether the pipeline of this config has a stage that is declared so."""
    if when is None:
        return True
    names = inspect.signature(when).parameters
    return when(*(value_at(config, dotted_key(name, type(config))) for name in names))


def with_upstream(name: str) -> Iterator[str]:
    """A stage behind all that come before it; a name that is in no table stands alone."""
    for before in STAGES.get(name).after if name in STAGES else ():
        yield from with_upstream(before)
    yield name


def recorded_keys(name: str, schema: type[BaseModel]) -> tuple[str, ...]:
    """The dotted keys that a stage and all before it depend on, those inside another left out."""
    keys: dict[str, None] = {}
    for one in with_upstream(name):
        if one in STAGES:
            keys.update(dict.fromkeys(STAGES.get(one).recorded(schema)))
    return tuple(key for key in keys if not any(key.startswith(f"{other}.") for other in keys))


def dotted_key(parameter: str, schema: type[BaseModel]) -> str:
    """The key that a parameter's name leads to, "train.dynamics" for train_dynamics: at each level
    the longest name that is there. Raises TypeError where there is none."""
    key = _find(parameter, schema)
    if key is None:
        raise TypeError(f"{parameter}: leads to no section or value of {schema.__name__}")
    return key


def value_at(config: BaseModel, key: str) -> Any:
    """The section or value at a dotted key; None inside a section that is null."""
    value: Any = config
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


def field_type(key: str, schema: type[BaseModel]) -> Any:
    """The annotation of the section or value at a dotted key."""
    *parents, last = key.split(".")
    for name in parents:
        (schema,) = _sections(schema.model_fields[name])
    return schema.model_fields[last].annotation


def _given(parameter: str, function: Callable[..., Result], schema: type[BaseModel]) -> Given:
    """What a parameter of a function is given of a config."""
    key = _find(parameter, schema)
    section: Any = schema if key is None else field_type(key, schema)
    part = inspect.signature(function).parameters[parameter].annotation
    if isinstance(part, str):
        part = function.__globals__.get(part)
    if _is_section(part) and _is_section(section) and part is not section:
        fields = part.model_fields.keys()
        if fields and fields <= section.model_fields.keys():
            return Given(key or "", part)
    return Given(dotted_key(parameter, schema))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _find(parameter: str, schema: type[BaseModel]) -> str | None:
    if parameter in schema.model_fields:
        return parameter
    words = parameter.split("_")
    for count in range(len(words) - 1, 0, -1):
        head, rest = "_".join(words[:count]), "_".join(words[count:])
        if head in schema.model_fields:
            for section in _sections(schema.model_fields[head]):
                if (inside := _find(rest, section)) is not None:
                    return f"{head}.{inside}"
    return None


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    """The settings classes that a field holds: one, or one beside None; of a section that chooses
    an entry of a table, the default's, for what all entries have."""
    for choice in field.metadata:
        if isinstance(choice, Choice):
            return [choice.registry.get(choice.default)]
    parts = (field.annotation, *get_args(field.annotation))
    return [part for part in parts if _is_section(part)]
