"""Settings of the cost that a search minimises: its terms, each with its weight, and limits on
actions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jepa_wm.core.settings import Section

Reduction = Literal["last", "all", "rising"]
Goal = Literal["temporal", "l1", "l2", "cosine", "near_far", "state"]


class Limits(Section):
    """Linear limits A x <= b on every environment action x, priced where a plan exceeds them."""

    matrix: tuple[tuple[float, ...], ...] = Field(min_length=1)  # A, a row a limit
    bound: tuple[float, ...]  # b, a number a limit
    weight: float = Field(
        1e3, gt=0
    )  # of the mean excess: so large that what is allowed stays best

    @model_validator(mode="after")
    def _fits(self) -> Limits:
        if len(self.bound) != len(self.matrix) or len({len(row) for row in self.matrix}) > 1:
            raise ValueError(
                f"matrix has {len(self.matrix)} rows and bound {len(self.bound)} numbers: one "
                "each, rows of one length"
            )
        return self


class CostSettings(Section):
    """What a search minimises: the objective, and terms beside it, each with its weight."""

    # A distance to the goal image's latent (temporal: the learned one; near_far: that one far from
    # the goal, the latent's own within one plan of it), to the state that is read from it, or
    # reward with a minus.
    objective: Literal["temporal", "l1", "l2", "cosine", "near_far", "state", "reward"] = (
        "temporal"
    )
    steps: Reduction = "all"  # which imagined steps are compared with the goal
    # The temporal distance is read at its worst within so much of each dynamic number (spread 1).
    robust_radius: float = Field(0.0, ge=0)
    reward: float = Field(0.0, ge=0)  # weight of the expected reward beside the objective
    discount: float = Field(0.99, gt=0, le=1)  # of rewards, a model step
    state: float = Field(0.0, ge=0)  # weight of the distance to the goal's state
    state_names: tuple[str, ...] = ()  # the numbers of the state that count; empty: all
    # weight of the distance to the goal's proprioception (latent.proprio), where goals carry it
    proprio: float = Field(0.0, ge=0)
    uncertainty_weight: float = 0.0  # of the disagreement of an ensemble; below 0 it is sought
    num_futures: int = Field(4, ge=1)  # imagined a plan where dynamics are a mixture; averaged
    limits: Limits | None = None  # on environment actions
    effort: float = Field(0.0, ge=0)  # weight of the mean squared difference from doing nothing
    smoothness: float = Field(0.0, ge=0)  # weight of the mean squared change between actions
