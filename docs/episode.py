"""Makes docs/episode.png, the first won episode as start, way and goal: python docs/episode.py
runs/two_rooms"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jepa_wm.report.artifacts import Episodes
from jepa_wm.report.pictures import episode_gif

episodes = Episodes(**np.load(Path(sys.argv[1]) / "plan" / "episodes.npz"))
with Image.open(io.BytesIO(episode_gif(episodes, int(np.argmax(episodes.success_final))))) as film:
    film.seek(film.n_frames - 1)
    film.convert("RGB").save(Path(__file__).with_name("episode.png"))
