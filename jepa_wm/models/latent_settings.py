"""Settings of latents. An entry of LATENTS is the class that a config's `latent.name` chooses; its
`make` gives the module."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section

if TYPE_CHECKING:
    from jepa_wm.models.latent import Latent


class LatentSettings(Section):
    """What every latent's settings say; `make` is theirs to define."""

    perturbable: ClassVar[bool] = False  # whether its `perturbations` mean something
    proprio_size: ClassVar[int] = 0  # numbers of the column 'state' that it reads beside frames
    name: str
    # numbers of the state, by name, that frames come with where a robot has them: the dynamics
    # read and foretell them, planner.cost.proprio compares them
    proprio: tuple[str, ...] = ()

    @field_validator("proprio")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"[{', '.join(names)}] names one twice; leave it out")
        if names and cls.proprio_size:
            raise ValueError(
                f"[{', '.join(names)}] are numbers beside what this latent reads, which is the "
                "whole state, of a robot's hand; set latent.proprio=[]"
            )
        return names

    @property
    def read_states(self) -> tuple[str, ...]:
        """What of the state is read beside frames, in words for results; nothing by default."""
        return self.proprio or (("pose",) if self.proprio_size else ())

    def make(self, tokens: int, token_width: int) -> Latent:
        """A fresh latent of frames of `tokens` frozen tokens of `token_width` numbers."""
        raise NotImplementedError

    def check_frames(self, frames: int) -> None:
        """Raises ValueError where windows of so many frames are too short to train it."""


_OWN = ("factored", "keypoints", "state_token", "tokens", "robot_tokens")
LATENTS: Registry[type[LatentSettings]] = Registry(
    "latents", "latent", dict.fromkeys(_OWN, __name__)
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


@LATENTS.register("state_token")
class StateTokenSettings(LatentSettings):
    """One token of a frame, trained together with the dynamics."""

    name: Literal["state_token"] = "state_token"
    dim: int = Field(64, ge=1)  # numbers that actions change
    sigreg: float = Field(60.0, gt=0)  # weight of what keeps them from collapsing
    # numbers that are constant in an episode and condition how the others change
    static_dim: int = Field(0, ge=0)
    # frames, up to a window's first, that static numbers are read from in training dynamics
    static_frames: int = Field(4, ge=1)

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.state_token import StateTokenLatent

        return StateTokenLatent(tokens, token_width, self)


@LATENTS.register("tokens")
class TokenLatentSettings(LatentSettings):
    """All frozen tokens of a frame as they are, as in DINO-WM, or neighbours averaged."""

    name: Literal["tokens"] = "tokens"
    merge: int = Field(1, ge=1)  # 2: of the frame's grid each 2 x 2 tokens become their mean

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.token_latent import TokenLatent

        return TokenLatent(tokens, token_width, self.merge)


@LATENTS.register("robot_tokens")
class RobotTokensSettings(LatentSettings):
    """All frozen tokens normalised, and the pose of a robot's hand as one more: what V-JEPA 2-AC
    works on."""

    proprio_size: ClassVar[int] = 7
    name: Literal["robot_tokens"] = "robot_tokens"

    def make(self, tokens: int, token_width: int) -> Latent:
        from jepa_wm.models.vjepa2_ac import RobotTokens

        return RobotTokens(tokens, token_width)


if TYPE_CHECKING:
    AnyLatent = LatentSettings
else:
    AnyLatent = chosen(LATENTS, "factored")
