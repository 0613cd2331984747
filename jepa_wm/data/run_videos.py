"""The videos of a run: sets opened once, their index kept beside the checkpoints, and clips drawn
from them."""

from __future__ import annotations

from pathlib import Path

from jepa_wm.config import Config
from jepa_wm.data.order import ShuffledOrder
from jepa_wm.data.video_clips import MixturePart, VideoClipSampler, loaded_size
from jepa_wm.data.video_set import VideoSet
from jepa_wm.data.videos import find


def open_sets(folder: Path, config: Config) -> list[VideoSet]:
    """The sets that `data.videos` names.

    What is found on looking into every file is kept in `folder`, so that a run that goes on later,
    when files may have come or gone, numbers them as before. Raises UserError for a set that is
    not there or is too broken."""
    observe, opened = config.data, []
    for number, part in enumerate(observe.sets):
        index = Path(part.path)
        if index.suffix != ".h5":
            index = folder / f"videos_{number}.h5"
            if not index.exists():
                found = find(part.path, single_images=part.single_images)
                VideoSet(
                    found, ceiling=observe.max_unreadable, folder_fps=observe.folder_fps
                ).save(index)
        opened.append(VideoSet.open(index, ceiling=observe.max_unreadable))
    return opened


def clip_sampler(sets: list[VideoSet], config: Config, *, seed: int) -> VideoClipSampler:
    """Pretraining clips of those sets; where clips are cropped they are loaded larger."""
    observe = config.data
    size = (
        observe.image_size
        if observe.augment is None
        else loaded_size(observe.image_size, observe.augment.scale[0])
    )
    parts = [
        MixturePart(
            videos,
            ShuffledOrder(len(videos) * observe.clips_per_video, seed),
            part.weight,
            observe.clips_per_video,
        )
        for videos, part in zip(sets, observe.sets, strict=True)
    ]
    return VideoClipSampler(
        parts, frames=observe.num_frames, fps=observe.fps, size=size, workers=observe.num_workers
    )
