"""Whatever the container and the codec, a frame that is sought is the one that reading the file on
shows."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from jepa_wm.data.video import Video, VideoError

FPS, COUNT = 25, 100
GREYS = np.concatenate(
    [np.full((256, 1), 255), np.repeat(np.arange(256)[:, None], 3, 1)], 1
).astype(np.uint8)

FILES = [  # container, codec, pixel format, B-frames
    ("avi", "rawvideo", "pal8", 0), ("avi", "msrle", "pal8", 0), ("mov", "rawvideo", "pal8", 0),
    ("mov", "smc", "pal8", 0), ("mov", "qtrle", "gray", 0), ("nut", "rawvideo", "pal8", 0),
    ("gif", "gif", "pal8", 0),
    ("avi", "png", "rgb24", 0), ("mov", "rpza", "rgb555le", 0), ("mkv", "ffv1", "gray16le", 0),
    ("mkv", "ffv1", "gray12le", 0), ("mkv", "ffv1", "gbrp12le", 0),
    ("mov", "prores_ks", "yuv422p10le", 0),
    ("avi", "mpeg4", "yuv420p", 0), ("avi", "mpeg4", "yuv420p", 2),
    ("avi", "libx264", "yuv420p", 2),
    ("mpg", "mpeg1video", "yuv420p", 0), ("mpg", "mpeg1video", "yuv420p", 2),
    ("mpeg", "mpeg2video", "yuv420p", 2),
    ("ts", "libx264", "yuv420p", 2), ("ts", "mpeg2video", "yuv420p", 2),
    ("m2ts", "libx264", "yuv420p", 0),
    ("mts", "libx264", "yuv420p", 2), ("3gp", "mpeg4", "yuv420p", 0),
    ("wmv", "wmv2", "yuv420p", 0),
    ("flv", "flv1", "yuv420p", 0), ("flv", "libx264", "yuv420p", 2),
    ("webm", "libvpx", "yuv420p", 0),
    ("asf", "mpeg4", "yuv420p", 2), ("asf", "libx264", "yuv420p", 2),
    ("mxf", "libx264", "yuv420p", 2),
]  # fmt: skip


def numbered(number):
    """A picture whose columns tell the bits of its number."""
    bits = [220 if number >> b & 1 else 30 for b in range(8)]
    return np.repeat(np.broadcast_to(np.repeat(bits, 8)[None, :, None], (48, 64, 1)), 3, 2).astype(
        np.uint8
    )


def number_of(picture):
    return sum(1 << b for b in range(8) if picture[:, 8 * b + 2 : 8 * b + 6].mean() > 125)


def write(path, codec, pix_fmt, b_frames=0, palettes=None):
    """Frames of increasing number; `palettes` [n, 256, 4] are those of a paletted one, else
    grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.gop_size, stream.thread_count, stream.codec_context.max_b_frames = 12, 1, b_frames
        for number in range(COUNT):
            if pix_fmt == "pal8":
                palette = GREYS if palettes is None else palettes[number]
                picture = np.ascontiguousarray(numbered(number)[..., 0])
                frame = av.VideoFrame.from_ndarray((picture, palette), format="pal8")
            else:
                frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("container", "codec", "pix_fmt", "b_frames"), FILES)
def test_a_sought_frame_is_the_one_that_reading_on_shows(
    container, codec, pix_fmt, b_frames, tmp_path
):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} to write the file with")
    path = write(tmp_path / f"film.{container}", codec, pix_fmt, b_frames)
    wanted = np.random.default_rng(0).permutation(COUNT)[:25]
    with Video(path, size=48) as video:
        assert [
            number_of(video.at(np.array([(n + 0.5) / FPS]))[0]) for n in wanted
        ] == wanted.tolist()
        facts, stamps = video.facts(), video.stamps()
    if container not in ("mpg", "mpeg"):  # they time one frame of several
        assert stamps == pytest.approx(np.arange(COUNT) / FPS, abs=0.011)
    assert facts.frames == COUNT and facts.seconds == pytest.approx(COUNT / FPS, abs=0.05)
    for number in (*wanted[:5], 0, COUNT - 1):  # as the first thing that is asked of a file
        with Video(path) as video:
            assert number_of(video.at(np.array([(number + 0.5) / FPS]))[0]) == number


def test_a_palette_that_changes_on_the_way_is_that_of_its_frame(tmp_path):
    palettes = np.stack([GREYS] * COUNT)
    palettes[60:, :, 1:3] = 0  # one channel is left
    path = write(tmp_path / "film.avi", "rawvideo", "pal8", palettes=palettes)
    with av.open(str(path)) as container:
        read_on = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(read_on) == COUNT and (read_on[50] != read_on[70]).any()
    with Video(path) as video:
        for number in (80, 10, 59, 60, 99, 0):
            assert np.array_equal(video.at(np.array([(number + 0.5) / FPS]))[0], read_on[number])


@pytest.mark.parametrize(
    ("pix_fmt", "limit"), [("gray16le", 2**16), ("gray12le", 2**12), ("gray10le", 2**10)]
)
def test_deep_greys_keep_their_range(pix_fmt, limit, tmp_path):
    ramp = np.linspace(0, limit - 1, 48 * 64).reshape(48, 64).astype(np.uint16)
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format=pix_fmt)))
        container.mux(stream.encode(None))
    with Video(tmp_path / "film.mkv") as video:
        shown = video.at(np.zeros(1))[0, ..., 0]
    assert np.abs(shown - ramp / (limit - 1) * 255).max() <= 2


def box(kind, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def give_cover(path):
    """Put cover art into an mp4, before its tracks, so that it becomes the first video stream."""
    picture = io.BytesIO()
    Image.new("RGB", (200, 100), (200, 0, 0)).save(picture, "JPEG")
    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0), picture.getvalue()))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    about = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", cover)))
    raw = path.read_bytes()
    at = raw.rindex(b"moov") - 4  # the last box of the file: nothing behind it moves
    size, first = (struct.unpack(">I", raw[i : i + 4])[0] for i in (at, at + 8))
    inside = at + 8 + first
    path.write_bytes(
        raw[:at]
        + struct.pack(">I", size + len(about))
        + raw[at + 4 : inside]
        + about
        + raw[inside:]
    )
    return path


def test_cover_art_is_passed_over_whatever_its_place(tmp_path):
    first = give_cover(write(tmp_path / "first.mp4", "mpeg4", "yuv420p"))
    with av.open(str(first)) as container:
        assert [stream.width for stream in container.streams.video] == [200, 64], (
            "the cover comes first"
        )
    with Video(first) as video:
        facts = video.facts()
        assert (facts.width, facts.height, facts.codec, facts.frames) == (64, 48, "mpeg4", COUNT)
        assert number_of(video.at(np.array([2.02]))[0]) == 50
    assert facts.seconds == pytest.approx(COUNT / FPS)


def test_music_with_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"song\.mp4: has no video stream"):
        Video(give_cover(tmp_path / "song.mp4"))
