"""Settings of what is trained on frozen features: latent, dynamics, temporal distance. An entry of
DYNAMICS is the class that a config's `dynamics.name` chooses; its `make` gives the module."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section, check_heads
from jepa_wm.models.latent_settings import AnyLatent, FactoredLatentSettings, LatentSettings

if TYPE_CHECKING:
    from jepa_wm.models.dynamics import Dynamics
    from jepa_wm.models.latent import Latent


class DynamicsSettings(Section):
    """What all action-conditioned dynamics' settings say; `make` is theirs to define."""

    latents: ClassVar[tuple[str, ...]] = ()  # names of those it works on; empty: any
    has_distance: ClassVar[bool] = True  # whether a temporal distance can be learned beside it
    has_heads: ClassVar[bool] = True  # whether heads can be
    reads_map: ClassVar[bool] = False  # whether it reads a latent's map around its points
    acts_by_proprio: ClassVar[bool] = False  # whether proprioception says what was done
    name: str
    frameskip: int = Field(5, ge=1)  # environment steps, and actions, between two latents
    context_frames: int = Field(3, ge=1)  # that a prediction sees
    # models that differ in their first weights and in the batches they are trained on
    ensemble_size: int = Field(1, ge=1)

    def make(self, latent: Latent, action_size: int) -> Dynamics:
        """Fresh dynamics of that latent, for blocks of `action_size` numbers a model step."""
        raise NotImplementedError

    def check(self, latent: LatentSettings, distance: DistanceSettings | None) -> None:
        """Raises ValueError for a latent that it does not work on and for a distance that cannot
        be learned beside it."""
        if self.latents and latent.name not in self.latents:
            raise ValueError(
                f"dynamics.name {self.name} works on latent.name {' or '.join(self.latents)}, not "
                f"{latent.name}; set latent.name={self.latents[0]}"
            )
        if distance is not None and not self.has_distance:
            raise ValueError(
                f"dynamics.name {self.name} has no learned distance; set distance=null, and "
                "planner.cost.objective=l1"
            )

    def check_frames(self, frames: int, rollout: float) -> None:
        """Raises ValueError where training windows of so many frames are too short for it, with
        this weight of the rollout loss."""


_OWN = ("deterministic", "mixture", "mlp", "vjepa2_ac")
DYNAMICS: Registry[type[DynamicsSettings]] = Registry(
    "dynamics", "dynamics", dict.fromkeys(_OWN, __name__)
)


def _check_rollout(key: str, context: int, frames: int, rollout: float) -> None:
    """Raises ValueError where a context of so many frames leaves nothing of windows of `frames` to
    the rollout loss, whose weight is `rollout`."""
    if rollout and context >= frames:
        raise ValueError(
            f"dynamics.{key} {context} leaves nothing to imagine of windows of "
            f"train.dynamics.frames {frames}; lower it, or set train.dynamics.rollout=0"
        )


HEAD_DIM = 64  # numbers of a head, where their number is not given
# At least so many beside a token's own are for the action: DINO-WM's embedding of it (Zhou et al.,
# 2024).
ACTION_DIM = 10


class TransformerSettings(DynamicsSettings):
    """Frame-causal transformers over latents and actions."""

    # null: as many heads of 64 as hold all numbers of a token and 10 of the action
    width: int | None = 192
    depth: int = Field(3, ge=1)
    num_heads: int | None = Field(3, ge=1)  # null: of 64 numbers each
    # frames of a training window that the rollout loss is given; one shows no speed
    rollout_context: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerSettings:
        if self.width is None and self.num_heads is not None:
            raise ValueError(
                f"width null is of heads of {HEAD_DIM} numbers, as many as the latent needs, and "
                f"num_heads is {self.num_heads}; set num_heads to null too, or give a width"
            )
        if self.width is not None:
            if self.num_heads is None and self.width % HEAD_DIM:
                raise ValueError(
                    f"width {self.width} does not divide into heads of {HEAD_DIM} numbers; give "
                    "num_heads"
                )
            check_heads(*self.size_for(0))
        return self

    def size_for(self, latent_width: int) -> tuple[int, int]:
        """(width, number of heads) for latents of such tokens."""
        width = self.width
        if width is None:
            width = -(-(latent_width + ACTION_DIM) // HEAD_DIM) * HEAD_DIM
        return width, self.num_heads or width // HEAD_DIM

    def check_frames(self, frames: int, rollout: float) -> None:
        _check_rollout("rollout_context", self.rollout_context, frames, rollout)


@DYNAMICS.register("deterministic")
class DeterministicSettings(TransformerSettings):
    """One future, trained by squared error."""

    name: Literal["deterministic"] = "deterministic"

    def make(self, latent: Latent, action_size: int) -> Dynamics:
        from jepa_wm.models.transformer_dynamics import DeterministicDynamics

        return DeterministicDynamics(latent.shape, action_size, self)


@DYNAMICS.register("mixture")
class MixtureSettings(TransformerSettings):
    """A distribution over futures, trained by likelihood."""

    name: Literal["mixture"] = "mixture"
    # 1: a Gaussian; more: a discrete latent chooses one of so many
    mixture_components: int = Field(3, ge=1)

    def make(self, latent: Latent, action_size: int) -> Dynamics:
        from jepa_wm.models.mixture import MixtureDynamics

        return MixtureDynamics(latent.shape, action_size, self)


@DYNAMICS.register("mlp")
class MLPSettings(DynamicsSettings):
    """One future by an MLP on all numbers of compact latents and of actions, by absolute error."""

    reads_map: ClassVar[bool] = True
    name: Literal["mlp"] = "mlp"
    width: int = Field(256, ge=1)
    depth: int = Field(3, ge=1)  # hidden layers

    def make(self, latent: Latent, action_size: int) -> Dynamics:
        from jepa_wm.models.mlp_dynamics import MLPDynamics

        return MLPDynamics(latent, action_size, self)

    def check_frames(self, frames: int, rollout: float) -> None:
        _check_rollout("context_frames", self.context_frames, frames, rollout)


@DYNAMICS.register("vjepa2_ac")
class VJEPA2ACSettings(DynamicsSettings):
    """V-JEPA 2's action-conditioned predictor (Assran et al., 2025), for a robot's hand whose
    state is a pose of seven numbers and whose actions are changes of it."""

    latents: ClassVar[tuple[str, ...]] = ("robot_tokens",)
    has_distance: ClassVar[bool] = False
    has_heads: ClassVar[bool] = False
    acts_by_proprio: ClassVar[bool] = True
    name: Literal["vjepa2_ac"] = "vjepa2_ac"
    width: int = 1024
    depth: int = Field(24, ge=1)
    num_heads: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> VJEPA2ACSettings:
        check_heads(self.width, self.num_heads)
        if self.ensemble_size > 1:
            raise ValueError(
                f"ensemble_size {self.ensemble_size} is of dynamics deterministic, mixture or "
                "mlp; vjepa2_ac is one predictor: set ensemble_size=1"
            )
        return self

    def make(self, latent: Latent, action_size: int) -> Dynamics:
        from jepa_wm.models.vjepa2_ac import VJEPA2AC

        return VJEPA2AC.of(latent, self)


class DistanceSettings(Section):
    """The learned temporal distance: a quasimetric head on the latents."""

    groups: int = 16
    components: int = 16
    width: int = 384
    expectile: float = Field(0.03, gt=0, lt=1)  # below 0.5 it leans to the quickest way seen
    # between two frames: the model steps that passed, or how far the latent moved, in fast steps
    measure: Literal["steps", "path"] = "steps"
    field_width: int = Field(32, ge=2)  # of convolutions over a latent's map; half of it is read
    field_depth: int = Field(8, ge=0)  # each passes on by a token what lies there


if TYPE_CHECKING:
    AnyDynamics = DynamicsSettings
else:
    AnyDynamics = chosen(DYNAMICS, "deterministic")


class WorldModelSettings(Section):
    """The sections of one trained model."""

    latent: AnyLatent = FactoredLatentSettings()
    dynamics: AnyDynamics = DeterministicSettings()
    distance: DistanceSettings | None = DistanceSettings()  # null: none is learned
