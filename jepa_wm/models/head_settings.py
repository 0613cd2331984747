"""Settings of what is trained on frozen latents: readers of them, and policies toward goals, each
an entry of POLICIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from jepa_wm.core.registry import EntryName, Registry
from jepa_wm.core.settings import Section, none_twice

if TYPE_CHECKING:
    from jepa_wm.models.policies import Policy

_OWN = ("gcbc", "gc_idm", "gcivl")
# Rows beside policies: what evaluations compare them with.
_OTHERS = (
    "search", "oracle", "random", "random_encoder", "straight_line", "shortest_way",
    "joint_control", "idle", "recorded",
    "mean_action", "another_window", "no_motion", "more_search", "search_by_costs",
    "true_dynamics", "true_cost",
)  # fmt: skip
POLICIES: Registry[type[Policy]] = Registry(
    "policies", "policy", dict.fromkeys(_OWN, "jepa_wm.models.policies"), reserved=_OTHERS
)
# Policies toward goals: heads are trained to be them, planners and evaluations play them.
PolicyName = Annotated[str, EntryName(POLICIES)]


class HeadSettings(Section):
    """Heads on frozen latents: reward, termination, state, and policies toward goals."""

    width: int = Field(256, ge=1)
    bins: int = Field(63, ge=2)  # of the reward's distribution
    # gcbc: behaviour cloning; gc_idm: inverse dynamics of efficient legs; gcivl: implicit values
    policies: tuple[PolicyName, ...] = _OWN
    # frames, model steps apart, that a policy reads at the start: one shows no speed; null: as
    # many as the dynamics
    policy_frames: int | None = Field(None, ge=1)
    # model steps a policy answers with; a longer plan repeats its last
    policy_steps: int = Field(6, ge=1)

    _once = field_validator("policies")(none_twice)
