"""Settings of the planner: the solver (an entry of SOLVERS, chosen by its name), the cost that it
minimises, the receding horizon. Shares are of the action box's half width."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section

if TYPE_CHECKING:
    from jepa_wm.planning.action_space import Space
    from jepa_wm.planning.search import Solver

Reduction = Literal["last", "all", "rising"]
Goal = Literal["temporal", "l1", "l2", "cosine", "state"]


class SolverSettings(Section):
    """What every solver's settings say beside their numbers; `make` is theirs to define."""

    needs_gradient: ClassVar[bool] = False  # whether the cost has to be differentiable
    uses_policy: ClassVar[bool] = False  # whether the policy of the heads proposes its plans
    name: str

    def make(self, space: Space, horizon: int) -> Solver:
        """The solver of plans of `horizon` model steps; ValueError where it cannot search the
        space."""
        raise NotImplementedError

    def by_costs(self) -> SolverSettings:
        """The solver that stands in where there are costs alone, neither gradient nor policy."""
        return CEM() if self.needs_gradient or self.uses_policy else self


_OWN = ("cem", "icem", "mppi", "random", "gradient", "cem_gradient", "policy")
SOLVERS: Registry[type[SolverSettings]] = Registry(
    "solvers", "solver", dict.fromkeys(_OWN, __name__)
)


class Sampling(SolverSettings):
    """Solvers that draw plans, round after round."""

    num_samples: int = Field(128, ge=2)  # plans of a round
    iterations: int = Field(6, ge=1)  # rounds


class Gaussian(Sampling):
    """Solvers that draw around a mean; spreads are shares."""

    std: float = Field(0.7, gt=0)  # at first
    min_std: float = Field(0.05, ge=0)  # the least

    @model_validator(mode="after")
    def _spread_falls(self) -> Gaussian:
        if self.min_std > self.std:
            raise ValueError(f"min_std {self.min_std:g} exceeds std {self.std:g}; lower min_std")
        return self


@SOLVERS.register("cem")
class CEM(Gaussian):
    """Cross-entropy method, for continuous and for discrete actions. Source: R. Rubinstein,
    Methodology and Computing in Applied Probability 1 (1999); as in V-JEPA 2-AC."""

    name: Literal["cem"] = "cem"
    elites: int = Field(16, ge=1)  # the cheapest plans of a round, which the next is fitted to
    momentum: float = Field(0.0, ge=0, lt=1)  # share of the old fit that a refit keeps
    explore: float = Field(0.05, ge=0, le=1)  # discrete actions: chance that is spread evenly

    @model_validator(mode="after")
    def _elites_fit(self) -> CEM:
        if self.elites > self.num_samples:
            raise ValueError(
                f"elites {self.elites} exceed num_samples {self.num_samples}; lower elites"
            )
        return self

    def make(self, space: Space, horizon: int) -> Solver:
        return space.cem(self, horizon)


@SOLVERS.register("icem")
class ICEM(Gaussian):
    """CEM for few samples: smooth plans, elites that are tried again, a population that shrinks.
    Source: C. Pinneri et al., CoRL 2020."""

    name: Literal["icem"] = "icem"
    elites: int = Field(16, ge=2)
    momentum: float = Field(0.1, ge=0, lt=1)  # share of the old fit that a refit keeps
    noise_beta: float = Field(2.0, ge=0)  # noise over the horizon is 1 / f**noise_beta: 0 white
    population_decay: float = Field(1.25, ge=1)  # samples of a round over those of the next
    keep_elites: float = Field(0.3, ge=0, le=1)  # share that the next round and decision try

    @model_validator(mode="after")
    def _elites_fit(self) -> ICEM:
        if self.elites > self.num_samples // 2:
            raise ValueError(
                f"elites {self.elites} with num_samples {self.num_samples}: solver icem shrinks "
                "to twice the elites; change elites or num_samples"
            )
        return self

    def make(self, space: Space, horizon: int) -> Solver:
        from jepa_wm.planning.solvers import ICEMSolver

        return ICEMSolver(self, space, horizon)


@SOLVERS.register("mppi")
class MPPI(Gaussian):
    """Model predictive path integral; the spread falls from std to min_std over the rounds.
    Source: G. Williams et al., ICRA 2017."""

    name: Literal["mppi"] = "mppi"
    min_std: float = Field(0.05, gt=0)
    temperature: float = Field(0.5, gt=0)  # small follows the cheapest, large averages all

    def make(self, space: Space, horizon: int) -> Solver:
        from jepa_wm.planning.solvers import MPPISolver

        return MPPISolver(self, space, horizon)


@SOLVERS.register("random")
class RandomShooting(Sampling):
    """Plans drawn evenly: what a search must beat with as many samples."""

    name: Literal["random"] = "random"

    def make(self, space: Space, horizon: int) -> Solver:
        from jepa_wm.planning.solvers import RandomSolver

        return RandomSolver(self, space, horizon)


@SOLVERS.register("gradient")
class Gradient(SolverSettings):
    """Adam on the plans themselves, as in UPN (Srinivas et al. 2018) and DINO-WM."""

    needs_gradient: ClassVar[bool] = True
    name: Literal["gradient"] = "gradient"
    num_samples: int = Field(16, ge=2)  # plans that are improved side by side
    iterations: int = Field(20, ge=1)
    lr: float = Field(0.1, gt=0)  # Adam's, as a share
    std: float = Field(0.5, gt=0)  # first spread of the plans around the warm start, as a share
    noise: float = Field(0.0, ge=0)  # added after each step, falling to none, as a share

    def make(self, space: Space, horizon: int) -> Solver:
        from jepa_wm.planning.solvers import GradientSolver

        return GradientSolver(self, space, horizon)


@SOLVERS.register("cem_gradient")
class CEMGradient(SolverSettings):
    """CEM, then descent from its cheapest plan and its mean."""

    needs_gradient: ClassVar[bool] = True
    name: Literal["cem_gradient"] = "cem_gradient"
    cem: CEM = CEM()
    gradient: Gradient = Gradient()

    def make(self, space: Space, horizon: int) -> Solver:
        solver = self.cem.make(space, horizon)
        solver.refiner = self.gradient.make(space, horizon)
        return solver

    def by_costs(self) -> CEM:
        return self.cem


@SOLVERS.register("policy")
class Policy(SolverSettings):
    """No search: the plan is that of the policy which `jepa-wm heads` trained."""

    uses_policy: ClassVar[bool] = True
    name: Literal["policy"] = "policy"

    def make(self, space: Space, horizon: int) -> Solver:
        from jepa_wm.planning.solvers import PolicySolver

        return PolicySolver(self, space, horizon)


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

    # A distance to the goal image's latent (temporal: the learned one), to the state that is read
    # from it, or reward with a minus.
    objective: Literal["temporal", "l1", "l2", "cosine", "state", "reward"] = "temporal"
    steps: Reduction = "all"  # which imagined steps are compared with the goal
    # The temporal distance is read at its worst within so much of each dynamic number (spread 1).
    robust_radius: float = Field(0.0, ge=0)
    reward: float = Field(0.0, ge=0)  # weight of the expected reward beside the objective
    discount: float = Field(0.99, gt=0, le=1)  # of rewards, a model step
    state: float = Field(0.0, ge=0)  # weight of the distance to the goal's state
    state_names: tuple[str, ...] = ()  # the numbers of the state that count; empty: all
    uncertainty_weight: float = 0.0  # of the disagreement of an ensemble; below 0 it is sought
    num_futures: int = Field(4, ge=1)  # imagined a plan where dynamics are a mixture; averaged
    limits: Limits | None = None  # on environment actions
    effort: float = Field(0.0, ge=0)  # weight of the mean squared difference from doing nothing
    smoothness: float = Field(0.0, ge=0)  # weight of the mean squared change between actions


class MPCSettings(Section):
    """The receding horizon: how far a plan looks ahead, how much of it is executed, and how
    imagining is computed."""

    horizon: int = Field(6, ge=1)  # model steps
    execute: int = Field(1, ge=1)  # model steps executed before planning again
    action_repeat: bool = True  # one action a model step, taken `frameskip` times; false: all are
    warm_start: bool = False  # the plan of the policy of the heads is where each search starts
    also_evaluate: tuple[Goal, ...] = ("l2",)  # objectives reported beside that of the cost
    truncate: int = Field(0, ge=0)  # gradients are cut every so many model steps; 0: never
    compile: bool = False  # torch.compile makes the dynamics' layers: for GPUs
    memory_mb: float = Field(2048, gt=0)  # bound on imagining; plans come in pieces that fit

    @model_validator(mode="after")
    def _fits(self) -> MPCSettings:
        if self.execute > self.horizon:
            raise ValueError(
                f"execute {self.execute} exceeds horizon {self.horizon}; lower execute"
            )
        return self


if TYPE_CHECKING:
    AnySolver = SolverSettings
else:
    AnySolver = chosen(SOLVERS, "cem")


class PlannerSettings(Section):
    """The solver, what it minimises, and the receding horizon around it."""

    solver: AnySolver = CEM()
    cost: CostSettings = CostSettings()
    mpc: MPCSettings = MPCSettings()

    @property
    def needs_heads(self) -> bool:
        """Whether planning reads a head (command heads)."""
        cost = self.cost
        by_terms = cost.objective in ("state", "reward") or cost.reward > 0 or cost.state > 0
        return by_terms or self.asks_policy

    @property
    def asks_policy(self) -> bool:
        """Whether the policy toward goals has a say."""
        return self.mpc.warm_start or self.solver.uses_policy

    def toward(self, objective: str) -> PlannerSettings:
        """The same with another objective."""
        cost = self.cost.model_copy(update={"objective": objective})
        return self.model_copy(update={"cost": cost})

    @model_validator(mode="after")
    def _fits(self) -> PlannerSettings:
        cut, horizon = self.mpc.truncate, self.mpc.horizon
        if self.solver.needs_gradient and self.cost.steps == "last" and 0 < cut < horizon:
            raise ValueError(
                f"mpc.truncate {cut} below mpc.horizon {horizon} leaves the first actions without "
                "gradient when cost.steps is last; set mpc.truncate 0, or cost.steps all or rising"
            )
        return self
