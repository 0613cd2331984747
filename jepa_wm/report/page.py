"""The pieces of the page: sections, tables, pictures as data URIs, one style sheet; no scripts, no
links out."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jepa_wm.report.style import Draw, panels

CSS = """
:root{color-scheme:light dark;--ground:#fbfbfa;--card:#fff;--ink:#23272e;--quiet:#6b7380;--rule:#e4e6ea;
--good:#1f6fb2;--bad:#c25a14;--tint:#eef4fa;--shadow:0 1px 2px rgba(20,25,35,.05)}
@media(prefers-color-scheme:dark){:root{--ground:#14161b;--card:#1b1e25;--ink:#e3e6eb;--quiet:#98a1ad;
--rule:#2b3038;--good:#6cb2eb;--bad:#f29a57;--tint:#1d2733;--shadow:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:44px 24px 72px}
h1{font-size:1.75rem;font-weight:650;letter-spacing:-.015em;margin:0;line-height:1.25}
h2{font-size:1.28rem;font-weight:650;letter-spacing:-.01em;margin:60px 0 0;padding-top:22px;
border-top:1px solid var(--rule)}
h3{font-size:1rem;font-weight:650;margin:32px 0 2px}h4{font-size:.9rem;font-weight:600;margin:20px 0 8px}
p{margin:2px 0 14px;max-width:74ch}.lead{font-size:1.1rem;margin:10px 0 26px}.quiet,figcaption{color:var(--quiet)}
em{font-style:normal}.won{color:var(--good)}.lost{color:var(--bad)}nav{margin:22px 0 0;font-size:.9rem}
nav a{color:var(--quiet);margin-right:18px;text-decoration:none;border-bottom:1px solid var(--rule)}
.tiles,.grid{display:grid;gap:16px;grid-template-columns:repeat(3,minmax(0,1fr))}
.grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));margin:10px 0 6px}
.tile,figure{background:var(--card);border:1px solid var(--rule);border-radius:10px;box-shadow:var(--shadow)}
.tile{padding:14px 18px}.tile b{display:block;font-size:1.7rem;font-weight:600;letter-spacing:-.02em;line-height:1.25;
font-variant-numeric:tabular-nums}.tile span{font-size:.86rem;color:var(--quiet);line-height:1.4;display:block}
figure{margin:0;padding:12px;min-width:0}figure img{display:block;width:100%;height:auto;border-radius:5px}
figcaption{font-size:.86rem;line-height:1.45;margin-top:8px}figcaption b{color:var(--ink);font-weight:600}
.strip img{image-rendering:pixelated}.film{padding:0;overflow:hidden}
.film img{border-radius:0}.film figcaption{margin:0;padding:9px 14px 11px}
.pairs{max-width:716px}.triple{grid-template-columns:repeat(3,minmax(0,1fr));max-width:860px}
.wide{overflow-x:auto;margin:10px 0 6px;background:var(--card);border:1px solid var(--rule);border-radius:10px;
box-shadow:var(--shadow)}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 10px;text-align:right;white-space:nowrap;border-top:1px solid var(--rule)}
thead th{border-top:0;font-weight:500;color:var(--quiet);font-size:.84rem}
th:first-child,td:first-child{text-align:left;font-weight:400;padding-left:14px}th:last-child,td:last-child{padding-right:14px}
.facts td,.commands td:last-child,.commands th:last-child{text-align:left}.facts td{white-space:normal}
.facts tr:first-child>*{border-top:0}tr.ours td,tr.ours th{background:var(--tint);font-weight:600}
tr.head th{color:var(--quiet);font-size:.84rem;padding-top:16px}
.bar{position:relative;display:block;min-width:96px;height:14px}
.bar:before{content:"";position:absolute;left:0;right:0;top:6.5px;height:1px;background:var(--rule)}
.bar i{position:absolute;top:3px;height:8px;border-radius:4px;background:var(--good);opacity:.32}
.bar u{position:absolute;top:2px;width:3px;height:10px;margin-left:-1.5px;border-radius:2px;background:var(--good)}
.baseline .bar i,.baseline .bar u{background:var(--quiet)}
.strip{display:grid;align-items:center;gap:2px 10px;grid-template-columns:78px 1fr;min-width:620px;padding:12px 14px;
font-size:.84rem;color:var(--quiet)}.strip img{width:100%;display:block}.strip div{display:flex}
.strip div span{flex:1;text-align:center}.absent{color:var(--quiet);border:1px dashed var(--rule);border-radius:10px;
padding:11px 16px;max-width:none;margin:8px 0 0}
code,pre{font:.88em/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{overflow-x:auto;margin:8px 0;padding:14px 18px;background:var(--card);border:1px solid var(--rule);
border-radius:10px}
summary{cursor:pointer;color:var(--quiet);margin:14px 0 0}
@media(max-width:560px){main{padding:26px 15px 48px}h1{font-size:1.45rem}th,td{padding:8px 10px}.triple{gap:6px}
.triple figure{padding:5px}.triple figcaption{font-size:.74rem}.tiles{grid-template-columns:1fr 1fr;gap:10px}
nav a{display:inline-block}tbody th:first-child{white-space:normal;min-width:9.5em;line-height:1.35}
.tile{padding:11px 13px}.tile b{font-size:1.4rem}}
"""


@dataclass(frozen=True)
class Section:
    """One part of the page; without a body it says which command makes it."""

    key: str
    title: str
    says: str  # how to read it, one or two sentences of plain text
    body: str | None  # HTML
    command: str


@dataclass(frozen=True)
class Group:
    """Sections that belong together, under one heading."""

    key: str
    title: str
    sections: Sequence[Section]


def page(title: str, head: str, groups: Sequence[Group], *, run: str) -> str:
    """The whole document; `head` is HTML, `run` the folder named in the commands for what is
    absent."""
    links = "".join(f'<a href="#{group.key}">{escape(group.title)}</a>' for group in groups)
    body = "\n".join(_group(group, run) for group in groups)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"{head}\n<nav>{links}</nav>\n{body}\n</main>\n</body>\n</html>\n"
    )


def command_line(command: str, run: str) -> str:
    """The command that does a command again with the very settings of a run folder."""
    return (
        f"jepa-wm {command} --config {shlex.quote(f'{run}/config.yaml')} --run {shlex.quote(run)}"
    )


def data_uri(kind: str, data: bytes) -> str:
    """`kind` is "png" or "gif"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def figure(image: str, caption: str, *, style: str = "") -> str:
    """`image` and `caption` are HTML."""
    return f'<figure class="{style}">{image}<figcaption>{caption}</figcaption></figure>'


def img(kind: str, data: bytes, alt: str) -> str:
    return f'<img src="{data_uri(kind, data)}" alt="{escape(alt)}">'


def panel(draw: Draw, title: str, caption: str) -> str:
    """One plot in two renderings, of which the browser shows the one that suits the reader's
    theme."""
    light, dark = panels(draw)
    picture = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{data_uri("png", dark)}">'
        f"{img('png', light, f'{title}: {caption}')}</picture>"
    )
    return figure(picture, f"<b>{escape(title)}</b> {escape(caption)}")


def grid(items: Sequence[str], *, style: str = "") -> str:
    return f'<div class="grid {style}">{"".join(items)}</div>'


def table(header: Sequence[str], rows: Sequence[str], *, style: str = "") -> str:
    """Rows are HTML of <tr> elements; a table wider than the screen scrolls by itself."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    head = f"<thead><tr>{cells}</tr></thead>" if header else ""
    return f'<div class="wide"><table class="{style}">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def row(cells: Sequence[str], *, style: str = "") -> str:
    """Cells are HTML, the first one heads the row."""
    first, *rest = cells
    inner = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr class="{style}"><th scope="row">{first}</th>{inner}</tr>'


def number(value: float | None, digits: int = 3) -> str:
    """`digits` figures, never less than the whole part; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def _group(group: Group, run: str) -> str:
    return f'<h2 id="{group.key}">{escape(group.title)}</h2>\n' + "\n".join(
        _section(s, run) for s in group.sections
    )


def _section(section: Section, run: str) -> str:
    head = f'<section id="{section.key}">\n<h3>{escape(section.title)}</h3>\n'
    if section.body is None:
        command = f"<code>{escape(command_line(section.command, run))}</code>"
        return f'{head}<p class="absent">Not there yet: {command} makes it.</p>\n</section>'
    return f"{head}<p class=quiet>{escape(section.says)}</p>\n{section.body}\n</section>"
