"""Settings of the trainings, a section a stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jepa_wm.core.settings import OptimiserSettings, Section
from jepa_wm.models.head_settings import HeadSettings


class TrainPretraining(OptimiserSettings):
    """Pretraining, and the online probe that watches it."""

    steps: int = Field(300, ge=0)
    batch: int = Field(24, ge=1)
    lr: float = 5e-4
    # weights to begin with: another run folder, or a released V-JEPA 2 file
    start: str | None = None
    probe_frames: int = Field(10000, ge=1)  # of videos 512 at most: they have no state to read
    # of the probe at every evaluation, which shows whether the encoder gets better
    probe_steps: int = 400
    # of the probe that is reported, which should be limited by the encoder alone
    final_probe_steps: int = 1500

    @model_validator(mode="after")
    def _starts(self) -> TrainPretraining:
        if self.start is not None and self.steps == 0:
            raise ValueError(
                f"start {self.start} with steps 0 trains nothing; to freeze it see "
                "features.backbone"
            )
        return self


class TrainLatent(OptimiserSettings):
    steps: int = Field(4000, ge=0)
    batch: int = Field(256, ge=1)
    lr: float = 2e-3
    final_lr: float = 0.02
    save_every: int = Field(1000, ge=1)
    frames: int = Field(3, ge=2)  # in a training window


class TrainDynamics(OptimiserSettings):
    steps: int = Field(2000, ge=0)
    frames: int = Field(10, ge=2)  # in a training window
    rollout: float = 1.0  # weight of the multi-step rollout loss beside teacher forcing


class TrainDistance(OptimiserSettings):
    steps: int = Field(1500, ge=0)
    batch: int = Field(128, ge=1)  # of episodes
    frames: int = Field(16, ge=2)  # of each, every pair of which counts
    lr: float = 2e-3


class TrainHeads(OptimiserSettings):
    steps: int = Field(1500, ge=0)
    batch: int = Field(256, ge=1)
    sizes: HeadSettings = HeadSettings()


class ParallelSettings(Section):
    """How the ranks of a job train together; what is learned is the same, so none of it belongs to
    a run's identity."""

    # Weights, gradients and moments sharded over ranks (FSDP2); else every rank has all (DDP).
    fsdp: bool = False
    # Activations of blocks are computed again in the backward pass instead of kept.
    recompute: bool = False
    compile: bool = False  # torch.compile of blocks; gains nothing on a CPU
    # parts a batch is computed in; statistics over the batch are then of a part
    accumulate: int = Field(1, ge=1)


class Execution(Section):
    """How a training is carried out; what is learned is the same but for rounding."""

    # auto: whichever is faster here, by a measurement
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    keep: int = Field(2, ge=1)  # newest checkpoints of a training that are kept
    parallel: ParallelSettings = ParallelSettings()


class PretrainTraining(Execution):
    pretrain: TrainPretraining = TrainPretraining()


class DynamicsTraining(Execution):
    latent: TrainLatent = TrainLatent()
    dynamics: TrainDynamics = TrainDynamics()
    distance: TrainDistance = TrainDistance()


class HeadsTraining(Execution):
    heads: TrainHeads = TrainHeads()


class TrainSettings(HeadsTraining, DynamicsTraining, PretrainTraining):
    """All of them; each stage is given its own."""

    threads: int = Field(0, ge=0)  # of the CPU; 0: as many as there are cores
