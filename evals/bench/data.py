"""`jepa-wm bench data`: clips a second from generated videos, beside plain loops over the same
library, and the index.

The plain loop is what one would write for the clip at hand with PyAV alone: open, seek, decode up
to the last frame that is wanted, scale and copy only those. It is the decoder's own limit here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np

from jepa_wm.data.images import middle
from jepa_wm.data.video_clips import MAX_MICROSECONDS, MixturePart, VideoClipSampler
from jepa_wm.data.video_set import COLUMNS, NAMES, TEXTS, VideoSet, write_index
from jepa_wm.data.videos import find

FRAMES, FPS, SIDE, RATE = 16, 4.0, 256, 24  # of a clip; of a video
ROWS = 10_000_000


def run(*, threads: int, quick: bool = False) -> dict[str, object]:
    """Clips a second with one and two decoding threads (`ours_1`, `ours_2`), of the plain loop and
    of decoding whole files; `share_of_decoder`, ours with one thread over the plain loop; and
    `index`, of ten million generated rows."""
    with tempfile.TemporaryDirectory() as folder:
        # Films, and a clip of each, which both ways of reading have to agree on.
        count, seconds, repeats = (4, 3, 1) if quick else (12, 10, 5)
        for number in range(count):
            film(Path(folder) / f"{number}.mp4", seconds=seconds, seed=number)
        videos = VideoSet(find(folder))
        one, two = (sampler_of(videos, workers) for workers in (1, 2))
        rows = one.rows(0, count)
        same = plain_loop(videos, rows[0]) == one.frames_at(rows[:1]).numpy()[0]
        assert same.all(), "both show the same frames"

        methods: dict[str, Callable[[], object]] = {
            "ours_1": lambda: one.frames_at(rows),
            "ours_2": lambda: two.frames_at(rows),
            "plain_loop": lambda: np.stack([plain_loop(videos, row) for row in rows]),
            "whole_files": lambda: np.stack([whole_file(videos, row) for row in rows]),
        }
        rates = clips_a_second(methods, count, repeats)
        index = measure_index(Path(folder) / "index.h5", 10_000 if quick else ROWS)
    share = rates["ours_1"] / rates["plain_loop"]
    return {**rates, "share_of_decoder": share, "index": index}


def clips_a_second(
    methods: dict[str, Callable[[], object]], clips: int, repeats: int
) -> dict[str, float]:
    """The median rate of each method; they take turns, so that a neighbour on the machine disturbs
    all alike."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            began = time.perf_counter()
            method()
            times[name].append(time.perf_counter() - began)
    return {name: clips / median(seconds) for name, seconds in times.items()}


def sampler_of(videos: VideoSet, workers: int) -> VideoClipSampler:
    part = MixturePart(videos, seed=0)
    return VideoClipSampler([part], frames=FRAMES, fps=(FPS,), size=SIDE, workers=workers)


def film(path: Path, *, seconds: int, seed: int) -> None:
    """A video of drifting blotches with a keyframe every half second, h264."""
    r = np.random.default_rng(seed)
    ground = np.kron(r.integers(0, 255, (20, 30, 3)), np.ones((24, 24, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 340, SIDE, "yuv420p"
        stream.gop_size = RATE // 2
        for t in range(seconds * RATE):
            picture = ground[t % 128 : t % 128 + SIDE, t % 256 : t % 256 + 340]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def plain_loop(videos: VideoSet, row: np.ndarray) -> np.ndarray:
    """[T, px, px, 3] the clip of a row of timestamps by PyAV alone."""
    seconds = row % MAX_MICROSECONDS / 1e6
    pictures: list[np.ndarray] = []
    with av.open(str(videos.entry(int(row[0] // MAX_MICROSECONDS)).path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        tick = float(stream.time_base or 0)
        container.seek(int(seconds[0] / tick), stream=stream)
        # A timestamp shows the last frame that has begun by then; a tick early is on time.
        latest = None
        for frame in container.decode(stream):
            begins = ((frame.pts or 0) - 1) * tick
            while latest is not None and len(pictures) < len(seconds):
                if begins <= seconds[len(pictures)]:
                    break
                pictures.append(_pixels(latest))
            if len(pictures) == len(seconds):
                break
            latest = frame
        while len(pictures) < len(seconds):
            assert latest is not None
            pictures.append(_pixels(latest))
    return middle(np.stack(pictures), SIDE)


def whole_file(videos: VideoSet, row: np.ndarray) -> np.ndarray:
    """The same clip out of all frames of its file."""
    seconds = row % MAX_MICROSECONDS / 1e6
    with av.open(str(videos.entry(int(row[0] // MAX_MICROSECONDS)).path)) as container:
        container.streams.video[0].thread_count = 1
        frames = np.stack([_pixels(frame) for frame in container.decode(video=0)])
    numbers = np.floor(seconds * RATE + 1e-3).astype(int)
    return middle(frames[numbers.clip(max=len(frames) - 1)], SIDE)


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    scale = SIDE / min(frame.width, frame.height)
    size = {"width": round(frame.width * scale), "height": round(frame.height * scale)}
    return frame.reformat(**size, format="rgb24", interpolation="BILINEAR").to_ndarray()


def measure_index(path: Path, rows: int) -> dict[str, float]:
    """`open_s` until the first clip is drawn, `draw_ms` a clip, and how a worker's memory grows by
    it, in MiB."""
    names = np.frombuffer(b"".join(b"train/%07d.mp4" % number for number in range(rows)), np.uint8)
    columns: dict[str, np.ndarray] = {name: np.zeros(rows, kind) for name, kind in COLUMNS.items()}
    columns["seconds"] += 10
    columns["offset"] -= 1
    columns |= {"name_end": 17 * np.arange(1, rows + 1), NAMES: names}
    texts: dict[str, list[str]] = {name: [] for name in TEXTS} | {"classes": ["all"]}
    write_index(path, columns, texts, folder_fps=30, total=rows)
    # The index is opened in a process of its own, so that its memory can be told from ours.
    script = f"from {__name__} import worker; worker({str(path)!r})"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    measured: dict[str, float] = json.loads(output)
    return {"rows": rows, **measured}


def worker(path: str) -> None:
    """Open an index and draw from it, and print as JSON what that took."""
    before, began = _memory(), time.perf_counter()
    videos = VideoSet.open(path)
    sampler = sampler_of(videos, 1)
    sampler.rows(0, 1)
    opened, began = time.perf_counter() - began, time.perf_counter()
    for step in range(20):
        for row in sampler.rows(step, 64):
            videos.entry(int(row[0] // MAX_MICROSECONDS))
    drawn, after = time.perf_counter() - began, _memory()
    measured = {
        "open_s": opened,
        "draw_ms": 1000 * drawn / (20 * 64),
        "memory_mb": sum(after.values()) - sum(before.values()),
        "private_mb": after["RssAnon"] - before["RssAnon"],
    }
    print(json.dumps(measured))


def _memory() -> dict[str, float]:
    """MiB of this process that are resident, by kind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kinds = [line.split() for line in lines if line.startswith("Rss")]
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in kinds}
