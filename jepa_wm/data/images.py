"""Still pictures of any depth and kind of colour as 8-bit RGB: the one place where an image file
becomes numbers."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from jepa_wm.data.video_stream import VideoError

# What Pillow raises for damaged files, according to how far it came.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
BITS, PHOTOMETRIC, SUBFILE = (
    258,
    262,
    254,
)  # tags of TIFF: bits a channel, what 0 means, what a page is for
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
