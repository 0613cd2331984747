"""Sections of the config: what is observed of the world, and how the eye learns to see it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jepa_wm.core.section import Section, check_heads


class Crop(Section):
    """Random views in pretraining, the same for all frames of a clip; the eye looks at whole frames."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the frame's area
    aspect: tuple[float, float] = (0.75, 1.35)  # width / height
    flip: bool = True  # half of the views are mirrored
    jitter: float = Field(0.0, ge=0, le=1)  # of brightness, contrast, saturation (around 1) and a quarter of the hue
    own: bool = False  # every far frame has a view of its own, so that two views of a file are told from other files'

    @model_validator(mode="after")
    def _fits(self) -> Crop:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} is a range of shares of the area, above 0 and at most 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect {list(self.aspect)} is a range above 0: the lower number comes first")
        return self


class Videos(Section):
    """One of several sets of videos or images to pretrain on."""

    path: str  # a folder, a manifest, tar shards, or the index that `pack` wrote
    weight: float = Field(1.0, gt=0)  # its share of the clips, relative to the other sets
    images: bool = False  # every image of a folder is a video that stands still, instead of a frame of the folder's


class Observe(Section):
    """The data set that `collect` makes, and clips drawn from it."""

    path: str | None = None  # a folder with train.h5 and heldout.h5 made elsewhere; null: `collect` makes them
    episodes: int = Field(1500, ge=1)
    length: int = Field(91, ge=2)  # frames in an episode
    heldout_episodes: int = Field(100, ge=1)
    heldout_length: int = Field(181, ge=2)
    shortest: int = Field(2, ge=2)  # frames; episodes that end by themselves before are left out by `collect`
    image_size: int = 64  # px, side of what the encoder sees; frames are cut or resized to it
    frames: int = Field(8, ge=1)  # in a pretraining clip
    gaps: tuple[int, ...] = (3, 4, 5)  # environment steps between the frames of a clip, drawn per clip
    crop: Crop | None = None  # null: clips show whole frames
    videos: str | tuple[Videos, ...] | None = None  # pretrain on these instead of on trajectories: a path, or a mixture
    fps: tuple[float, ...] = (4.0,)  # of clips of videos, drawn per clip
    clips: int = Field(1, ge=1)  # that a video gives in an epoch
    folder_fps: float = Field(30.0, gt=0)  # of folders of frames, which do not state a rate
    unreadable: float = Field(0.01, ge=0, le=1)  # share of the videos that may be unreadable; more end the run
    workers: int = Field(1, ge=1)  # threads that decode videos

    @property
    def sets(self) -> tuple[Videos, ...]:
        """The sets of videos, none where trajectories are used."""
        return (Videos(path=self.videos),) if isinstance(self.videos, str) else self.videos or ()


class Encode(Section):
    """The vision transformer."""

    patch: int = 8
    tubelet: int = Field(1, ge=1)
    width: int = 128
    depth: int = Field(4, ge=1)
    heads: int = Field(2, ge=1)
    channels: int = 3
    attend: Literal["clip", "frame"] = "frame"  # what a token sees: the whole clip, or only its own frame
    rope: Literal["rotation", "vjepa2"] = "rotation"  # vjepa2: for the released weights, which need their own variant
    rope_base: float = 100.0  # 10000 in the released weights
    mlp_ratio: float = Field(4.0, gt=0)  # hidden width of a block's MLP in units of width
    locality: float = 1.5  # initial query and key bias; 0: attention starts out blind to distance

    @model_validator(mode="after")
    def _fits(self) -> Encode:
        check_heads(self.width, self.heads)
        if self.rope == "vjepa2" and self.width // self.heads < 6:
            raise ValueError(f"rope vjepa2 needs heads of 6 channels or more, not width {self.width} / {self.heads}")
        return self


class BlockMask(Section):
    """`blocks` boxes of `scale` of a frame's area and `aspect` (height / width) over `time` of the clip's length.

    scale .15 x 8 blocks and .7 x 2 blocks over the full length are V-JEPA's short and long range masks.
    time 1.0 hides a tube; less hides a stretch at a random place. scale 1.0 hides whole frames.
    """

    blocks: int = Field(8, ge=1)
    scale: tuple[float, float] = (0.15, 0.15)
    aspect: tuple[float, float] = (0.75, 1.5)
    time: tuple[float, float] = (1.0, 1.0)
    least_seen: float = Field(0.125, ge=0, lt=1)  # share of tokens left visible even where boxes cover all

    @model_validator(mode="after")
    def _fits(self) -> BlockMask:
        for name, (low, high) in (("scale", self.scale), ("aspect", self.aspect), ("time", self.time)):
            if low > high:
                raise ValueError(f"{name} [{low}, {high}] is a range: the lower number comes first")
            if name != "aspect" and not 0 <= low <= high <= 1:
                raise ValueError(f"{name} [{low}, {high}] must lie within 0..1, it is a share")
        if self.aspect[0] <= 0:
            raise ValueError(f"aspect {list(self.aspect)} must be above 0, it is height / width")
        return self

    def leaves_whole_frames(self, steps: int) -> bool:
        """Whether a clip of `steps` time steps keeps two or more of them wholly in view, as many in every sample."""
        whole = self.blocks == 1 and self.scale == self.aspect == (1, 1) and self.time[0] == self.time[1]
        return whole and steps - max(1, round(steps * self.time[0])) >= 2


class Targets(Section):
    """What the predictor has to guess: the target encoder's tokens.

    With `centre`, each position's mean over the batch is removed first, so that a constant cannot be a target.
    """

    centre: bool = True
    stay: float = Field(0.3, ge=0)  # weight of the hidden tokens, absolute error
    visible: float = Field(0.0, ge=0)  # weight of those in view, for dense features (V-JEPA 2.1)
    levels: int = Field(1, ge=1)  # of the target encoder that make up a token, at equal distances in depth


class Predict(Section):
    """The predictor, what it sees, what it must guess, and how the target encoder follows."""

    width: int = 64
    depth: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    locality: float = 1.5
    masks: tuple[BlockMask, ...] = (BlockMask(blocks=1, scale=(1.0, 1.0), aspect=(1.0, 1.0), time=(0.5, 0.5)),)
    targets: Targets = Targets()
    spread: float = Field(0.0, ge=0)  # weight of keeping the clips' mean context tokens apart (VICReg), a regulariser
    contrast: float = Field(0.3, ge=0)  # weight of telling a frame's successor from far frames, a regulariser
    episode: float = Field(0.0, ge=0)  # weight of telling far frames from other episodes' (files'), another
    path: float = Field(3.0, ge=0)  # weight of reading the way between two frames, another, where a file has actions
    summary: Literal["grid", "mean"] = "grid"  # how they see a frame: grid, where things are; mean, what there is
    far: int = Field(4, ge=0)  # frames a clip, from elsewhere in its episode, for these three; a still is its own
    apart: int = Field(25, ge=1)  # environment steps between the clip and a far frame, at least
    most_targets: int = Field(0, ge=0)  # at most this many target tokens a clip, drawn at random; 0: all
    ema: tuple[float, float] = (0.998, 0.9995)  # target encoder's momentum at the first and at the last step

    @model_validator(mode="after")
    def _fits(self) -> Predict:
        check_heads(self.width, self.heads)
        if not self.masks:
            raise ValueError("masks is empty: with nothing hidden there is nothing to predict; give at least one mask")
        return self


class Freeze(Section):
    """The frozen eye, and its features on disk."""

    stride: int = Field(1, ge=1)  # every how many frames are encoded; must divide dynamics.frameskip
    samples: int = 4000  # frames whose mean and spread standardise the features
    backbone: str | None = None  # the eye, if not the run's own: timm/NAME, or vjepa2/SIZE (vit_large, ...)
    weights: str | None = (
        None  # of timm: "published" fetches them, null leaves it random; of vjepa2: their file or folder
    )

    @model_validator(mode="after")
    def _fits(self) -> Freeze:
        if self.backbone is None and self.weights is not None:
            raise ValueError(f"weights {self.weights} are for a backbone; give backbone: timm/NAME or vjepa2/SIZE too")
        kind, _, name = (self.backbone or "").partition("/")
        if self.backbone is not None and (kind not in ("timm", "vjepa2") or not name):
            raise ValueError(f"backbone {self.backbone!r} is neither timm/NAME nor vjepa2/SIZE")
        if kind == "vjepa2" and self.weights is None:
            raise ValueError(f"backbone {self.backbone} needs weights, the path of the released file")
        if kind == "timm" and self.weights not in (None, "published"):
            raise ValueError(f"weights {self.weights!r} of a timm backbone are 'published', or null for random ones")
        return self
