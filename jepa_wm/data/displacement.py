"""Where actions lead, told from the actions alone: their sum where they are moves, the places
where they name places.

B clips, T frames, a action numbers, N rows of a file.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.action_units import ActionStatistics
from jepa_wm.data.trajectories import Trajectories


class Displacement:
    """The displacements between frames of an episode by its actions, for pretraining and for the
    latent's training.

    A frame is where the action *before* it led. So with moves (`absolute` false) the displacement
    between two frames is the sum of the actions from the earlier one up to the later; with places
    to go to it is the difference of the places that the actions before the two name, and of an
    episode's first frame, which no action led to, it is not known. An action number that never
    varies adds up to nothing, and a glitch to no more than the bounds of the others. Nor does a
    move that hardly varies beside its own size: its sum would tell the time that passed, which no
    frame shows."""

    def __init__(self, data: Trajectories, *, absolute: bool) -> None:
        found = ActionStatistics.of(data.taken_actions)
        varied = found.low < found.high if absolute else ~found.steady
        actions = np.where(varied, data.actions.astype(np.float64).clip(found.low, found.high), 0)
        if absolute:
            self._place = np.roll(actions, 1, 0)
            self._place[data.offsets] = np.nan
        else:
            total = np.cumsum(actions, 0)
            self._place = np.concatenate(
                [np.zeros_like(total[:1]), total[:-1]]
            )  # sum of the actions before each row

    def at(self, rows: np.ndarray) -> Tensor:
        """[B, T, a] displacement of each frame from the first one of its clip whose place is
        known, of the rows [B, T] of frames of one episode a clip; NaN where it is not known."""
        place = self._place[rows]
        known = np.isfinite(place).all(-1)  # [B, T]
        origin = place[np.arange(len(rows)), known.argmax(1)]
        return torch.from_numpy((place - origin[:, None]).astype(np.float32))
