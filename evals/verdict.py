"""Which stage of a world model is at fault where its plans fail: rules on what of the state each
stage keeps, and on what plans gain where one part is replaced by the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Weakest = Literal["encoder", "latent", "dynamics", "cost", "search", "none", "unknown"]
Row = Mapping[str, Any]

KEPT = 0.1  # normalised mean square error up to which a group of the state is kept
ABOUT = 0.05  # of the tasks: a smaller difference to the oracle is none
# stage -> the row of plans in which it is replaced by something better
REPLACED: dict[Weakest, str] = {
    "dynamics": "true_dynamics",
    "cost": "true_cost",
    "search": "more_search",
}
MEANS = {
    "more_search": "more samples and iterations",
    "true_dynamics": "the true dynamics under the learned cost",
    "true_cost": "the true cost on imagined latents",
}


class Gain(NamedTuple):
    """What replacing a stage wins over the search, in shares of the tasks both played."""

    stage: Weakest
    difference: float
    clear: bool  # whether the paired interval lies above 0
    text: str  # the evidence


def verdict(state: Sequence[Row], plans: Sequence[Row]) -> tuple[Weakest, str]:
    """(the weakest stage, a sentence that names it and its evidence), by these rules, the first
    that holds:

    1. none: no part that is replaced wins with its interval above 0, the paired interval of the
       oracle's difference to the search holds 0, and the difference is below ABOUT. Unknown in
       place of none, where the oracle itself wins less than half;
    2. encoder: a group of the state that the task's distance depends on (`of_task`) is read from
       the features with more than KEPT of the mean's error, unless the plans with true dynamics
       or with the true cost, which look through the same encoder, are about as good as the
       oracle on the same tasks;
    3. latent: the same of the latent, for a group that the features keep;
    4. dynamics, cost or search: what replaces it wins, its interval above 0, the largest
       difference first. The cost also where the plans with true dynamics do not clearly win, and
       less than half of what the oracle clearly does;
    5. the same by differences of at least ABOUT whose intervals hold 0, which the sentence says;
    6. dynamics, where true ones could not be tried: a group that the latent keeps is imagined with
       more than KEPT of the mean's error, and no better than with shuffled actions;
    7. unknown.

    `state` are rows with `group`, `of_task`, `features`, `latent`, `imagined` and `shuffled`
    (normalised errors, or None), `plans` with `plan`, `success_final` (None: not played), and
    beside the search `difference`, `low_difference` and `high_difference`. Raises ValueError
    without a row `search`."""
    rows = {str(row["plan"]): row for row in plans if row["success_final"] is not None}
    if "search" not in rows:
        raise ValueError("plans hold no row 'search' that was played: nothing can be compared")
    reached = f"The search reaches {_percent(rows['search']['success_final'])} of the goals"
    oracle, gains = rows.get("oracle"), list(_gains(rows))
    even = oracle is not None and oracle["low_difference"] <= 0 and oracle["difference"] < ABOUT
    if oracle is not None and even and not any(gain.clear for gain in gains):
        as_many = f"{reached}, no fewer than the oracle ({_against(oracle)})"
        if oracle["success_final"] < 0.5:
            return "unknown", (
                f"{as_many}, which wins few itself: raise evaluation.budget, planner.mpc.horizon "
                "or the samples of planner.solver first."
            )
        return "none", f"{as_many}: no stage is at fault."

    # What an earlier stage does not show, no later one can mend.
    if not _sees(rows):
        counting = [row for row in state if row["of_task"]]
        for stage, read in (("encoder", "features"), ("latent", "latent")):
            lost = [row for row in counting if row[read] is not None and row[read] > KEPT]
            if lost:
                return _lost(stage, read, max(lost, key=lambda row: row[read]), reached)

    # Of the rest, whatever wins the most when it is replaced.
    best = max(gains, key=lambda gain: (gain.clear, gain.difference), default=None)
    if best is None or not (best.clear or best.difference >= ABOUT):
        return _untold(state, rows, reached)
    unsure = "" if best.clear else " The interval holds 0: play more episodes to be sure."
    return best.stage, f"{reached}; the weakest stage is the {best.stage}: {best.text}.{unsure}"


def _untold(state: Sequence[Row], rows: Mapping[str, Row], reached: str) -> tuple[Weakest, str]:
    """The verdict where no part that was replaced wins."""
    oracle = rows.get("oracle")
    dead = [row for row in state if row["of_task"] and _dead(row)]
    if dead and "true_dynamics" not in rows:
        return "dynamics", (
            f"{reached}; the weakest stage is the dynamics: {dead[0]['group']!r} is imagined "
            f"with a normalised error of {dead[0]['imagined']:.2f}, with shuffled actions "
            f"{dead[0]['shuffled']:.2f} ({dead[0]['latent']:.2f} in the latent)."
        )
    beside = f", the oracle {_against(oracle)}" if oracle is not None else ""
    return "unknown", f"{reached}{beside}, and no part that could be replaced wins clearly."


def _gains(rows: Mapping[str, Row]) -> list[Gain]:
    """What every stage that was replaced wins."""
    gains = [
        Gain(
            stage, rows[name]["difference"], rows[name]["low_difference"] > 0,
            f"{MEANS[name]} win {_against(rows[name])}",
        )
        for stage, name in REPLACED.items()
        if name in rows
    ]  # fmt: skip
    # Where true dynamics hardly help and the oracle does, what it has besides is the true cost.
    # Both on the tasks that were played with true dynamics, which are the fewest.
    simulated = rows.get("true_dynamics")
    if simulated is None or simulated.get("oracle_low_difference", 0) <= 0:
        return gains
    helped, best = max(simulated["difference"], 0.0), simulated["oracle_difference"]
    if simulated["low_difference"] <= 0 and helped < best / 2:
        text = (
            f"the oracle wins {100 * best:+.0f} % of the same tasks, and the true dynamics under "
            f"the learned cost only {_against(simulated)}"
        )
        gains.append(Gain("cost", best - helped, True, text))
    return gains


def _sees(rows: Mapping[str, Row]) -> bool:
    """Whether plans that look through encoder and latent are about as good as the oracle on the
    same tasks."""
    oracle, simulated, read = (rows.get(name) for name in ("oracle", "true_dynamics", "true_cost"))
    if (
        simulated is not None
        and "oracle_difference" in simulated
        and simulated["difference"] > simulated["oracle_difference"] - ABOUT
    ):
        return True
    if oracle is None or read is None:
        return False
    return bool(read["difference"] > oracle["difference"] - ABOUT)


def _dead(row: Row) -> bool:
    """Whether a group that the latent keeps is lost once it is imagined, whatever is done."""
    kept, imagined, shuffled = (row.get(name) for name in ("latent", "imagined", "shuffled"))
    if kept is None or imagined is None or shuffled is None:
        return False
    return bool(kept <= KEPT < imagined and imagined > 0.9 * shuffled)


def _lost(stage: Any, read: str, row: Row, reached: str) -> tuple[Weakest, str]:
    """The verdict on a stage that does not keep a group of the state."""
    before = ""
    if stage == "latent":
        before = f" ({row['features']:.2f} in the features)"
    return stage, (
        f"{reached}; the weakest stage is the {stage}: {row['group']!r}, which the task's "
        f"distance depends on, is read from the {read} with a normalised error of "
        f"{row[read]:.2f}{before}, and at most {KEPT:g} is kept."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _against(row: Row) -> str:
    low, middle, high = (
        100 * row[key] for key in ("low_difference", "difference", "high_difference")
    )
    return f"{middle:+.0f} % of {row['n']} tasks (95 % interval {low:+.0f} to {high:+.0f} %)"
