"""Settings of what is trained on frozen features: latent, dynamics, temporal distance. An entry
of LATENTS or DYNAMICS is the class that a config's `latent.name` or `dynamics.name` chooses;
its `make` gives the module."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section, check_heads

if TYPE_CHECKING:
    from jepa_wm.models.dynamics import Dynamics
    from jepa_wm.models.latent import Latent

_HERE = "jepa_wm.models.world_model_settings"


class LatentSettings(Section):
    """What every latent's settings say; `make` is theirs to define."""

    perturbable: ClassVar[bool] = False  # whether its `perturbations` mean something
    proprio_size: ClassVar[int] = 0  # numbers of the column 'state' that it reads beside frames
    name: str

    def make(self, tokens: int, token_width: int) -> Latent:
        """A fresh latent of frames of `tokens` frozen tokens of `token_width` numbers."""
        raise NotImplementedError

    def check_frames(self, frames: int) -> None:
        """Raises ValueError where windows of so many frames are too short to train it."""


LATENTS: Registry[type[LatentSettings]] = Registry(
    "latents", "latent", dict.fromkeys(("factored", "keypoints", "tokens", "robot_tokens"), _HERE)
)


@LATENTS.register("factored")
class FactoredLatentSettings(LatentSettings):
    """A few dynamic and static numbers read off a frame's tokens."""

    perturbable: ClassVar[bool] = True
    name: Literal["factored"] = "factored"
    # numbers that actions change; best about as many as the world has degrees of freedom
    dynamic_dim: int = Field(4, ge=1)
    # numbers that are constant in an episode and condition how the others change
    static_dim: int = Field(4, ge=0)
    # principal components of a frame's tokens, from which both are read
    components: int = Field(512, ge=1)
    width: int = Field(256, ge=2)  # of the networks
    # numbers of another frame beside which the dynamic ones reconstruct a frame, in training
    context_dim: int = Field(2, ge=1)
    # weight: the displacement between two frames, by the actions, is linear in theirs
    inverse_dynamics: float = Field(1.0, ge=0)
    # weight of the curvature of trajectories; for what moves by itself
    straightening: float = Field(0.0, ge=0)
    # frames, up to a window's first, that static numbers are read from in training dynamics
    static_frames: int = Field(1, ge=1)

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.factored_latent import FactoredLatent

        return FactoredLatent(tokens, token_width, self)

    def check_frames(self, frames: int) -> None:
        if self.straightening and frames < 3:
            raise ValueError(
                f"latent.straightening {self.straightening:g} compares two steps, and "
                f"train.latent.frames {frames} make one; set train.latent.frames=3"
            )


@LATENTS.register("keypoints")
class KeypointLatentSettings(LatentSettings):
    """Places in the picture of what changes and of what is constant in an episode, each a row and
    a column, trained by telling futures and episodes apart."""

    perturbable: ClassVar[bool] = True
    name: Literal["keypoints"] = "keypoints"
    dynamic_points: int = Field(4, ge=1)  # of what changes
    static_points: int = Field(8, ge=0)  # of what is constant in an episode
    map_channels: int = Field(0, ge=0)  # numbers of each token, in a map of what is constant
    # frames, up to a window's first, that static numbers are read from in training dynamics
    static_frames: int = Field(4, ge=1)

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.keypoint_latent import KeypointLatent

        return KeypointLatent(tokens, token_width, self)


@LATENTS.register("tokens")
class TokenLatentSettings(LatentSettings):
    """All frozen tokens of a frame as they are, as in DINO-WM."""

    name: Literal["tokens"] = "tokens"

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.latent import TokenLatent

        return TokenLatent(tokens, token_width)


@LATENTS.register("robot_tokens")
class RobotTokensSettings(LatentSettings):
    """All frozen tokens normalised, and the pose of a robot's hand as one more: what V-JEPA 2-AC
    works on."""

    proprio_size: ClassVar[int] = 7
    name: Literal["robot_tokens"] = "robot_tokens"

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.vjepa2_ac import RobotTokens

        return RobotTokens(tokens, token_width)


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


DYNAMICS: Registry[type[DynamicsSettings]] = Registry(
    "dynamics", "dynamics", dict.fromkeys(("deterministic", "mixture", "mlp", "vjepa2_ac"), _HERE)
)


def _check_rollout(key: str, context: int, frames: int, rollout: float) -> None:
    """Raises ValueError where a context of so many frames leaves nothing of windows of `frames` to
    the rollout loss, whose weight is `rollout`."""
    if rollout and context >= frames:
        raise ValueError(
            f"dynamics.{key} {context} leaves nothing to imagine of windows of "
            f"train.dynamics.frames {frames}; lower it, or set train.dynamics.rollout=0"
        )


class TransformerSettings(DynamicsSettings):
    """Frame-causal transformers over latents and actions."""

    width: int = 192
    depth: int = Field(3, ge=1)
    num_heads: int = Field(3, ge=1)
    # frames of a training window that the rollout loss is given; one shows no speed
    rollout_context: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerSettings:
        check_heads(self.width, self.num_heads)
        return self

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
    AnyLatent = LatentSettings
    AnyDynamics = DynamicsSettings
else:
    AnyLatent = chosen(LATENTS, "factored")
    AnyDynamics = chosen(DYNAMICS, "deterministic")


class WorldModelSettings(Section):
    """The sections of one trained model."""

    latent: AnyLatent = FactoredLatentSettings()
    dynamics: AnyDynamics = DeterministicSettings()
    distance: DistanceSettings | None = DistanceSettings()  # null: none is learned
