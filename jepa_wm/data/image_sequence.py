"""Images as a video source: a folder of frames is a video of a given rate, and one image a video
that stands still.

K frames of h x w px.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from jepa_wm.data.images import read_picture
from jepa_wm.data.samples import PICTURES, VIDEOS, natural, pass_over_thumbnails, visible
from jepa_wm.data.video import Facts, VideoError


class ImageSequence:
    """What `Video` is for a file, for a folder of images in the order of the numbers in their
    names, or one image.

    Image k is on screen from k / fps seconds on. Images are turned as their EXIF says, alpha is
    dropped, and greys of 16 bits keep their range."""

    def __init__(
        self,
        path: Path | str,
        *,
        fps: float,
        size: int | None = None,
        source: BinaryIO | None = None,
    ) -> None:
        """`source` holds the bytes of a single image where the path is only what to call it."""
        self.path, self.fps, self.size, self._source = Path(path), fps, size, source
        self._files = images(self.path) if self.path.is_dir() else [self.path]
        if not self._files:
            raise VideoError(f"{path}: holds no images")

    def facts(self) -> Facts:
        """Length, rate and size; one image lasts 0 s."""
        height, width = self._image(self._files[0]).shape[:2]
        count = len(self._files)
        return Facts(
            count / self.fps if count > 1 else 0.0,
            self.fps,
            count,
            width,
            height,
            self._files[0].suffix[1:],
        )

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """[K, h, w, 3] uint8 frames on screen at `seconds` [K]; the first before, and the last
        after them all.

        VideoError if an image cannot be read, or has another size than the first.
        """
        numbers = (
            np.floor(np.asarray(seconds) * self.fps + 1e-4)
            .astype(int)
            .clip(0, len(self._files) - 1)
        )
        shown = {number: self._image(self._files[number]) for number in np.unique(numbers)}
        if len({image.shape for image in shown.values()}) > 1:
            raise VideoError(f"{self.path}: its images differ in size; make them equal")
        return np.stack([shown[number] for number in numbers])

    def close(self) -> None:
        """Nothing stays open."""

    def _image(self, file: Path) -> np.ndarray:
        image = read_picture(file if self._source is None else self._source, file)
        if self.size is not None:
            scale = self.size / min(image.size)
            image = image.resize(
                (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            )
        return np.asarray(image)


def images(folder: Path) -> list[Path]:
    """The images directly in a folder, frame_2 before frame_10, without those that belong to
    videos beside them.

    VideoError for two of one name: nothing tells which of a.jpg and a.png is the frame.
    """
    files = visible(folder.iterdir())
    videos = [file for file in files if file.suffix.lower() in VIDEOS]
    found = [file for file in files if file.suffix.lower() in PICTURES]
    found = sorted(pass_over_thumbnails(found, videos) if videos else found, key=natural)
    stems: dict[str, Path] = {}
    for file in found:
        if stems.setdefault(file.stem, file) is not file:
            raise VideoError(
                f"{folder}: {stems[file.stem].name} and {file.name} are one frame; leave one of "
                "them there"
            )
    return found
