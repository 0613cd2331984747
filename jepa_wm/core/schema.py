"""Every setting of a run, typed and checked; sections carry the names of the rooms that read them.

The sections with their defaults are in schema_seeing.py (worlds, observe, encode, predict, freeze) and
schema_acting.py (dynamics, plan, act, train); all are imported from here.
"""

from __future__ import annotations

from pydantic import model_validator

from jepa_wm.core.schema_acting import (
    ICEM,
    Act,
    Bottleneck,
    Dynamics,
    Gradient,
    HeadSizes,
    Limits,
    Metric,
    Optimiser,
    Plan,
    Pretrain,
    Train,
    TrainDynamics,
    TrainHeads,
)
from jepa_wm.core.schema_seeing import (
    BlockMask,
    Encode,
    Freeze,
    Geometry,
    Gym,
    NoiseLevels,
    Observe,
    Predict,
    RewardSpot,
    Targets,
    Worlds,
)
from jepa_wm.core.section import Section

__all__ = [
    "ICEM",
    "Act",
    "BlockMask",
    "Bottleneck",
    "Config",
    "Dynamics",
    "Encode",
    "Freeze",
    "Geometry",
    "Gradient",
    "Gym",
    "HeadSizes",
    "Limits",
    "Metric",
    "NoiseLevels",
    "Observe",
    "Optimiser",
    "Plan",
    "Predict",
    "Pretrain",
    "RewardSpot",
    "Section",
    "Targets",
    "Train",
    "TrainDynamics",
    "TrainHeads",
    "Worlds",
]


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

    @model_validator(mode="after")
    def _fits(self) -> Config:
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
        if self.plan.elites > self.plan.candidates:
            raise ValueError(f"plan.elites {self.plan.elites} exceed plan.candidates {self.plan.candidates}")
        if self.plan.execute > self.plan.horizon:
            raise ValueError(f"plan.execute {self.plan.execute} exceeds plan.horizon {self.plan.horizon}")
        steps = self.observe.frames // self.encode.tubelet
        if (self.predict.contrast or self.predict.path) and not any(
            mask.leaves_whole_frames(steps) for mask in self.predict.masks
        ):
            raise ValueError(
                f"predict.contrast {self.predict.contrast} and predict.path {self.predict.path} need a mask that "
                f"leaves at least two of {steps} time steps whole: one block of scale [1, 1], aspect [1, 1] and one "
                "length of time; add such a mask, raise observe.frames, or set both weights to 0"
            )
        return self
