"""A still picture becomes the same 8-bit RGB whatever its depth, colours and format; what has no
range is refused."""

import io

import films
import h5py
import made_formats as made
import numpy as np
import pytest
from PIL import Image

from jepa_wm.core.errors import UserError
from jepa_wm.data.images import ImageSequence, read_picture, rgb
from jepa_wm.data.readers.registry import open_trajectories
from jepa_wm.data.video import VideoError

RAMP = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
AS_8_BITS = np.round(RAMP / 257).astype(np.uint8)
ORIENTATION, TURNED = 0x0112, 6  # to be shown turned by a quarter, clockwise


def saved(picture, format, **options):
    content = io.BytesIO()
    picture.save(content, format, **options)
    content.seek(0)
    return content


def numbers(content):
    return np.asarray(read_picture(content, "it"))


def packed_12_bits(values):
    """A little-endian grey TIFF of 12 bits a pixel, two pixels in three bytes."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    data = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    height, width = values.shape
    tags = {
        256: width,
        257: height,
        258: 12,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: data.size,
    }
    entries = b"".join(
        np.array([tag, 4], "<u2").tobytes() + np.array([1, value], "<u4").tobytes()
        for tag, value in tags.items()
    )
    head = b"II*\0" + np.array([8 + data.size], "<u4").tobytes()
    return io.BytesIO(
        head
        + data.astype(np.uint8).tobytes()
        + np.array([9], "<u2").tobytes()
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_of_grey_keep_their_range(format, order):
    if (format, order) == ("PNG", ">u2"):
        pytest.skip("a PNG has one order of bytes")
    shown = numbers(saved(Image.fromarray(RAMP.astype(order)), format))
    assert shown.shape == (48, 64, 3) and shown.dtype == np.uint8 and len(np.unique(shown)) == 256
    assert all((shown[..., channel] == AS_8_BITS).all() for channel in range(3))


def test_white_may_be_0_and_depths_may_be_odd():
    inverted = numbers(saved(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0}))
    assert np.abs(inverted[..., 0].astype(int) - (255 - AS_8_BITS)).max() <= 1
    deep = np.linspace(0, 4095, 48 * 64).reshape(48, 64).astype(np.uint16)
    assert np.abs(numbers(packed_12_bits(deep))[..., 0] - deep / 4095 * 255).max() <= 0.5


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "La", "RGBa"]
)
def test_every_kind_of_colour_shows_black_and_white(mode):
    picture = Image.new("RGBA", (16, 8), (255, 255, 255, 255))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 8))
    straight = {"PA": "P", "La": "LA", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode)
    picture = (
        picture.convert("RGB") if straight is None and mode in ("1", "L", "P", "RGB") else picture
    )
    picture = (picture.convert(straight) if straight else picture).convert(mode)
    format = {"CMYK": "TIFF", "YCbCr": "TIFF", "LA": "PNG", "P": "PNG", "RGBA": "WEBP"}.get(mode)
    if format is None or mode == "YCbCr":
        shown = np.asarray(rgb(picture, "it"))
    else:
        shown = numbers(saved(picture, format, **({"lossless": True} if format == "WEBP" else {})))
    assert shown.shape == (8, 16, 3)
    assert (shown[:, :8] <= 2).all() and (shown[:, 8:] >= 253).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("deep", [False, True])
def test_pictures_are_turned_as_they_say_once(format, deep):
    if deep and format in ("JPEG", "WEBP"):
        pytest.skip("has 8 bits")
    picture = Image.fromarray(RAMP if deep else AS_8_BITS)
    exif = picture.getexif()
    exif[ORIENTATION] = TURNED
    shown = numbers(saved(picture, format, exif=exif))
    assert shown.shape == (64, 48, 3)
    assert np.abs(shown[..., 0].astype(int) - np.rot90(AS_8_BITS, -1)).max() < 12, (
        "JPEG and WebP are lossy"
    )


def test_numbers_without_a_range_are_refused_with_the_remedy():
    for dtype, kind in ((np.float32, "floats"), (np.int32, "signed or 32-bit numbers")):
        with pytest.raises(
            VideoError, match=f"it: holds {kind}, .*save it with 8 or 16 bits a channel"
        ):
            numbers(saved(Image.fromarray(RAMP.astype(dtype)), "TIFF"))
    for content in (
        b"",
        b"no picture",
        saved(Image.fromarray(RAMP), "PNG").getvalue()[:90],
        b"II*\0" + bytes(40),
    ):
        with pytest.raises(VideoError, match=r"it: cannot be read \("):
            numbers(io.BytesIO(content))


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP", "GIF"])
def test_one_file_of_several_pictures_is_refused(format):
    pages = [Image.new("L", (16, 16), 50 * k) for k in range(4)]
    content = saved(pages[0], format, save_all=True, append_images=pages[1:])
    with pytest.raises(VideoError, match="it: holds 4 pictures; save each as a file of its own"):
        numbers(content)


def test_smaller_copies_beside_a_picture_do_not_count():
    thumbnail = Image.fromarray(AS_8_BITS).resize((16, 12))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    content = saved(Image.fromarray(AS_8_BITS), "TIFF", save_all=True, append_images=[thumbnail])
    assert (numbers(content)[..., 0] == AS_8_BITS).all()


def test_folders_of_deep_frames_are_scaled(tmp_path):
    for number in range(3):
        Image.fromarray(RAMP // (number + 1)).save(tmp_path / f"{number}.png")
    shown = ImageSequence(tmp_path, fps=1).at(np.arange(3))
    assert np.abs(shown[2, ..., 0] - RAMP / 3 / 257).max() <= 1
    assert ImageSequence(tmp_path, fps=1, size=24).at(np.zeros(1)).mean() == pytest.approx(
        127.5, abs=1
    )


def test_deep_images_in_parquet_are_scaled(tmp_path):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = made.make_lerobot(tmp_path)
    deep = np.repeat(np.linspace(0, 65535, 16 * 20).reshape(16, 20).astype(np.uint16)[None], 5, 0)
    for file in path.rglob("*000001.parquet"):
        table = parquet.read_table(file)
        cells = [
            {"bytes": saved(Image.fromarray(picture), "PNG").getvalue(), "path": None}
            for picture in deep
        ]
        at = table.column_names.index("observation.images.wrist")
        parquet.write_table(
            table.set_column(at, "observation.images.wrist", pa.array(cells)), file
        )
    shown = open_trajectories(path).read("observation.images.wrist", 1, 0, 5)
    assert shown.shape == (5, 16, 20, 3) and np.abs(shown[..., 0] - deep / 257).max() <= 0.5
    for file in path.rglob("*000001.parquet"):
        cells = [{"bytes": b"no picture", "path": None}] * 5
        parquet.write_table(
            table.set_column(at, "observation.images.wrist", pa.array(cells)), file
        )
    with pytest.raises(
        UserError, match=r"episode 1: .*000001\.parquet: 'observ.*wrist': cannot be .*--without 1"
    ):
        open_trajectories(path).read("observation.images.wrist", 1, 0, 5)
    for file in path.rglob("*000001.parquet"):
        cell = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        empty = pa.array([{"bytes": None, "path": None}] * 5, cell)
        parquet.write_table(table.set_column(at, "observation.images.wrist", empty), file)
    with pytest.raises(
        UserError, match="a picture is missing; repair it, or leave it out with --without 1"
    ):
        open_trajectories(path).read("observation.images.wrist", 1, 0, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [5, 6])
def test_a_tiff_file_on_disk_is_turned_whole(dtype, orientation, tmp_path):
    grey = np.zeros((16, 48), dtype)
    grey[:4, :8] = np.iinfo(dtype).max
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(grey).save(tmp_path / "a.tif", exif=exif)
    shown = np.asarray(read_picture(tmp_path / "a.tif", "a.tif"))[..., 0]
    assert np.array_equal(shown > 127, (grey.T if orientation == 5 else np.rot90(grey, -1)) > 0)


def test_jpegs_of_minari_that_are_damaged_are_named(tmp_path):
    path = made.make_minari(tmp_path)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        for e, count in enumerate(made.LENGTHS):
            del file[f"episode_{e}/observations/image"]
            good = np.frombuffer(
                saved(Image.fromarray(films.frames(1)[0]), "JPEG").getvalue(), np.uint8
            )
            stored = file.create_dataset(
                f"episode_{e}/observations/image", (count,), h5py.vlen_dtype(np.uint8)
            )
            for i in range(count):
                stored[i] = good if i < 2 else good[:80]
    source = open_trajectories(path)
    assert source.read("observations/image", 0, 0, 2).shape == (2, 48, 64, 3)
    with pytest.raises(
        VideoError, match=r"main_data\.hdf5, /episode_0/observations/image: cannot be read"
    ):
        source.read("observations/image", 0, 2, 3)
