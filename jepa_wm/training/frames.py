"""The frames of a features file as trainings of latents and dynamics read them.

B batch, S sample frames, R frames of a file, N latent tokens, M dynamic numbers of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import exact
from jepa_wm.data.sampling import spread
from jepa_wm.features.cache import Features
from jepa_wm.features.store import encoded_rows
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.world_model.latents import SLAB, Recording, of_all_frames

SAMPLE = 3000  # frames that principal components are found in


class Frames:
    """The frames of a features file as trainings read them: compressed by the latent, and held in
    memory where it says so; then, but of a joint latent, their dynamic numbers, which are fixed by
    the time the dynamics are trained."""

    def __init__(self, model: LatentModel, features: Features) -> None:
        self.latent, self.features = model.latent, features
        self.recording = Recording(features.data, model)
        self._file_rows = encoded_rows(features.data, features.stride)
        self._few = spread(len(features), SAMPLE)
        if self.latent.fitted:
            self.latent.fit(features.rows(self._few).to(dist().device))
        self._held: Tensor | None = None
        self._known: Tensor | None = None  # [R, N, *] as `Latent.early` gives them
        if self.latent.held:
            with torch.no_grad():
                self._held = of_all_frames(features, self.latent.compress, self.recording)

    @torch.no_grad()
    def hold_known(self) -> None:
        """Read what the dynamics do not train of all frames, where that is held."""
        latent = self.latent
        if self._held is not None:
            slabs = [slab.to(dist().device) for slab in self._held.split(SLAB)]
            self._known = torch.cat([latent.early(slab).cpu() for slab in slabs])
        elif latent.early_held:
            with exact(dist().device):
                self._known = of_all_frames(
                    self.features,
                    lambda *frame: latent.early(latent.compress(*frame)),
                    self.recording,
                )
        if self._known is not None:
            self._known = latent.with_proprio(self._known, self._proprio(slice(None)))

    def at(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., *] compressed frames (multiples of the stride) of episodes, arrays of one shape,
        on this rank's device."""
        return self._compressed(self.features.index(episode, frame))

    def dynamic(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., N, M] dynamic numbers of such frames, with a gradient where the dynamics train
        them."""
        rows = self.features.index(episode, frame)
        if self._known is not None:
            known = self._known[torch.from_numpy(rows)][..., : self.latent.dynamic_dim]
            return known.to(dist().device)
        trained = self.latent.joint and torch.is_grad_enabled()
        with exact(dist().device), torch.set_grad_enabled(trained):
            seen = self.latent.dynamic(self._compressed(rows))
            return self.latent.with_proprio(seen, self._proprio(rows))

    def static(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., N, L] static numbers of such frames, with a gradient where the dynamics train
        them."""
        latent, parts = self.latent, []
        if self._known is not None:
            rows = torch.from_numpy(self.features.index(episode, frame))
            parts.append(latent.static_of(self._known[rows]).to(dist().device))
        if latent.static is not None:
            parts.append(latent.static(self.at(episode, frame)).float())
        return torch.cat(parts, -1)

    def sample(self) -> Tensor:
        """[S, *] compressed frames from all over the file."""
        return self._compressed(self._few)

    @torch.no_grad()
    def sample_latents(self) -> Tensor:
        """[S, N, D] latents of such frames, each by itself."""
        return self.latent.encode(*self._read(self._few))

    def _compressed(self, rows: np.ndarray) -> Tensor:
        if self._held is not None:
            return self._held[torch.from_numpy(rows)].to(dist().device)
        tokens, proprio = self._read(rows)
        return self.latent.compress(tokens.float(), proprio)

    def _read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        tokens = self.features.rows(rows).to(dist().device)
        return tokens, self._proprio(rows)

    def _proprio(self, rows: np.ndarray | slice) -> Tensor | None:
        return self.recording.at_rows(self._file_rows[rows])
