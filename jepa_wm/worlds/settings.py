"""Section of the config: what collecting records."""

from __future__ import annotations

from pydantic import Field

from jepa_wm.core.section import Section


class CollectSettings(Section):
    """How much `collect` records of the world. A held-out episode has a seed, and in a world with
    splits a layout, that no training episode has."""

    episodes: int = Field(1500, ge=1)
    episode_length: int = Field(91, ge=2)  # frames
    heldout_episodes: int = Field(100, ge=1)
    heldout_episode_length: int = Field(181, ge=2)  # frames
    min_length: int = Field(2, ge=2)  # frames; episodes that end by themselves before are left out
