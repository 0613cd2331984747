"""A reader of your own: a folder with one row of numbers and one picture a line, `frames.tsv`."""

from pathlib import Path

import numpy as np
from PIL import Image

from jepa_wm import register
from jepa_wm.data.readers.rows import FlatRows


@register("readers", "tsv")
class TsvReader:
    @staticmethod
    def recognises(path):
        return (Path(path) / "frames.tsv").exists()

    @staticmethod
    def open(path):  # a line: episode, action, picture
        rows = [line.split("\t") for line in (path / "frames.tsv").read_text().splitlines()]
        pictures = np.stack([np.asarray(Image.open(path / name)) for _, _, name in rows])
        actions = np.array([[float(action)] for _, action, _ in rows], np.float32)
        _, lengths = np.unique([int(episode) for episode, _, _ in rows], return_counts=True)
        return FlatRows(path, {"pixels": pictures, "action": actions}, lengths)
