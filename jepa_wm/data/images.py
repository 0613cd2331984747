"""Images: any depth and kind of colour as 8-bit RGB, the one place where an image file becomes
numbers; a folder of them as a video source; and frames as the encoder takes them, whole, cut, or
in random views.

B clips, T or K frames of h x w px, c channels, S side in px.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from jepa_wm.data.samples import PICTURES, VIDEOS, natural, pass_over_thumbnails, visible
from jepa_wm.data.settings import AugmentSettings
from jepa_wm.data.video import Facts, VideoError, scaled

# What Pillow raises for damaged files, according to how far it came.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# tags of TIFF: bits a channel, what 0 means, what a page is for
BITS, PHOTOMETRIC, SUBFILE = 258, 262, 254
WHITE_IS_0, SMALLER = 0, 1


def read_picture(source: Path | BinaryIO, name: Path | str) -> Image.Image:
    """An image file as RGB, turned as its EXIF says; `name` is what errors call it.

    VideoError for a file that is damaged, that holds several pictures, or numbers without a range.
    """
    try:
        # Pillow maps a file that it opens by name, and lays out the rows of some turned TIFF
        # wrongly then.
        with Image.open(
            io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source
        ) as opened:
            return rgb(opened, name)
    except DAMAGE as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{name}: cannot be read ({error}); copy it again") from error


def rgb(picture: Image.Image, name: Path | str) -> Image.Image:
    """A picture as RGB of 8 bits, turned as its EXIF says; alpha is dropped: colours are shown as
    stored.

    Greys of more bits keep their range: 0 stays black and the largest number that the file has
    room for white. VideoError for several pictures in one file (an animation, a stack of pages),
    and for numbers whose range no file states."""
    count = _pictures_in(picture)
    if count > 1:
        raise VideoError(
            f"{name}: holds {count} pictures; save each as a file of its own, or all as a video"
        )
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    if picture.mode in ("I", "F") and not deep:
        kind = "floats" if picture.mode == "F" else "signed or 32-bit numbers"
        raise VideoError(
            f"{name}: holds {kind}, which have no black and white; save it with 8 or 16 bits a "
            "channel"
        )
    if deep:
        return ImageOps.exif_transpose(_grey(picture, name)).convert("RGB")
    turned = ImageOps.exif_transpose(picture)
    straight = {"RGBa": "RGBA", "La": "LA"}.get(turned.mode)  # colours multiplied by alpha
    return (turned.convert(straight) if straight else turned).convert("RGB")


def _grey(picture: Image.Image, name: Path | str) -> Image.Image:
    """16-bit greys as 8-bit ones, EXIF kept."""
    tags = _tags(picture)
    bits = tags.get(BITS, (16,))[0]
    values = np.asarray(picture).astype(np.float32) * (255 / (2**bits - 1))
    if tags.get(PHOTOMETRIC) == WHITE_IS_0:
        values = 255 - values
    grey = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    grey.info["exif"] = picture.getexif().tobytes()
    return grey


def _tags(picture: Image.Image) -> Mapping[int, Any]:
    """Of a TIFF the tags of its page, of others none."""
    return getattr(picture, "tag_v2", {})


def _pictures_in(picture: Image.Image) -> int:
    """How many there are; smaller copies of the same and what a camera puts beside a JPEG do not
    count."""
    count = getattr(picture, "n_frames", 1)
    if count == 1 or picture.format == "MPO":
        return 1
    if picture.format != "TIFF":
        return count
    pages = 0
    for page in reversed(range(count)):
        picture.seek(page)
        pages += not _tags(picture).get(SUBFILE, 0) & SMALLER
    return pages


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
        seconds = count / self.fps if count > 1 else 0.0
        return Facts(seconds, self.fps, count, width, height, self._files[0].suffix[1:])

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """[K, h, w, 3] uint8 frames on screen at `seconds` [K]; the first before, and the last
        after them all.

        VideoError if an image cannot be read, or has another size than the first.
        """
        numbers = np.floor(np.asarray(seconds) * self.fps + 1e-4).astype(int)
        numbers = numbers.clip(0, len(self._files) - 1)
        shown = {number: self._image(self._files[number]) for number in np.unique(numbers)}
        if len({image.shape for image in shown.values()}) > 1:
            raise VideoError(f"{self.path}: its images differ in size; make them equal")
        return np.stack([shown[number] for number in numbers])

    def close(self) -> None:
        """Nothing stays open."""

    def _image(self, file: Path) -> np.ndarray:
        image = read_picture(file if self._source is None else self._source, file)
        if self.size is not None:
            image = image.resize(scaled(image.width, image.height, self.size))
        return np.asarray(image)


def images(folder: Path) -> list[Path]:
    """The images directly in a folder, frame_2 before frame_10, without those that belong to
    videos beside them.

    VideoError for two of one name: nothing tells which of a.jpg and a.png is the frame.
    """
    files = visible(folder.iterdir())
    videos = [file for file in files if file.suffix.lower() in VIDEOS]
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    pictures = sorted(pass_over_thumbnails(pictures, videos), key=natural)
    stems: dict[str, Path] = {}
    for file in pictures:
        if stems.setdefault(file.stem, file) is not file:
            raise VideoError(
                f"{folder}: {stems[file.stem].name} and {file.name} are one frame; leave one of "
                "them there"
            )
    return pictures


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 frames [n, h, w, c] as [n, size, size, c], antialiased; the whole picture, so its
    aspect may change."""
    if frames.shape[1:3] == (size, size):
        return frames
    return _as_bytes(antialiased(_as_floats(frames), size))


def joined_cameras(cameras: Sequence[np.ndarray], size: int) -> np.ndarray:
    """[n, size, size, c] uint8 one picture of the frames [n, h, w, c] of several cameras, from
    left to right: each as high as the picture and narrowed to its share of the width, which is to
    be a whole number of pixels."""
    width = size // len(cameras)
    assert width * len(cameras) == size, (size, len(cameras))
    each = [_as_bytes(antialiased(_as_floats(frames), size, width)) for frames in cameras]
    return np.concatenate(each, 2)


def _as_floats(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames.astype(np.float32)).movedim(-1, 1)


def _as_bytes(frames: Tensor) -> np.ndarray:
    whole = frames.round_().clamp_(0, 255).to(torch.uint8)
    return whole.movedim(1, -1).contiguous().numpy()


def antialiased(frames: Tensor, height: int, width: int | None = None) -> Tensor:
    """float frames [n, c, h, w] as [n, c, height, width], the whole picture; a square without a
    width."""
    return torch.nn.functional.interpolate(
        frames, (height, width or height), mode="bilinear", antialias=True, align_corners=False
    )


def to_input(frames: Tensor, size: int) -> Tensor:
    """uint8 frames [..., h, w, c] as float [..., c, size, size] in -1..1.

    A frame at most a few pixels larger than `size` is cut at its right and lower edge, which keeps
    pixels exact; any other size is resized with antialiasing."""
    x = frames.movedim(-1, -3)
    height, width = x.shape[-2:]
    if size <= min(height, width) and max(height, width) - size < 8:
        return x[..., :size, :size].float().div_(127.5).sub_(1.0)
    flat = antialiased(x.reshape(-1, *x.shape[-3:]).float(), size)
    return flat.div_(127.5).sub_(1.0).view(*x.shape[:-2], size, size)


def middle(frames: np.ndarray, size: int) -> np.ndarray:
    """[T, size, size, c] the middle of frames [T, h, w, c], whose shorter side is `size`."""
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return frames[:, top : top + size, left : left + size]


def draw_augmentation(batch: int, generator: torch.Generator) -> Tensor:
    """[9, B] random numbers in 0..1 that `augment` of so many clips stand on."""
    return torch.rand((9, batch), generator=generator)


def augment(frames: Tensor, crop: AugmentSettings, size: int, u: Tensor) -> Tensor:
    """float [B, T, c, S, S] in -1..1 of uint8 clips [B, T, h, w, c]: of each a part of random
    area, aspect and place, half of them mirrored if asked, in a random light; the same for all
    frames of a clip. `u` [9, B] are the numbers of `draw_augmentation`.

    The usual random resized crop: area and aspect (width / height, evenly in its logarithm) are
    those of `crop`; sides that do not fit are cut to the frame. The light as in SimCLR (Chen et
    al., 2020): factors of brightness, contrast and saturation within 1 - jitter..1 + jitter, and a
    turn of the hue by at most a quarter of that."""
    height, width = frames.shape[2:4]
    area = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[0]) * height * width
    low, high = torch.tensor(crop.aspect_ratio).log()
    aspect = (low + (high - low) * u[1]).exp()
    wide = (area * aspect).sqrt().round().long().clamp(1, width)
    tall = (area / aspect).sqrt().round().long().clamp(1, height)
    left, top = (u[2] * (width - wide + 1)).long(), (u[3] * (height - tall + 1)).long()
    mirrored = (u[4] < 0.5) & crop.horizontal_flip
    light = crop.color_jitter * (2 * u[5:] - 1)
    views = []
    for b, clip in enumerate(frames.movedim(-1, 2)):  # [T, c, h, w]
        part = clip[..., top[b] : top[b] + tall[b], left[b] : left[b] + wide[b]]
        part = antialiased(part.float(), size)
        part = part.flip(-1) if mirrored[b] else part
        views.append(_relit(part, *light[:, b].tolist()) if crop.color_jitter else part)
    return torch.stack(views).div_(127.5).sub_(1.0)


def _relit(
    frames: Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """float frames [T, 3, S, S] in 0..255, each factor given by how far it is from 1, the hue in
    turns times 4."""
    x = tv.adjust_brightness(frames / 255, 1 + brightness)
    x = tv.adjust_contrast(x, 1 + contrast)
    x = tv.adjust_saturation(x, 1 + saturation)
    return tv.adjust_hue(x, hue / 4) * 255
