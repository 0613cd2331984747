"""`jepa-wm eval planning`: success on frozen tasks; `python -m jepa_wm.evals.planning freeze FILE`
makes them."""

from __future__ import annotations

import argparse
from pathlib import Path

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.tasks import Tasks, freeze_tasks


def main() -> None:
    """Freeze a task file: layout, start and goal of every episode, on held-out layouts and on
    training layouts."""
    parser = argparse.ArgumentParser(
        prog="python -m jepa_wm.evals.planning", description=main.__doc__
    )
    parser.add_argument("command", choices=["freeze"])
    parser.add_argument("file", type=Path, help="where to write the JSON")
    parser.add_argument("--task", choices=["two_rooms", "wall"], default="two_rooms")
    parser.add_argument("--episodes", type=int, default=100, help="on layouts of each kind")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    tasks = freeze_tasks(words.task, episodes=words.episodes, seed=words.seed)
    if words.file.exists() and not _holds(words.file, tasks):
        parser.error(
            f"{words.file}: holds something else, on which results may stand; name another file, or delete it"
        )
    tasks.save(words.file)
    print(
        f"{words.file}: {len(tasks)} episodes of {tasks.name}, half on held-out layouts, digest {tasks.digest}"
    )


def _holds(file: Path, tasks: Tasks) -> bool:
    try:
        return Tasks.load(file).digest == tasks.digest
    except UserError:  # no tasks at all
        return False


if __name__ == "__main__":
    main()
