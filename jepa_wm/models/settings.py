"""Settings of the models: encoder, masks, predictor, latent, dynamics, temporal distance,
heads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jepa_wm.core.section import Section, check_heads


class EncoderSettings(Section):
    """The vision transformer."""

    patch: int = 8
    tubelet: int = Field(1, ge=1)
    width: int = 128
    depth: int = Field(4, ge=1)
    heads: int = Field(2, ge=1)
    channels: int = 3
    attend: Literal["clip", "frame"] = (
        "frame"  # what a token sees: the whole clip, or only its own frame
    )
    rope: Literal["rotation", "vjepa2"] = (
        "rotation"  # vjepa2: for the released weights, which need their own variant
    )
    rope_base: float = 100.0  # 10000 in the released weights
    mlp_ratio: float = Field(4.0, gt=0)  # hidden width of a block's MLP in units of width
    locality: float = 1.5  # initial query and key bias; 0: attention starts out blind to distance

    @model_validator(mode="after")
    def _fits(self) -> EncoderSettings:
        check_heads(self.width, self.heads)
        if self.rope == "vjepa2" and self.width // self.heads < 6:
            raise ValueError(
                f"rope vjepa2 needs heads of 6 channels or more, not width {self.width} / {self.heads}"
            )
        return self


class BlockMask(Section):
    """`blocks` boxes of `scale` of a frame's area and `aspect` (height / width) over `time` of the
    clip's length.

    scale .15 x 8 blocks and .7 x 2 blocks over the full length are V-JEPA's short and long range
    masks. time 1.0 hides a tube; less hides a stretch at a random place. scale 1.0 hides whole
    frames."""

    blocks: int = Field(8, ge=1)
    scale: tuple[float, float] = (0.15, 0.15)
    aspect: tuple[float, float] = (0.75, 1.5)
    time: tuple[float, float] = (1.0, 1.0)
    least_seen: float = Field(
        0.125, ge=0, lt=1
    )  # share of tokens left visible even where boxes cover all

    @model_validator(mode="after")
    def _fits(self) -> BlockMask:
        for name, (low, high) in (
            ("scale", self.scale),
            ("aspect", self.aspect),
            ("time", self.time),
        ):
            if low > high:
                raise ValueError(
                    f"{name} [{low}, {high}] is a range: the lower number comes first"
                )
            if name != "aspect" and not 0 <= low <= high <= 1:
                raise ValueError(f"{name} [{low}, {high}] must lie within 0..1, it is a share")
        if self.aspect[0] <= 0:
            raise ValueError(f"aspect {list(self.aspect)} must be above 0, it is height / width")
        return self

    def leaves_whole_frames(self, steps: int) -> bool:
        """Whether a clip of `steps` time steps keeps two or more of them wholly in view, as many
        in every sample."""
        whole = (
            self.blocks == 1
            and self.scale == self.aspect == (1, 1)
            and self.time[0] == self.time[1]
        )
        return whole and steps - max(1, round(steps * self.time[0])) >= 2


class TargetSettings(Section):
    """What the predictor has to guess: the target encoder's tokens.

    With `centre`, each position's mean over the batch is removed first, so that a constant cannot
    be a target."""

    centre: bool = True
    stay: float = Field(0.3, ge=0)  # weight of the hidden tokens, absolute error
    visible: float = Field(0.0, ge=0)  # weight of those in view, for dense features (V-JEPA 2.1)
    levels: int = Field(
        1, ge=1
    )  # of the target encoder that make up a token, at equal distances in depth


class JepaSettings(Section):
    """The predictor, what it sees, what it must guess, and how the target encoder follows."""

    width: int = 64
    depth: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    locality: float = 1.5
    masks: tuple[BlockMask, ...] = (
        BlockMask(blocks=1, scale=(1.0, 1.0), aspect=(1.0, 1.0), time=(0.5, 0.5)),
    )
    targets: TargetSettings = TargetSettings()
    spread: float = Field(
        0.0, ge=0
    )  # weight of keeping the clips' mean context tokens apart (VICReg), a regulariser
    contrast: float = Field(
        0.3, ge=0
    )  # weight of telling a frame's successor from far frames, a regulariser
    episode: float = Field(
        0.0, ge=0
    )  # weight of telling far frames from other episodes' (files'), another
    path: float = Field(
        3.0, ge=0
    )  # weight of reading the way between two frames, another, where a file has actions
    summary: Literal["grid", "mean"] = (
        "grid"  # how they see a frame: grid, where things are; mean, what there is
    )
    far: int = Field(
        4, ge=0
    )  # frames a clip, from elsewhere in its episode, for these three; a still is its own
    apart: int = Field(25, ge=1)  # environment steps between the clip and a far frame, at least
    most_targets: int = Field(
        0, ge=0
    )  # at most this many target tokens a clip, drawn at random; 0: all
    ema: tuple[float, float] = (
        0.998,
        0.9995,
    )  # target encoder's momentum at the first and at the last step

    @model_validator(mode="after")
    def _fits(self) -> JepaSettings:
        check_heads(self.width, self.heads)
        if not self.masks:
            raise ValueError(
                "masks is empty: with nothing hidden there is nothing to predict; give at least one mask"
            )
        return self


class LatentSettings(Section):
    """A label-free summary of a frame's tokens: what the dynamics and the planner work on."""

    moving: int = Field(
        4, ge=1
    )  # numbers that actions move; best about as many as the world has degrees of freedom
    lasting: int = Field(
        4, ge=0
    )  # numbers that stay as they are in an episode and tell what actions will do in it
    components: int = Field(
        512, ge=1
    )  # principal components of a frame's tokens, from which both are read
    width: int = Field(256, ge=2)  # of the networks
    layout: int = Field(
        2, ge=1
    )  # numbers that stand for what lasts when a frame is told from its moving ones
    path: float = Field(
        1.0, ge=0
    )  # weight: the way between two frames, by the actions, is their difference
    straight: float = Field(
        0.0, ge=0
    )  # weight: each step goes on as the one before; for what moves by itself


class DistanceSettings(Section):
    """The learned steps-to-go metric: a quasimetric head on the latents."""

    groups: int = 16
    components: int = 16
    width: int = 384
    expectile: float = Field(0.03, gt=0, lt=1)  # below 0.5 it leans to the quickest way seen
    rivals: int = Field(8, ge=1)  # half of the pairs are the hardest out of as many


class DynamicsSettings(Section):
    """The action-conditioned predictor on frozen features."""

    kind: Literal["latent", "vjepa2_ac"] = (
        "latent"  # vjepa2_ac: V-JEPA 2's predictor, for the 7-number pose of a robot
    )
    frameskip: int = Field(5, ge=1)  # environment steps, and actions, between two latents
    window: int = Field(3, ge=1)  # frames a prediction sees
    width: int = 192
    depth: int = Field(3, ge=1)
    heads: int = Field(3, ge=1)
    members: int = Field(
        1, ge=1
    )  # models of an ensemble, which differ in their first weights and in what they met
    outcomes: int = Field(
        0, ge=0
    )  # 0: one future; 1: a Gaussian; more: a discrete latent chooses among so many

    @model_validator(mode="after")
    def _fits(self) -> DynamicsSettings:
        check_heads(self.width, self.heads)
        if self.kind == "vjepa2_ac" and (self.members > 1 or self.outcomes):
            raise ValueError(
                f"members {self.members} and outcomes {self.outcomes} are of kind latent; with kind vjepa2_ac set "
                "members=1 and outcomes=0"
            )
        return self


class WorldModelSettings(DynamicsSettings):
    """Dynamics with the latent that they move and the distance between latents: the sections of
    one trained model."""

    latent: LatentSettings | None = LatentSettings()
    distance: DistanceSettings = DistanceSettings()


class HeadSettings(Section):
    """Heads on frozen latents (command heads): reward, termination, state, and a policy toward
    goals."""

    width: int = Field(256, ge=1)
    bins: int = Field(63, ge=2)  # of the reward's distribution
    policy_steps: int = Field(
        6, ge=1
    )  # model steps the policy answers with; a longer plan repeats its last
