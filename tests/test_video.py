"""A frame asked for by its second is the one a full decode shows then, whatever the codec, rate or
damage."""

from pathlib import Path

import av
import films
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_wm.data.video import Video, VideoError

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "video_clips"


def decoded(path):
    """(seconds [n], quarters counter-clockwise, frames [n, h, w, 3]) of a whole file, one frame
    after the other."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        zero = stream.start_time or 0
        seen = [
            (
                float((frame.pts - zero) * stream.time_base),
                frame.rotation // 90,
                frame.to_ndarray(format="rgb24"),
            )
            for frame in container.decode(stream)
        ]
    return np.array([s for s, _, _ in seen]), seen[0][1], [frame for _, _, frame in seen]


def on_screen(times, second):
    """The frame that a full decode shows at a second."""
    return max(0, int(np.searchsorted(times, second + 1e-6, side="right")) - 1)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A video of 24 frames whose rate varies, with a keyframe every 5."""
    gaps = np.random.default_rng(0).choice([0.04, 0.1, 0.4], size=23)
    seconds = np.round(np.concatenate([[0], np.cumsum(gaps)]), 3)
    path = tmp_path_factory.mktemp("films") / "uneven.mp4"
    return films.write(path, films.frames(24), seconds=seconds, gop=5), seconds


@given(st.lists(st.floats(-1, 12), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_seconds_in_any_order_of_a_varying_rate(uneven, wanted):
    path, seconds = uneven
    with Video(path) as video:
        shown, slack = video.at(np.array(wanted)), video._stream.slack
    # A second that is no more than the slack before a frame is that frame's.
    assert slack < 1e-3
    assert [films.number_of(frame) for frame in shown] == [
        on_screen(seconds, second + slack) for second in wanted
    ]


def test_a_requested_rate_is_kept_to_the_timestamp(uneven):
    path, seconds = uneven
    times = 0.3 + np.arange(16) / 7
    shown = Video(path).at(times)
    assert [films.number_of(frame) for frame in shown] == [
        on_screen(seconds, second) for second in times
    ]


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_every_frame_at_its_own_rate_once(container, tmp_path):
    """Milliseconds (mkv) and whole frames (avi) as ticks must neither skip a frame nor show one
    twice."""
    codec = "mpeg4" if container == "avi" else "libx264"
    path = films.write(tmp_path / f"film.{container}", films.frames(24), fps=30, codec=codec)
    with Video(path) as video:
        facts = video.facts()
        assert (
            facts.frames == 24
            and facts.fps == pytest.approx(30)
            and facts.seconds == pytest.approx(0.8, abs=0.04)
        )
        numbers = [films.number_of(frame) for frame in video.at(np.arange(30) / 30)]
    assert numbers == [*range(24), *[23] * 6], "the last frame stays"


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "yuv420p10le", (48, 64)),
        ("libx264", "yuv444p", (47, 33)),
        ("libx265", "yuv420p", (64, 96)),
        ("libvpx-vp9", "yuva420p", (48, 64)),
        ("libsvtav1", "yuv420p", (64, 96)),
    ],
)
def test_codecs_depths_alpha_and_odd_sizes(codec, pix_fmt, size, tmp_path):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} to write the file with")
    pictures = films.frames(12, height=size[0], width=size[1])
    path = films.write(
        tmp_path / ("film.webm" if "vp9" in codec else "film.mp4"),
        pictures,
        codec=codec,
        pix_fmt=pix_fmt,
    )
    with Video(path) as video:
        shown = video.at(np.arange(12) / 10)
    assert shown.shape == (12, *size, 3) and [films.number_of(frame) for frame in shown] == list(
        range(12)
    )


def test_a_turned_video_is_shown_upright(tmp_path):
    pictures = films.frames(3)
    pictures[:, :24, :32] = 255  # the upper left corner goes to the upper right
    path = films.turn(films.write(tmp_path / "film.mp4", pictures))
    with Video(path) as video:
        facts, shown = video.facts(), video.at(np.array([0.0]))
    assert (facts.width, facts.height) == (48, 64) and shown.shape == (1, 64, 48, 3)
    assert shown[0, :32, 24:].mean() > 240 > 100 > shown[0, :32, :24].mean()
    assert Video(path, size=24).at(np.array([0.0])).shape == (1, 32, 24, 3)


def test_damage_is_named(tmp_path):
    with pytest.raises(VideoError, match="gone.mp4: no such video file"):
        Video(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded"):
        Video(tmp_path / "text.mp4")
    noise = np.random.default_rng(0).integers(256, size=(60, 48, 64, 3), dtype=np.uint8)
    for name, options in (("film.mp4", {"movflags": "faststart"}), ("film.mkv", {})):
        path = films.write(tmp_path / name, noise, options=options)
        films.cut(path, 0.5)
        with Video(path) as video:
            assert len(video.at(np.arange(10) / 10)) == 10, "what is there is shown"
            with pytest.raises(
                VideoError, match=rf"{name}: (cannot be decoded|ends after [\d.]+ s of the 6.0 s)"
            ):
                video.at(np.array([5.5]))


def real():
    return sorted(
        path for path in CLIPS.glob("*") if path.suffix in (".mp4", ".mov", ".mkv", ".webm")
    )


@pytest.mark.shared
@pytest.mark.skipif(not CLIPS.exists(), reason="the folder ../shared is not there")
@pytest.mark.parametrize("path", real(), ids=lambda path: path.name)
def test_real_files_agree_with_a_full_decode(path):
    if "corrupted" in path.name:
        with pytest.raises(VideoError, match="cannot be decoded"):
            Video(path).at(np.arange(5))
        return
    if "sam2" in path.name and "bedroom" not in path.name:
        pytest.skip("like sam2_bedroom, only longer")
    times, quarters, frames = decoded(path)
    wanted = np.random.default_rng(0).permutation(
        np.concatenate([times[::11], times[::7] + 0.013, [times[-1] + 9]])
    )
    with Video(path) as video:
        facts = video.facts()
        shown = video.at(wanted)
    assert facts.frames == len(times) and facts.seconds == pytest.approx(times[-1], abs=0.2)
    for second, frame in zip(wanted, shown, strict=True):
        near = {
            on_screen(times, second),
            on_screen(times, second + min(1e-3, 0.25 / facts.fps)),
        }  # a tick may be 1 ms
        assert any(np.array_equal(frame, np.rot90(frames[i], quarters)) for i in near)


def test_a_codec_that_nothing_here_decodes_is_called_so(tmp_path):
    path = films.write(tmp_path / "a.mp4", films.frames(6))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(
        VideoError, match=r"a\.mp4: its codec is unknown to the FFmpeg .*encode the file again"
    ):
        Video(path)
