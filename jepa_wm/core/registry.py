"""Open tables: one form of registration for worlds, tasks, latents, dynamics, solvers, policies,
readers and evaluations.

A table knows its own entries by the module that registers each, so that nothing is imported before
it is asked for; third parties add theirs by `register`, or by an entry point of the group
`jepa_wm.<table>` that names such a module."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, SerializeAsAny, ValidationInfo, WrapValidator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from jepa_wm.core.errors import UserError, nearest
from jepa_wm.core.settings import Section

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Named entries of one kind.

    `table` names them in the entry points of others ("solvers": group `jepa_wm.solvers`), `kind`
    one of them in messages ("solver"); `own` maps the names of the library's own entries to the
    modules that register them. `reserved` names stand for something else beside entries in tables
    of results."""

    def __init__(
        self, table: str, kind: str, own: Mapping[str, str], *, reserved: Collection[str] = ()
    ) -> None:
        self.table, self.kind, self.reserved = table, kind, frozenset(reserved)
        self._own = dict(own)
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that enters a class or function under `name`. Raises ValueError for a name
        that is taken or reserved."""
        if name in self.reserved:
            raise ValueError(
                f"a {self.kind} cannot be named {name!r}: in results that is another row; choose "
                "another name"
            )

        def enter(entry: Entry) -> Entry:
            held = self._entries.get(name)
            if held is not None and _origin(held) != _origin(
                entry
            ):  # a module that is loaded again enters itself
                raise ValueError(
                    f"a {self.kind} named {name!r} is registered already, by {_origin(held)}"
                )
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> Entry:
        """The entry of this name; raises UserError with the nearest name for one that nobody
        registered."""
        # What is not entered yet is so by the import of its module.
        if self.check(name) not in self._entries:
            module = self._modules()[name]
            try:
                importlib.import_module(module)
            except ImportError as error:
                if module in self._own.values():
                    raise
                raise UserError(
                    f"{module}, which is to register the {self.kind} {name!r}, cannot be imported "
                    f"({error}); repair or uninstall the package that it is of"
                ) from error
            if name not in self._entries:
                raise UserError(
                    f"{module}, which is to register the {self.kind} {name!r}, does not"
                )
        return self._entries[name]

    def check(self, name: str) -> str:
        """The name, if an entry has it; else as `get` has it. Imports no entry."""
        if name not in self:
            raise UserError(
                f"no {self.kind} is named {name!r}; {nearest(name, self.names())}there are "
                f"{', '.join(self.names())}"
            )
        return name

    def names(self) -> list[str]:
        """The names of all entries, sorted; imports none of them."""
        return sorted({*self._modules(), *self._entries})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._own or name in self._modules()

    def _modules(self) -> dict[str, str]:
        """Name -> module that registers it: the library's own, which cannot be replaced, and those
        of entry points."""
        points = importlib.metadata.entry_points(group=f"jepa_wm.{self.table}")
        return {**{point.name: point.module for point in points}, **self._own}


def _origin(entry: Any) -> tuple[str, str]:
    entry = getattr(entry, "function", entry)  # of a stage
    return entry.__module__, entry.__qualname__


@dataclass(frozen=True)
class EntryName:
    """What marks a config value as the name of an entry: `Annotated[str, EntryName(POLICIES)]`."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema of a string that is checked; for pydantic."""
        return core_schema.no_info_after_validator_function(self.registry.check, handler(source))


@dataclass(frozen=True)
class Choice:
    """What a config section is chosen from by its `name`, and the name that counts where none is
    given; `optional`: it may also be null."""

    registry: Registry[Any]
    default: str
    optional: bool = False

    def schema(self, section: Any) -> type[Section]:
        """The settings class that a section (plain data) asks for; UserError for a name that is
        unknown."""
        name = section.get("name", self.default) if isinstance(section, Mapping) else self.default
        settings: type[Section] = self.registry.get(name)
        return settings

    def check(self, value: Any, handler: Any, info: ValidationInfo) -> Section | None:
        """The section as an object of the class it chooses; for pydantic."""
        if isinstance(value, Section) or (value is None and self.optional):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("mapping", "Input should be a mapping with a name")
        if not isinstance(value.get("name", ""), str):
            raise PydanticCustomError("name", "Input should be a mapping with a name")
        try:
            schema = self.schema(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        if info.mode == "json":  # as strict as the config around it
            return schema.model_validate_json(json.dumps(value), strict=True)
        return schema.model_validate(value)


def chosen(registry: Registry[Any], default: str, *, optional: bool = False) -> Any:
    """The type of a config section whose `name` chooses the registered settings class that checks
    the rest.

    Every such class declares `name: Literal["its name"] = "its name"`. A section without a name is
    of `default`: `solver: chosen(SOLVERS, "cem") = CEM()`. An `optional` one may be null."""
    choice = Choice(registry, default, optional)
    check = WrapValidator(choice.check)
    if optional:
        return Annotated[Section | None, check, choice, SerializeAsAny()]
    return Annotated[Section, check, choice, SerializeAsAny()]
