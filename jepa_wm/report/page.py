"""What the page is made of, as plain data: groups of sections that hold tables, figures, film
strips and texts. Its HTML and CSS lie in templates/; no scripts, nothing fetched from
elsewhere."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jepa_wm.core.registry import Registry
from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.plots import Plot


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text."""

    text: str
    style: str = ""  # CSS class
    hint: str = ""  # shown while the pointer rests on it
    code: bool = False


@dataclass(frozen=True)
class Bar:
    """A rate with its interval as a small drawing; all three in 0..1."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Row:
    """The first cell heads the row; a row of style "head" has that cell alone, over all
    columns."""

    cells: Sequence[str | Cell | Bar]
    style: str = ""  # "ours", "baseline" or "head"


@dataclass(frozen=True)
class Table:
    """A table; one that is wider than the screen scrolls by itself."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Row]
    style: str = ""


@dataclass(frozen=True)
class Image:
    """A PNG or GIF, written into the page itself."""

    format: str  # "png" or "gif"
    data: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The address that holds the whole file."""
        return f"data:image/{self.format};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Figure:
    """An image or a plot with a title and a caption below."""

    picture: Image | Plot
    title: str
    caption: str = ""
    style: str = ""  # of the title: "won" or "lost"

    def svg(self, prefix: str) -> Markup:
        """The plot for the page, its names made unique by `prefix`; empty for an image."""
        return Markup(self.picture.svg(prefix)) if isinstance(self.picture, Plot) else Markup()


@dataclass(frozen=True)
class Grid:
    """Figures side by side, as many as the screen has room for."""

    kind: ClassVar[str] = "grid"
    figures: Sequence[Figure]
    style: str = ""  # "pairs", "triple", "films" or "whole"


@dataclass(frozen=True)
class Strip:
    """Named rows of frames under the steps that they belong to."""

    kind: ClassVar[str] = "strip"
    steps: Sequence[str]
    rows: Sequence[tuple[str, Image]]


@dataclass(frozen=True)
class Text:
    """A paragraph, or with `heading` a small heading."""

    kind: ClassVar[str] = "text"
    text: str
    style: str = ""
    heading: bool = False


@dataclass(frozen=True)
class Listing:
    """A text as it is in a file, behind its title until that is opened."""

    kind: ClassVar[str] = "listing"
    title: str
    text: str


Block = Table | Grid | Strip | Text | Listing


@dataclass(frozen=True)
class Section:
    """One part of the page; one without blocks says which command makes it."""

    key: str
    title: str
    says: str  # how to read it, one or two sentences
    blocks: Sequence[Block]
    stage: str  # what makes it


@dataclass(frozen=True)
class Group:
    """Sections that belong together, under one heading."""

    key: str
    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Tile:
    """One of the few figures at the top."""

    value: str
    says: str
    style: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page; `run` is the folder that the commands for what is absent name."""

    name: str
    lead: str
    tiles: Sequence[Tile]
    groups: Sequence[Group]
    run: str

    def html(self) -> str:
        """The document."""
        environment = Environment(
            loader=PackageLoader("jepa_wm.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html.j2")
        return template.render(page=self, command=lambda stage: command_line(stage, self.run))

    def keys(self, *, present: bool) -> list[str]:
        """The keys of the sections that are there, or of those that are not."""
        every = [section for group in self.groups for section in group.sections]
        return [section.key for section in every if bool(section.blocks) == present]


# Stage -> what makes its part of the page of everything that is stored; others' stages without one
# are shown by the figures of their results.
PARTS: Registry[Callable[[RunArtifacts], Group]] = Registry(
    "report_parts",
    "part of the report",
    {
        "plan": "jepa_wm.report.acting",
        **dict.fromkeys(("heads", "dynamics"), "jepa_wm.report.learning"),
        "pretrain": "jepa_wm.report.pretraining",
    },
)


def command_line(stage: str, run: str) -> str:
    """The command that does a stage again with the very settings of a run folder."""
    return f"jepa-wm {stage} --config {shlex.quote(f'{run}/config.yaml')} --run {shlex.quote(run)}"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` figures, never less than the whole part; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def percent(rate: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "–" if rate is None else f"{100 * rate:.1f} %"


def with_unit(value: float | None, unit: str | None, digits: int = 3) -> str:
    """A number with its unit, where it has one."""
    return f"{number(value, digits)} {unit or ''}".rstrip()


def clock(seconds: float | None) -> str:
    """12.3 s, 4 min 05 s, 1 h 12 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
