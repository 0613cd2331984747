"""Settings of the planner: solver, cost, receding horizon."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jepa_wm.core.section import Section


class ICEMSettings(Section):
    """What iCEM has beside the settings of CEM."""

    momentum: float = Field(0.1, ge=0, lt=1)  # share of the old mean and spread that a refit keeps
    colour: float = Field(
        2.0, ge=0
    )  # noise over the horizon is 1 / f**colour: 0 white, 2 Brownian
    shrink: float = Field(
        1.25, ge=1
    )  # candidates of a round over those of the next, down to twice the elites
    kept: float = Field(
        0.3, ge=0, le=1
    )  # share of the elites that the next round and the next decision try again


class GradientSettings(Section):
    """Adam on the plans: solvers gradient and cem_gradient. Shares are of the action box's half
    width."""

    restarts: int = Field(16, ge=2)  # plans that are improved side by side
    steps: int = Field(20, ge=1)
    lr: float = Field(0.1, gt=0)  # Adam's, as a share
    std: float = Field(0.5, gt=0)  # first spread of the restarts around the warm start, as a share
    noise: float = Field(
        0.0, ge=0
    )  # added after each step and falling to none at the last, as a share
    truncate: int = Field(0, ge=0)  # the gradient is cut every so many model steps; 0: never


class Limits(Section):
    """Linear limits A x <= b on every environment action x, priced where a plan exceeds them."""

    matrix: tuple[tuple[float, ...], ...] = Field(min_length=1)  # A, a row a limit
    bound: tuple[float, ...]  # b, a number a limit
    weight: float = Field(
        1e3, gt=0
    )  # of the mean excess: so large that the best allowed plan stays best

    @model_validator(mode="after")
    def _fits(self) -> Limits:
        if len(self.bound) != len(self.matrix) or len({len(row) for row in self.matrix}) > 1:
            raise ValueError(
                f"matrix has {len(self.matrix)} rows and bound {len(self.bound)} numbers: one each, rows of one length"
            )
        return self


class PlannerSettings(Section):
    """The solver and what it minimises."""

    # amortised: no search, the policy that `jepa-wm heads` trained says what leads toward the
    # goal.
    solver: Literal["cem", "icem", "mppi", "random", "gradient", "cem_gradient", "amortised"] = (
        "cem"
    )
    propose: bool = False  # that policy's plan is where each search starts
    # What is minimised: a distance to the goal image's latent, to the state read from it, or
    # reward with a minus.
    objective: Literal["metric", "l1", "l2", "cosine", "state", "reward"] = "metric"
    compare: tuple[Literal["metric", "l1", "l2", "cosine", "state"], ...] = (
        "l2",
    )  # objectives reported beside it
    steps: Literal["last", "all", "rising"] = (
        "all"  # which imagined steps are compared with the goal
    )
    margin: float = Field(
        0.0, ge=0
    )  # the metric is read at its worst within so much of each moving number (spread 1)
    reward: float = Field(0.0, ge=0)  # weight of the expected reward beside the objective
    discount: float = Field(0.99, gt=0, le=1)  # of rewards, a model step
    state: float = Field(
        0.0, ge=0
    )  # weight of the distance to the goal's state beside the objective
    state_names: tuple[str, ...] = ()  # the numbers of the state that count; empty: all
    doubt: float = (
        0.0  # weight of the disagreement of an ensemble beside the objective; below 0 it is sought
    )
    draws: int = Field(
        4, ge=1
    )  # futures imagined per plan where dynamics have outcomes; their costs are averaged
    limits: Limits | None = None  # on environment actions
    effort: float = Field(
        0.0, ge=0
    )  # weight of the mean squared action, or of its difference from doing nothing
    smoothness: float = Field(
        0.0, ge=0
    )  # weight of the mean squared change between successive environment actions
    horizon: int = Field(6, ge=1)  # model steps
    candidates: int = Field(128, ge=2)  # not of solver gradient, which has gradient.restarts
    rounds: int = Field(6, ge=1)  # not of solver gradient, which has gradient.steps
    elites: int = Field(16, ge=1)
    std: float = 0.7  # first spread, as a share of the action box's half width
    min_std: float = 0.05
    temperature: float = 0.5  # MPPI only
    icem: ICEMSettings = ICEMSettings()
    gradient: GradientSettings = GradientSettings()
    hold: bool = True  # one action is searched per model step and held for its `frameskip` environment steps
    execute: int = Field(1, ge=1)  # model steps executed before planning again
    compile: bool = False  # torch.compile makes the dynamics' layers: for GPUs
    cuda_graphs: bool = False  # imagining is recorded once and replayed: for GPUs, where small models wait for launches
    memory_mb: float = Field(
        2048, gt=0
    )  # bound on what imagining candidates takes; they come in pieces that fit

    @property
    def needs_heads(self) -> bool:
        """Whether planning reads a head (command heads)."""
        reads = self.objective in ("state", "reward") or self.reward > 0 or self.state > 0
        return reads or self.asks_policy

    @property
    def asks_policy(self) -> bool:
        """Whether the policy toward goals has a say."""
        return self.propose or self.solver == "amortised"

    @model_validator(mode="after")
    def _fits(self) -> PlannerSettings:
        if self.solver == "icem" and not 2 <= self.elites <= self.candidates // 2:
            raise ValueError(
                f"elites {self.elites} with candidates {self.candidates}: solver icem needs at least 2 elites and "
                "twice as many candidates; change elites or candidates"
            )
        if self.compile and self.cuda_graphs:
            raise ValueError(
                "compile and cuda_graphs are two ways to launch less; set one of them to false"
            )
        descends, cut = self.solver in ("gradient", "cem_gradient"), self.gradient.truncate
        if descends and self.steps == "last" and 0 < cut < self.horizon:
            raise ValueError(
                f"gradient.truncate {cut} below horizon {self.horizon} leaves the first actions without gradient when "
                "steps is last; set gradient.truncate 0, or steps all or rising"
            )
        return self
