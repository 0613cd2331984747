"""The whole config, assembled from the sections of the rooms, and the checks that concern several of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import model_validator

from jepa_wm.core.config import load_yaml_config
from jepa_wm.core.section import Section
from jepa_wm.data.settings import Observe
from jepa_wm.evals.settings import Act, Evals
from jepa_wm.features.settings import Freeze
from jepa_wm.launch.settings import Launch
from jepa_wm.models.settings import Dynamics, Encode, Predict
from jepa_wm.planning.settings import Plan
from jepa_wm.training.settings import Train
from jepa_wm.worlds.settings import Worlds


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a shipped name ("two_rooms") or a YAML file, with `section.key=value` overrides.

    Raises UserError that lists every problem.
    """
    return load_yaml_config(name_or_path, overrides, Config)


class Config(Section):
    seed: int = 0
    worlds: Worlds = Worlds()
    observe: Observe = Observe()
    encode: Encode = Encode()
    predict: Predict = Predict()
    freeze: Freeze = Freeze()
    dynamics: Dynamics = Dynamics()
    plan: Plan = Plan()
    act: Act = Act()
    train: Train = Train()
    evals: Evals = Evals()
    launch: Launch = Launch()

    @model_validator(mode="after")
    def _what_is_seen_fits(self) -> Config:
        if self.observe.image_size % self.encode.patch:
            raise ValueError(
                f"observe.image_size {self.observe.image_size} is not a multiple of encode.patch {self.encode.patch}"
            )
        if self.dynamics.frameskip % self.freeze.stride:
            raise ValueError(
                f"freeze.stride {self.freeze.stride} does not divide dynamics.frameskip {self.dynamics.frameskip}"
            )
        if self.observe.frames % self.encode.tubelet:
            raise ValueError(
                f"observe.frames {self.observe.frames} is not a multiple of encode.tubelet {self.encode.tubelet}"
            )
        return self

    @model_validator(mode="after")
    def _what_it_learns_from_fits(self) -> Config:
        if self.observe.videos is not None and self.predict.path:
            raise ValueError(
                f"predict.path {self.predict.path} reads actions, and observe.videos have none; set predict.path=0"
            )
        if any(part.images for part in self.observe.sets) and self.predict.contrast:
            raise ValueError(
                f"predict.contrast {self.predict.contrast} tells a frame from its successor, and in a still image they "
                "are equal; set predict.contrast=0, or leave out the sets with images: true"
            )
        if self.observe.crop is not None and self.observe.crop.jitter and self.encode.channels != 3:
            raise ValueError(
                f"observe.crop.jitter {self.observe.crop.jitter} changes the light of frames of 3 channels, and "
                f"encode.channels is {self.encode.channels}; set observe.crop.jitter=0"
            )
        if self.observe.crop is not None and self.observe.crop.own and self.predict.contrast:
            raise ValueError(
                f"predict.contrast {self.predict.contrast} tells the clip's frames from far ones, which views of their "
                "own would betray; set observe.crop.own=false or predict.contrast=0"
            )
        if self.observe.crop is not None and self.predict.path:
            raise ValueError(
                f"predict.path {self.predict.path} reads displacements, which observe.crop rescales and mirrors; set "
                "predict.path=0 or observe.crop=null"
            )
        if self.predict.targets.levels > self.encode.depth:
            raise ValueError(
                f"predict.targets.levels {self.predict.targets.levels} exceed encode.depth {self.encode.depth}"
            )
        return self

    @model_validator(mode="after")
    def _regularisers_fit(self) -> Config:
        steps, predict = self.observe.frames // self.encode.tubelet, self.predict
        told_by_far = predict.far >= 2  # an episode can be told by far frames alone
        asking = {"contrast": predict.contrast, "episode": 0 if told_by_far else predict.episode, "path": predict.path}
        if any(asking.values()) and not any(mask.leaves_whole_frames(steps) for mask in predict.masks):
            said = ", ".join(f"predict.{name} {weight}" for name, weight in asking.items() if weight)
            raise ValueError(
                f"{said} need a mask that leaves at least two of {steps} time steps whole: one block of scale [1, 1], "
                "aspect [1, 1] and one length of time; add such a mask, raise observe.frames, or set the weights to 0"
                + ("; or set predict.far >= 2" if asking["episode"] else "")
            )
        if predict.episode and not predict.far:
            raise ValueError(f"predict.episode {predict.episode} needs far frames; set predict.far >= 1")
        return self

    @model_validator(mode="after")
    def _summary_fits(self) -> Config:
        bottleneck, frames = self.dynamics.bottleneck, self.train.summary.frames
        if bottleneck and bottleneck.straight and frames < 3:
            raise ValueError(
                f"dynamics.bottleneck.straight {bottleneck.straight:g} compares two steps, and train.summary.frames "
                f"{frames} make one; set train.summary.frames=3"
            )
        return self

    @model_validator(mode="after")
    def _plan_fits(self) -> Config:
        if self.plan.margin and self.dynamics.bottleneck is None:
            raise ValueError(
                f"plan.margin {self.plan.margin:g} is of the moving numbers of dynamics.bottleneck, which is null; set "
                "plan.margin=0"
            )
        if self.plan.elites > self.plan.candidates:
            raise ValueError(f"plan.elites {self.plan.elites} exceed plan.candidates {self.plan.candidates}")
        if self.plan.execute > self.plan.horizon:
            raise ValueError(f"plan.execute {self.plan.execute} exceeds plan.horizon {self.plan.horizon}")
        return self
