"""The whole config, assembled from the sections of the rooms, and the checks that concern several
of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import model_validator

from jepa_wm.core.config import load_yaml_config
from jepa_wm.core.section import Section
from jepa_wm.data.settings import DataSettings
from jepa_wm.evals.settings import EvaluationSettings, ProbeSettings
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.launch.settings import LaunchSettings
from jepa_wm.models.settings import (
    DistanceSettings,
    DynamicsSettings,
    EncoderSettings,
    JepaSettings,
    LatentSettings,
)
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.training.settings import TrainSettings
from jepa_wm.worlds.settings import CollectSettings, WorldSettings


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a shipped name ("two_rooms") or a YAML file, with `section.key=value`
    overrides.

    Raises UserError that lists every problem.
    """
    return load_yaml_config(name_or_path, overrides, Config)


class Config(Section):
    seed: int = 0
    world: WorldSettings = WorldSettings()
    data: DataSettings = DataSettings()
    collect: CollectSettings = CollectSettings()
    encoder: EncoderSettings = EncoderSettings()
    jepa: JepaSettings = JepaSettings()
    features: FeatureSettings = FeatureSettings()
    latent: LatentSettings | None = LatentSettings()  # null: all frozen tokens are the latent
    dynamics: DynamicsSettings = DynamicsSettings()
    distance: DistanceSettings = DistanceSettings()
    planner: PlannerSettings = PlannerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    train: TrainSettings = TrainSettings()
    probes: ProbeSettings = ProbeSettings()
    launch: LaunchSettings = LaunchSettings()

    @model_validator(mode="after")
    def _what_is_seen_fits(self) -> Config:
        if self.data.image_size % self.encoder.patch:
            raise ValueError(
                f"data.image_size {self.data.image_size} is not a multiple of encoder.patch {self.encoder.patch}"
            )
        if self.dynamics.frameskip % self.features.stride:
            raise ValueError(
                f"features.stride {self.features.stride} does not divide dynamics.frameskip {self.dynamics.frameskip}"
            )
        if self.data.num_frames % self.encoder.tubelet:
            raise ValueError(
                f"data.num_frames {self.data.num_frames} is not a multiple of encoder.tubelet {self.encoder.tubelet}"
            )
        return self

    @model_validator(mode="after")
    def _what_it_learns_from_fits(self) -> Config:
        if self.data.videos is not None and self.jepa.path:
            raise ValueError(
                f"jepa.path {self.jepa.path} reads actions, and data.videos have none; set jepa.path=0"
            )
        if any(part.single_images for part in self.data.sets) and self.jepa.contrast:
            raise ValueError(
                f"jepa.contrast {self.jepa.contrast} tells a frame from its successor, and in a still image they "
                "are equal; set jepa.contrast=0, or leave out the sets with single_images: true"
            )
        if (
            self.data.augment is not None
            and self.data.augment.jitter
            and self.encoder.channels != 3
        ):
            raise ValueError(
                f"data.augment.jitter {self.data.augment.jitter} changes the light of frames of 3 channels, and "
                f"encoder.channels is {self.encoder.channels}; set data.augment.jitter=0"
            )
        if self.data.augment is not None and self.data.augment.own and self.jepa.contrast:
            raise ValueError(
                f"jepa.contrast {self.jepa.contrast} tells the clip's frames from far ones, which views of their "
                "own would betray; set data.augment.own=false or jepa.contrast=0"
            )
        if self.data.augment is not None and self.jepa.path:
            raise ValueError(
                f"jepa.path {self.jepa.path} reads displacements, which data.augment rescales and mirrors; set "
                "jepa.path=0 or data.augment=null"
            )
        if self.jepa.targets.levels > self.encoder.depth:
            raise ValueError(
                f"jepa.targets.levels {self.jepa.targets.levels} exceed encoder.depth {self.encoder.depth}"
            )
        return self

    @model_validator(mode="after")
    def _regularisers_fit(self) -> Config:
        steps, jepa = self.data.num_frames // self.encoder.tubelet, self.jepa
        told_by_far = jepa.far >= 2  # an episode can be told by far frames alone
        asking = {
            "contrast": jepa.contrast,
            "episode": 0 if told_by_far else jepa.episode,
            "path": jepa.path,
        }
        if any(asking.values()) and not any(
            mask.leaves_whole_frames(steps) for mask in jepa.masks
        ):
            said = ", ".join(f"jepa.{name} {weight}" for name, weight in asking.items() if weight)
            raise ValueError(
                f"{said} need a mask that leaves at least two of {steps} time steps whole: one block of scale [1, 1], "
                "aspect [1, 1] and one length of time; add such a mask, raise data.num_frames, or set the weights to 0"
                + ("; or set jepa.far >= 2" if asking["episode"] else "")
            )
        if jepa.episode and not jepa.far:
            raise ValueError(f"jepa.episode {jepa.episode} needs far frames; set jepa.far >= 1")
        return self

    @model_validator(mode="after")
    def _summary_fits(self) -> Config:
        latent, frames = self.latent, self.train.latent.frames
        if latent and latent.straight and frames < 3:
            raise ValueError(
                f"latent.straight {latent.straight:g} compares two steps, and train.latent.frames "
                f"{frames} make one; set train.latent.frames=3"
            )
        return self

    @model_validator(mode="after")
    def _plan_fits(self) -> Config:
        if self.planner.cost.robust_radius and self.latent is None:
            raise ValueError(
                f"planner.cost.robust_radius {self.planner.cost.robust_radius:g} is of the moving "
                "numbers of latent, which is null; set planner.cost.robust_radius=0"
            )
        return self
