"""Settings of the encoder and of its pretraining: masks, predictor, losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from jepa_wm.core.settings import Section, check_heads


class EncoderSettings(Section):
    """The vision transformer."""

    patch_size: int = 8
    tubelet_size: int = Field(1, ge=1)
    width: int = 128
    depth: int = Field(4, ge=1)
    num_heads: int = Field(2, ge=1)
    channels: int = 3
    # what a token attends to: the whole clip, or only its own frame
    attention: Literal["clip", "frame"] = "clip"
    # vjepa2: for the released weights, which need their own variant
    rope: Literal["rotation", "vjepa2"] = "rotation"
    rope_base: float = 100.0  # 10000 in the released weights
    mlp_ratio: float = Field(4.0, gt=0)  # hidden width of a block's MLP in units of width
    locality: float = 1.5  # initial query and key bias; 0: attention starts out blind to distance

    @model_validator(mode="after")
    def _fits(self) -> EncoderSettings:
        check_heads(self.width, self.num_heads)
        if self.rope == "vjepa2" and self.width // self.num_heads < 6:
            raise ValueError(
                "rope vjepa2 needs heads of 6 channels or more, "
                f"not width {self.width} / {self.num_heads}"
            )
        return self


class BlockMask(Section):
    """V-JEPA's multi-block 3-D mask: `num_blocks` boxes of `spatial_scale` of a frame's area and
    `aspect_ratio` (height / width) over `temporal_scale` of the clip's length are hidden.

    spatial_scale .15 x 8 blocks and .7 x 2 blocks over the full length are V-JEPA's short and long
    range masks. temporal_scale 1.0 hides a tube; less hides a stretch at a random place.
    spatial_scale 1.0 hides whole frames. With `image` the context encoder sees a single frame of
    the clip, as the frozen one does, and of it what the boxes leave; what they hide is predicted
    as the target encoder makes it of the whole clip."""

    num_blocks: int = Field(8, ge=1)
    spatial_scale: tuple[float, float] = (0.15, 0.15)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    image: bool = False
    # share of the tokens that stays context even where boxes cover all
    min_context_ratio: float = Field(0.125, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> BlockMask:
        for name in ("spatial_scale", "aspect_ratio", "temporal_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name} [{low}, {high}] is a range: the lower number comes first"
                )
            if name != "aspect_ratio" and not 0 <= low <= high <= 1:
                raise ValueError(f"{name} [{low}, {high}] must lie within 0..1, it is a share")
        if self.aspect_ratio[0] <= 0:
            raise ValueError(
                f"aspect_ratio {list(self.aspect_ratio)} must be above 0, it is height / width"
            )
        if self.image and self.temporal_scale != (1, 1):
            raise ValueError(
                f"temporal_scale {list(self.temporal_scale)} says nothing where image is true: "
                "a single frame is in view; leave it out"
            )
        return self

    def check_steps(self, steps: int) -> None:
        """Blocks fit clips of any length."""

    def leaves_whole_frames(self, steps: int) -> bool:
        """Whether a clip of `steps` time steps keeps two or more of them wholly in view, as many
        in every sample."""
        shortest, longest = self.temporal_scale
        whole = self.num_blocks == 1 and self.spatial_scale == self.aspect_ratio == (1, 1)
        return (
            whole
            and not self.image
            and shortest == longest
            and steps - max(1, round(steps * shortest)) >= 2
        )

    def leaves_successors(self, steps: int) -> bool:
        """Whether of those some follow one another: a stretch hidden at an end leaves the rest."""
        return self.leaves_whole_frames(steps)


class FrameMask(Section):
    """`frames` single time steps hidden whole, at random places between others in view: no two
    adjoin, and the clip's first and last stay in view, so that each is predicted from what stands
    right before and right after it."""

    frames: int = Field(ge=1)

    def check_steps(self, steps: int) -> None:
        """Raises ValueError where so many cannot be hidden in clips of `steps` time steps."""
        if steps < 2 * self.frames + 1:
            raise ValueError(
                f"jepa.masks: frames {self.frames} that do not adjoin need clips of "
                f"{2 * self.frames + 1} time steps, not {steps}; raise data.num_frames"
            )

    def leaves_whole_frames(self, steps: int) -> bool:
        """Whether a clip of `steps` time steps keeps two or more of them wholly in view, as many
        in every sample."""
        return steps - self.frames >= 2

    def leaves_successors(self, steps: int) -> bool:
        """Whether of those some follow one another: not where every other one is hidden."""
        return steps > 2 * self.frames + 1


def _mask_kind(value: object) -> str:
    """Which mask a config's entry is: one that says `frames` hides those."""
    frames = "frames" in value if isinstance(value, dict) else isinstance(value, FrameMask)
    return "FrameMask" if frames else "BlockMask"


Mask = Annotated[
    Annotated[BlockMask, Tag("BlockMask")] | Annotated[FrameMask, Tag("FrameMask")],
    Discriminator(_mask_kind),
]


class JepaSettings(Section):
    """The predictor, what it is given, what it must predict, and how the target encoder moves."""

    width: int = 64
    depth: int = Field(1, ge=1)
    num_heads: int = Field(2, ge=1)
    locality: float = 1.5
    # Frames hidden between frames in view, and blocks hidden in an image of its own, which is how
    # the frozen encoder sees frames.
    masks: tuple[Mask, ...] = (
        FrameMask(frames=2),
        BlockMask(num_blocks=4, spatial_scale=(0.15, 0.2), image=True),
    )
    # hidden width of a small convolution over the nearest tokens in view before and after a
    # target, whose output is added to the transformer's; 0: none
    neighbor_width: int = Field(128, ge=0)
    # how the patch embedding starts, where train.pretrain.start does not say: normal, or from the
    # data's patches, whitened, or in directions weighted by how well the next frame tells them
    # (less what lasts in an episode) and by their spread in pixels
    patch_init: Literal["normal", "whitening", "predictive"] = "predictive"
    # Targets: the target encoder's tokens, or these less their mean over distant frames of the
    # episode, which is what lasts (motion); and the weights of their mean errors.

    target_kinds: tuple[Literal["tokens", "motion"], ...] = ("motion", "tokens")

    masked_weight: float = Field(1.0, ge=0)  # of the hidden tokens
    context_weight: float = Field(0.0, ge=0)  # of those in view, for dense features (V-JEPA 2.1)
    # each position's mean over the batch is removed, so that a constant cannot be a target
    center_targets: bool = True
    # the centred targets' directions are given equal power, so that what is small in them counts
    whiten_targets: bool = True
    error: Literal["absolute", "squared"] = "squared"  # of the predictions
    # levels of the target encoder that make up a target token, at equal distances in depth
    target_levels: int = Field(1, ge=1)
    # Weights of the regularisers, 0 for off.

    temporal_contrast: float = Field(0.0, ge=0)  # a frame's successor against distant frames
    episode_contrast: float = Field(0.0, ge=0)  # distant frames against other episodes' (files')
    # action supervision: the displacement between two frames, by the actions, read linearly; where
    # a file has actions
    inverse_dynamics: float = Field(0.0, ge=0)
    # frames a clip, from elsewhere in its episode, for the last three and for motion; an image is
    # its own
    num_distant_frames: int = Field(4, ge=0)
    # environment steps between the clip and a distant frame, at least
    min_gap: int = Field(25, ge=1)
    # the target encoder's momentum at the first and at the last step
    ema: tuple[float, float] = (0.99, 0.999)

    @model_validator(mode="after")
    def _fits(self) -> JepaSettings:
        check_heads(self.width, self.num_heads)
        if not self.masks:
            raise ValueError(
                "masks is empty: with nothing hidden there is nothing to predict; "
                "give at least one mask"
            )
        alone = all(isinstance(mask, BlockMask) and mask.image for mask in self.masks)
        if self.neighbor_width and alone:
            raise ValueError(
                f"neighbor_width {self.neighbor_width} reads the frames beside a target, and "
                "every mask leaves a single one in view; set it to 0, or add a mask without "
                "image: true"
            )
        # Targets that are there, and distant frames where something is compared with them.
        if not self.target_kinds or len(set(self.target_kinds)) < len(self.target_kinds):
            raise ValueError(
                f"target_kinds {list(self.target_kinds)} names tokens, motion, or both, each once"
            )
        if "motion" in self.target_kinds and not self.num_distant_frames:
            raise ValueError(
                "target_kinds: motion is what differs from distant frames; "
                "set num_distant_frames >= 1"
            )
        if self.whiten_targets and not self.center_targets:
            raise ValueError(
                "whiten_targets turns centred targets; set center_targets: true, or "
                "whiten_targets: false"
            )
        if self.patch_init == "predictive" and self.num_distant_frames < 2:
            raise ValueError(
                "patch_init: predictive takes what lasts out of both frames of a pair, by other "
                "distant frames each; set num_distant_frames >= 2 or patch_init: whitening"
            )
        return self
