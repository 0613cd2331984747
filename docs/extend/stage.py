"""A stage of your own: `jepa-wm brightness`. What its signature names of the config is all that it
is given, and what its result is stored for: it is done once, and refused with other settings."""

from jepa_wm import stage
from jepa_wm.data.trajectories import open_data


@stage(after="collect", reads=("data.path",), help="how bright the recorded frames are")
def brightness(run, data_path, data_num_frames):
    frames = open_data(run.path, data_path, "train").frames
    return {"brightness": float(frames[: 100 * data_num_frames].mean() / 255)}
