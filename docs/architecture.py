"""Writes docs/architecture.svg, the rooms and who imports whom, read from the source: `python
docs/architecture.py`.

An arrow that others imply is left out: where a imports b and b imports c, a may import c as
well."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
AT_THE_TOP = ("evals", "launch")  # rooms beside jepa_wm/, which install as jepa_wm.<name>
HOLDS = {  # in the order of a row, from left to right
    "core": "config, runs, stages, registry",
    "data": "trajectories, video, readers",
    "models": "ViT, JEPA, latent, dynamics",
    "launch": "here, torchrun, SLURM",
    "worlds": "protocols, collection",
    "features": "frozen encoder, cache",
    "world_model": "encode, imagine, distance",
    "training": "the loop, the stages",
    "planning": "costs, solvers, agent",
    "report": "one page, charts, films",
    "evals": "success, probes, baselines",
    "integrations": "harnesses of others",
}
WIDTH, HEIGHT, GAP, RISE = 190, 52, 24, 62  # px of a box, and between boxes and rows


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that its files import, wherever in the file."""
    edges: dict[str, set[str]] = {}
    for room in HOLDS:
        folder = ROOT / room if room in AT_THE_TOP else ROOT / "jepa_wm" / room
        modules = set()
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        imported = {name.split(".")[1] for name in modules if name.startswith("jepa_wm.")}
        edges[room] = (imported & set(HOLDS)) - {room}
    return edges


def reach(edges: dict[str, set[str]], room: str) -> set[str]:
    """All rooms that a room imports, directly or by way of others."""
    below = set(edges[room])
    for other in edges[room]:
        below |= reach(edges, other)
    return below


def essential(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no other arrows imply."""
    kept = {}
    for room, below in edges.items():
        implied = set().union(*(reach(edges, other) for other in below))
        kept[room] = below - implied
    return kept


def rows(edges: dict[str, set[str]]) -> list[list[str]]:
    """The rooms by the longest way down, the lowest first."""
    depth: dict[str, int] = {}

    def down(room: str) -> int:
        if room not in depth:
            depth[room] = 1 + max((down(other) for other in edges[room]), default=-1)
        return depth[room]

    return [[r for r in HOLDS if down(r) == n] for n in range(max(map(down, HOLDS)) + 1)]


def svg() -> str:
    """The picture: the lowest room at the foot, an arrow from who imports to what it imports."""
    edges = imports()
    lines, place = rows(edges), {}
    widest = max(map(len, lines))
    width, height = widest * (WIDTH + GAP) + GAP, len(lines) * (HEIGHT + RISE) + GAP
    for n, line in enumerate(lines):
        left = (width - len(line) * (WIDTH + GAP) + GAP) / 2
        for i, room in enumerate(line):
            place[room] = (left + i * (WIDTH + GAP), height - GAP - HEIGHT - n * (HEIGHT + RISE))
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'role="img" aria-label="The rooms and who imports whom" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#7a869a"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fbfbfd"/>',
    ]
    for room, below in essential(edges).items():
        for other in sorted(below):
            x, y = place[room][0] + WIDTH / 2, place[room][1] + HEIGHT
            u, v = place[other][0] + WIDTH / 2, place[other][1] - 2
            a, b = x, u  # where the curve is drawn to on its way
            if v - y > HEIGHT + RISE:  # it passes a row: beside the boxes there, not behind them
                a = b = min(x, u) - WIDTH
            drawn.append(
                f'<path d="M{x:g} {y:g}C{a:g} {y + RISE / 2:g} {b:g} {v - RISE / 2:g} {u:g} {v:g}"'
                ' fill="none" stroke="#7a869a" stroke-width="1.4" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in place.items():
        drawn += [
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#e8edf7" '
            'stroke="#3b5b92"/>',
            f'<text x="{x + WIDTH / 2:g}" y="{y + 22:g}" text-anchor="middle" font-size="15" '
            f'font-weight="600" fill="#1c2b4a">{room}</text>',
            f'<text x="{x + WIDTH / 2:g}" y="{y + 40:g}" text-anchor="middle" font-size="11" '
            f'fill="#44506a">{HOLDS[room]}</text>',
        ]
    return "\n".join([*drawn, "</svg>"]) + "\n"


if __name__ == "__main__":
    (HERE / "architecture.svg").write_text(svg(), encoding="utf-8")
