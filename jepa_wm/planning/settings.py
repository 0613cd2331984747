"""Settings of the planner: the solver (an entry of SOLVERS, chosen by its name), the cost that it
minimises, the receding horizon. Shares are of the action box's half width."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section
from jepa_wm.planning.cost_settings import CostSettings, Goal
from jepa_wm.world_model.policies import PolicyName

if TYPE_CHECKING:
    from jepa_wm.planning.action_space import Space
    from jepa_wm.planning.search import Solver


class SolverSettings(Section):
    """What every solver's settings say beside their numbers; `make` is theirs to define."""

    needs_gradient: ClassVar[bool] = False  # whether the cost has to be differentiable
    name: str

    @property
    def played(self) -> str | None:
        """The policy of the heads whose plans are its own; None: it searches."""
        return None

    def make(self, space: Space, horizon: int) -> Solver:
        """The solver of plans of `horizon` model steps; ValueError where it cannot search the
        space."""
        raise NotImplementedError

    def by_costs(self) -> SolverSettings:
        """The solver that stands in where there are costs alone, neither gradient nor policy."""
        return CEM() if self.needs_gradient or self.played else self


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
    """No search: the plan is that of a policy which `jepa-wm heads` trained."""

    name: Literal["policy"] = "policy"
    policy: PolicyName = "gcbc"

    @property
    def played(self) -> str:
        return self.policy

    def make(self, space: Space, horizon: int) -> Solver:
        from jepa_wm.planning.solvers import PolicySolver

        return PolicySolver(self, space, horizon)


class MPCSettings(Section):
    """The receding horizon: how far a plan looks ahead, how much of it is executed, and how
    imagining is computed."""

    horizon: int = Field(6, ge=1)  # model steps
    execute: int = Field(1, ge=1)  # model steps executed before planning again
    action_repeat: bool = True  # one action a model step, taken `frameskip` times; false: all are
    # the policy of the heads whose plan is where each search starts; null: the last plan is
    warm_start: PolicyName | None = None
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
        return by_terms or self.policy is not None

    @property
    def policy(self) -> str | None:
        """The policy toward goals that has a say."""
        return self.solver.played or self.mpc.warm_start

    def alone(self, policy: str) -> PlannerSettings:
        """The same with a policy in place of the search, each action of its plan as it answers."""
        mpc = self.mpc.model_copy(update={"warm_start": None, "action_repeat": False})
        return self.model_copy(update={"solver": Policy(policy=policy), "mpc": mpc})

    def toward(self, objective: str) -> PlannerSettings:
        """The same with another objective."""
        cost = self.cost.model_copy(update={"objective": objective})
        return self.model_copy(update={"cost": cost})

    @model_validator(mode="after")
    def _fits(self) -> PlannerSettings:
        if self.solver.played and self.mpc.warm_start:
            raise ValueError(
                f"mpc.warm_start {self.mpc.warm_start} is where a search starts, and solver "
                f"{self.solver.name} searches nothing; set mpc.warm_start=null"
            )
        cut, horizon = self.mpc.truncate, self.mpc.horizon
        if self.solver.needs_gradient and self.cost.steps == "last" and 0 < cut < horizon:
            raise ValueError(
                f"mpc.truncate {cut} below mpc.horizon {horizon} leaves the first actions without "
                "gradient when cost.steps is last; set mpc.truncate 0, or cost.steps all or rising"
            )
        return self
