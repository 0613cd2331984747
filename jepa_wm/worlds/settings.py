"""Sections of the config: the simulated world, and who explores it."""

from __future__ import annotations

from typing import Literal

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


class Geometry(Section):
    """Two rooms: where walls and doors may be. All lengths in pixels."""

    size: int = 65
    border: int = 5  # the agent stays in [border, size - 1 - border]
    door_half: float = 4.0
    wall_padding: int = 20  # wall x is drawn from [padding, size - padding)
    door_padding: int = 10
    max_step: float = 2.45  # longest move in one step; longer actions are scaled back to it
    action_scale: float = 1.0  # next = position + action_scale * action
    fixed_wall: int | None = None  # a wall that never moves (DINO-WM's setting), else random

    @property
    def low(self) -> float:
        return float(self.border)

    @property
    def high(self) -> float:
        return float(self.size - 1 - self.border)


class NoiseLevels(Section):
    """How strong each distraction is, in units where an image spans -1..1; all zero means a clean
    world."""

    brightness: float = 0.0  # per-frame gain is 1 + brightness * normal
    pixel: float = 0.0  # standard deviation, independent for each pixel and channel
    blotches: float = 0.0  # standard deviation of the low-frequency coloured pattern
    wavelength: tuple[float, float] = (16.0, 64.0)  # px, range of the waves in the pattern
    drift: float = 0.2  # rad per step, spread of each wave's steady motion
    wander: float = 0.7  # rad per step, random part of each wave's motion

    @property
    def any(self) -> bool:
        return self.brightness > 0 or self.pixel > 0 or self.blotches > 0


class RewardRegion(Section):
    """A place in two rooms with reward 1 for every step the agent ends there, the same in all
    layouts. Pixels."""

    at: tuple[float, float] = (54.0, 32.0)  # x, y; the default always lies in the right room
    radius: float = Field(5.0, gt=0)


class Gym(Section):
    """A Gymnasium environment with images: as observation or from render()."""

    id: str = (
        "Pendulum-v1"  # as gymnasium.make takes it; "module:Name-v0" imports the module first
    )
    options: dict[str, bool | int | float | str] = {}  # further arguments of the environment
    picture: str | None = (
        None  # entry of an observation with several pictures, as a/b if nested; render: render()
    )
    size: int | None = 64  # px, side that frames are resized to; null: as they come
    action_kind: Literal["delta", "absolute"] = (
        "delta"  # its actions are moves, which add up, or places to go to
    )
    hold: int = Field(
        5, ge=1
    )  # steps that the random actions which collect data are held, on average


class WorldSettings(Section):
    """The simulator, and the policy that explores it to collect data."""

    name: Literal["two_rooms", "gym"] = (
        "two_rooms"  # what follows, `gym` and `noise` apart, is of two_rooms
    )
    gym: Gym = Gym()
    geometry: Geometry = Geometry()
    render_style: Literal["colour", "ebjepa"] = (
        "colour"  # ebjepa: its two channels, agent and walls; the third is empty
    )
    process_noise: float = Field(
        0.0, ge=0
    )  # spread of the chance part of every move, in units of the longest step
    reward_region: RewardRegion | None = None  # where two rooms have a reward; null: nowhere
    noise: NoiseLevels = NoiseLevels()
    cross: float = Field(0.5, ge=0, le=1)  # share of the policy's legs that lead through the door
    drift: float = Field(
        0.3, ge=0, le=1
    )  # share of legs that follow a drifting heading instead of a target
    blind: float = Field(
        0.5, ge=0, le=1
    )  # share of the other legs that ignore walls and walk into them
