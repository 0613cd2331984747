"""Settings of what is trained on frozen latents: readers of them, and policies toward goals."""

from __future__ import annotations

from pydantic import Field, field_validator

from jepa_wm.core.settings import PolicyName, Section, none_twice


class HeadSettings(Section):
    """Heads on frozen latents: reward, termination, state, and policies toward goals."""

    width: int = Field(256, ge=1)
    bins: int = Field(63, ge=2)  # of the reward's distribution
    # gcbc: behaviour cloning; gc_idm: inverse dynamics of efficient legs; gcivl: implicit values
    policies: tuple[PolicyName, ...] = ("gcbc", "gc_idm", "gcivl")
    # model steps a policy answers with; a longer plan repeats its last
    policy_steps: int = Field(6, ge=1)

    _once = field_validator("policies")(none_twice)
