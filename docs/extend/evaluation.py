"""An evaluation of your own: `jepa-wm eval stillness`, how alike the frozen features of successive
frames are (cosine, held-out episodes). It is a stage whose name begins with `eval_`."""

import numpy as np
import torch

from jepa_wm import stage
from jepa_wm.data.trajectories import open_data
from jepa_wm.features.cache import Features


@stage("eval_stillness", after="features", keep="newest", reads=("data.path",))
def stillness(run, data_path):
    data = open_data(run.path, data_path, "heldout")
    features = Features(run.path / "features" / "heldout", data)
    episodes, first = np.arange(len(data.lengths)), np.zeros(len(data.lengths), np.int64)
    now = features.tokens(episodes, first).float()  # [R, N, D]
    then = features.tokens(episodes, first + features.stride).float()
    return {"stillness": float(torch.cosine_similarity(now, then, -1).mean())}
