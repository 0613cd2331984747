"""The whole config, assembled from the sections of the rooms, and the checks that concern several
of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import model_validator

from jepa_wm.core.config import load_yaml_config
from jepa_wm.core.settings import Section
from jepa_wm.data.settings import DataSettings
from jepa_wm.evals.settings import AllEvaluationSettings, ProbeSettings
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.launch.settings import LaunchSettings
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.latent_settings import AnyLatent, FactoredLatentSettings
from jepa_wm.models.world_model_settings import (
    AnyDynamics,
    DeterministicSettings,
    DistanceSettings,
)
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.training.settings import TrainSettings
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings
from jepa_wm.worlds.world import ChosenWorld, CollectSettings


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a shipped name ("two_rooms") or a YAML file, with `section.key=value`
    overrides.

    Raises UserError that lists every problem.
    """
    return load_yaml_config(name_or_path, overrides, Config)


class Config(Section):
    seed: int = 0
    world: ChosenWorld = TwoRoomsSettings()
    data: DataSettings = DataSettings()
    collect: CollectSettings = CollectSettings()
    encoder: EncoderSettings = EncoderSettings()
    jepa: JepaSettings = JepaSettings()
    features: FeatureSettings = FeatureSettings()
    latent: AnyLatent = FactoredLatentSettings()
    dynamics: AnyDynamics = DeterministicSettings()
    distance: DistanceSettings | None = DistanceSettings()  # null: none is learned
    planner: PlannerSettings = PlannerSettings()
    evaluation: AllEvaluationSettings = AllEvaluationSettings()
    train: TrainSettings = TrainSettings()
    probes: ProbeSettings = ProbeSettings()
    launch: LaunchSettings = LaunchSettings()

    @model_validator(mode="after")
    def _what_is_seen_fits(self) -> Config:
        if self.data.image_size % self.encoder.patch_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} is not a multiple of "
                f"encoder.patch_size {self.encoder.patch_size}"
            )
        if self.dynamics.frameskip % self.features.stride:
            raise ValueError(
                f"features.stride {self.features.stride} does not divide dynamics.frameskip "
                f"{self.dynamics.frameskip}"
            )
        if self.data.num_frames % self.encoder.tubelet_size:
            raise ValueError(
                f"data.num_frames {self.data.num_frames} is not a multiple of "
                f"encoder.tubelet_size {self.encoder.tubelet_size}"
            )
        return self

    @model_validator(mode="after")
    def _what_it_learns_from_fits(self) -> Config:
        jepa, augment = self.jepa, self.data.augment
        # What the data cannot show.
        if self.data.videos is not None and jepa.inverse_dynamics:
            raise ValueError(
                f"jepa.inverse_dynamics {jepa.inverse_dynamics} reads actions, and data.videos "
                "have none; set jepa.inverse_dynamics=0"
            )
        stills = any(part.single_images for part in self.data.sets)
        for name in ("temporal_contrast", "episode_contrast"):
            if stills and getattr(jepa, name):
                raise ValueError(
                    f"jepa.{name} {getattr(jepa, name)} compares frames of different times, and a "
                    f"still image has one; set jepa.{name}=0, or leave out the sets with "
                    "single_images: true"
                )
        # What augmented views change.
        if augment is not None and augment.color_jitter and self.encoder.channels != 3:
            raise ValueError(
                f"data.augment.color_jitter {augment.color_jitter} changes the light of frames of "
                "3 "
                f"channels, and encoder.channels is {self.encoder.channels}; set "
                "data.augment.color_jitter=0"
            )
        if augment is not None and jepa.inverse_dynamics:
            raise ValueError(
                f"jepa.inverse_dynamics {jepa.inverse_dynamics} reads displacements, which "
                "data.augment rescales and mirrors; set jepa.inverse_dynamics=0 or "
                "data.augment=null"
            )
        if jepa.target_levels > self.encoder.depth:
            raise ValueError(
                f"jepa.target_levels {jepa.target_levels} exceed encoder.depth "
                f"{self.encoder.depth}"
            )
        return self

    @model_validator(mode="after")
    def _regularisers_fit(self) -> Config:
        steps, jepa = self.data.num_frames // self.encoder.tubelet_size, self.jepa
        for mask in jepa.masks:
            mask.check_steps(steps)
        if jepa.patch_init == "predictive" and steps < 2:
            raise ValueError(
                f"jepa.patch_init predictive compares a frame with the next, and clips have "
                f"{steps} time step; raise data.num_frames or set jepa.patch_init=whitening"
            )
        # Whole frames are read by these; two distant frames alone can tell an episode.
        episode_contrast = jepa.episode_contrast if jepa.num_distant_frames < 2 else 0
        weights = {
            "temporal_contrast": jepa.temporal_contrast,
            "episode_contrast": episode_contrast,
            "inverse_dynamics": jepa.inverse_dynamics,
        }
        named = ", ".join(f"jepa.{name} {weight}" for name, weight in weights.items() if weight)
        if named and not any(mask.leaves_whole_frames(steps) for mask in jepa.masks):
            raise ValueError(
                f"{named} need a mask that leaves at least two of {steps} time steps whole: one "
                "block of spatial_scale [1, 1], aspect_ratio [1, 1] and one temporal_scale, or "
                "{frames: n}; add such a mask, raise data.num_frames, or set the weights to 0"
                + ("; or set jepa.num_distant_frames >= 2" if episode_contrast else "")
            )
        if jepa.temporal_contrast and not any(m.leaves_successors(steps) for m in jepa.masks):
            raise ValueError(
                f"jepa.temporal_contrast {jepa.temporal_contrast} compares frames in view that "
                f"follow one another, and of {steps} time steps jepa.masks hide every other one; "
                "hide fewer, raise data.num_frames, or set jepa.temporal_contrast=0"
            )
        if jepa.episode_contrast and not jepa.num_distant_frames:
            raise ValueError(
                f"jepa.episode_contrast {jepa.episode_contrast} needs distant frames; set "
                "jepa.num_distant_frames >= 1"
            )
        return self

    @model_validator(mode="after")
    def _latent_model_fits(self) -> Config:
        self.latent.check_frames(self.train.latent.frames)
        self.dynamics.check(self.latent, self.distance)
        self.dynamics.check_frames(self.train.dynamics.frames, self.train.dynamics.rollout)
        channels = getattr(self.latent, "map_channels", 0)
        if channels and not self.dynamics.reads_map:
            raise ValueError(
                f"latent.map_channels {channels} is of a map that dynamics.name "
                f"{self.dynamics.name} does not read around points; set dynamics.name=mlp, or "
                "latent.map_channels=0"
            )
        return self

    @model_validator(mode="after")
    def _plan_fits(self) -> Config:
        cost = self.planner.cost
        if cost.robust_radius and not self.latent.perturbable:
            raise ValueError(
                f"planner.cost.robust_radius {cost.robust_radius:g} is of a few dynamic numbers, "
                f"which latent.name {self.latent.name} has not; set planner.cost.robust_radius=0"
            )
        if cost.proprio and not self.latent.proprio:
            raise ValueError(
                f"planner.cost.proprio {cost.proprio:g} compares what latent.proprio names, which "
                "is nothing; name numbers of the state there, or set planner.cost.proprio=0"
            )
        if self.planner.needs_heads and not self.dynamics.has_heads:
            raise ValueError(
                f"planner asks heads, and dynamics.name {self.dynamics.name} has none: set "
                "planner.cost.objective=l1, and a solver that searches"
            )
        return self

    @model_validator(mode="after")
    def _baseline_fits(self) -> Config:
        backbone = self.features.backbone
        if self.evaluation.random_encoder_baseline and (backbone or "").startswith("vjepa2/"):
            raise ValueError(
                f"evaluation.random_encoder_baseline is of random weights, and features.backbone "
                f"{backbone} is read from a file; set evaluation.random_encoder_baseline=false"
            )
        return self

    @model_validator(mode="after")
    def _policies_fit(self) -> Config:
        alone, trained = self.evaluation.policies, self.train.heads.sizes.policies
        if alone and not self.dynamics.has_heads:
            raise ValueError(
                f"evaluation.policies are heads, and dynamics.name {self.dynamics.name} has none: "
                "set evaluation.policies=[]"
            )
        if alone and self.planner.cost.objective == "reward":
            raise ValueError(
                "evaluation.policies play toward goal images, and planner.cost.objective is "
                "reward: set evaluation.policies=[]"
            )
        frames, seen = self.train.heads.sizes.policy_frames, self.dynamics.context_frames
        if frames is not None and frames > seen:
            raise ValueError(
                f"train.heads.sizes.policy_frames {frames} are more than the {seen} of "
                f"dynamics.context_frames, which is all that an agent remembers; set it to {seen}"
            )
        # Whoever asks for a policy, it has to be trained.
        asked = [("evaluation.policies", name) for name in alone]
        asked += [("planner.solver.policy", self.planner.solver.played)]
        asked += [("planner.mpc.warm_start", self.planner.mpc.warm_start)]
        for field, name in asked:
            if name is not None and name not in trained:
                raise ValueError(
                    f"{field} asks for {name}, which is not among train.heads.sizes.policies "
                    f"[{', '.join(trained)}]: add it there, or ask for another"
                )
        return self
