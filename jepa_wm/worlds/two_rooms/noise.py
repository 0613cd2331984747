"""Distractions that carry no information about the task: brightness, pixel noise and drifting
coloured blotches.

B worlds, S canvas side, K waves. Levels are standard deviations in units where an image spans
-1..1."""

from __future__ import annotations

import numpy as np

from jepa_wm.worlds.settings import NoiseLevels

WAVES = 6  # plane waves summed into one blotch pattern


class Distraction:
    """The distraction of a batch of worlds: seeded per world, advanced once per step, applied to
    rendered frames."""

    def __init__(self, levels: NoiseLevels, size: int, seeds: np.ndarray) -> None:
        self.levels, self.size = levels, size
        if not levels.any:
            return
        # What drifts and what flickers draw apart, so that rendering twice does not change where
        # blotches go.
        self._flicker = [np.random.default_rng([int(seed), 1]) for seed in seeds]
        self._generators = [np.random.default_rng([int(seed), 4]) for seed in seeds]
        low, high = levels.wavelength
        draws = [r.random((WAVES, 3)) for r in self._generators]
        u = np.array(draws, np.float32)  # [B, K, 3]
        angle, length = u[..., 0] * np.pi * 2, low * (high / low) ** u[..., 1]
        self._frequency = (
            2 * np.pi / length[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        )  # [B, K, 2]
        self._phase = u[..., 2] * np.pi * 2  # [B, K]
        colour = np.array([r.standard_normal((WAVES, 3)) for r in self._generators], np.float32)
        # One wave has variance 1/2: scale so that the pattern's standard deviation over space and
        # channels is 1.
        self._colour = colour / np.sqrt(
            (colour**2).sum(1, keepdims=True).mean(2, keepdims=True) / 2
        )
        self._drift = (
            np.array([r.standard_normal(WAVES) for r in self._generators], np.float32)
            * levels.drift
        )

    def advance(self) -> None:
        """One step of drift."""
        if self.levels.any:
            shake = np.array([r.standard_normal(WAVES) for r in self._generators], np.float32)
            self._phase = self._phase + self._drift + self.levels.wander * shake

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """[B, S, S, 3] uint8 frames with brightness, blotches and pixel noise; a new draw at every
        call."""
        if not self.levels.any:
            return frames
        out = frames.astype(np.float32)
        for b, generator in enumerate(self._flicker):
            image = out[b]  # span 0..255, so a level of 1 is 127.5
            image *= 1 + self.levels.brightness * generator.standard_normal(dtype=np.float32)
            image += (127.5 * self.levels.blotches) * self._blotches(b)
            image += (127.5 * self.levels.pixel) * generator.standard_normal(
                image.shape, dtype=np.float32
            )
        return np.clip(out, 0, 255).astype(np.uint8)

    def _blotches(self, b: int) -> np.ndarray:
        """[S, S, 3] pattern of world b, by cos(u + v) = cos u cos v - sin u sin v: two thin matrix
        products."""
        axis = np.arange(self.size, dtype=np.float32)
        along_x = self._frequency[b, :, :1] * axis + self._phase[b][:, None]  # [K, S]
        along_y = self._frequency[b, :, 1:] * axis
        left = np.concatenate([np.cos(along_y), -np.sin(along_y)]).T.astype(np.float32)  # [S, 2K]
        right = np.concatenate([np.cos(along_x), np.sin(along_x)]).astype(np.float32)  # [2K, S]
        colour = np.concatenate([self._colour[b], self._colour[b]])  # [2K, 3]
        basis = (right[:, :, None] * colour[:, None, :]).reshape(2 * WAVES, -1)  # [2K, S*3]
        return (left @ basis).reshape(self.size, self.size, 3)
