"""Settings of the data: which trajectories or videos, and the clips drawn from them."""

from __future__ import annotations

from pydantic import Field, model_validator

from jepa_wm.core.settings import Section


class AugmentSettings(Section):
    """Random views in pretraining, the same for all frames of a clip; frozen features are of whole
    frames."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the frame's area
    aspect_ratio: tuple[float, float] = (0.75, 1.35)  # width / height
    horizontal_flip: bool = True  # half of the views are mirrored
    # of brightness, contrast, saturation (around 1) and a quarter of the hue
    color_jitter: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> AugmentSettings:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale {list(self.scale)} is a range of shares of the area, above 0 and at most 1"
            )
        if not 0 < self.aspect_ratio[0] <= self.aspect_ratio[1]:
            raise ValueError(
                f"aspect_ratio {list(self.aspect_ratio)} is a range above 0: the lower number "
                "comes first"
            )
        return self


class VideoSettings(Section):
    """One of several sets of videos or images to pretrain on."""

    path: str  # a folder, a manifest, tar shards, or the index that `pack` wrote
    weight: float = Field(1.0, gt=0)  # its share of the clips, relative to the other sets
    # every image of a folder is a video that stands still, instead of a frame of the folder's
    single_images: bool = False


class DataSettings(Section):
    """Trajectories or videos, and the clips drawn from them."""

    # a folder with train.h5 and heldout.h5 made elsewhere; null: `collect` makes them
    path: str | None = None
    image_size: int = 64  # px, side of what the encoder sees; frames are cut or resized to it
    num_frames: int = Field(5, ge=1)  # in a pretraining clip
    # environment steps between the frames of a clip, drawn per clip
    frame_gaps: tuple[int, ...] = (1,)
    augment: AugmentSettings | None = None  # null: clips show whole frames
    # pretrain on these instead of on trajectories: a path, or a mixture
    videos: str | tuple[VideoSettings, ...] | None = None
    fps: tuple[float, ...] = (4.0,)  # of clips of videos, drawn per clip
    clips_per_video: int = Field(1, ge=1)  # in an epoch
    folder_fps: float = Field(30.0, gt=0)  # of folders of frames, which do not state a rate
    # share of the videos that may be unreadable; more end the run
    max_unreadable: float = Field(0.01, ge=0, le=1)
    num_workers: int = Field(1, ge=1)  # threads that decode videos

    @property
    def sets(self) -> tuple[VideoSettings, ...]:
        """The sets of videos, none where trajectories are used."""
        return (
            (VideoSettings(path=self.videos),)
            if isinstance(self.videos, str)
            else self.videos or ()
        )
