"""Section of the config: the labelled data of frozen evaluation, and the heads that are tried on
it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from jepa_wm.core.settings import Section, none_twice
from jepa_wm.models.head_settings import PolicyName
from jepa_wm.worlds.tasks import ChosenTask


class ProbeSettings(Section):
    """What `eval linear`, `attentive`, `knn` and `state` read and try.

    Settings of a probe are chosen on the last part of the training set in its own order (of each
    class, where there are classes), never on the test set."""

    # Class folders, a manifest, tar shards, an index, .h5 trajectories, torchvision/NAME/FOLDER;
    # null: the run's own.
    train: str | None = None
    test: str | None = None  # the same for the test, which is predicted once
    # Every image of a class folder is a sample, instead of a frame of the folder's video.
    single_images: bool = False
    column: str = "state"  # of trajectories: what is to be predicted
    num_frames: int = Field(1, ge=1)  # in a clip; of trajectories, the frame itself comes last
    frame_gap: int = Field(1, ge=1)  # environment steps between them, of trajectories
    num_clips: int = Field(1, ge=1)  # of each video, at equal distances; predictions are averaged
    max_samples: int = Field(4000, ge=2)  # of trajectories: frames in either part, spread evenly
    validation_fraction: float = Field(0.2, gt=0, lt=1)  # of the training set, to choose on
    baselines: tuple[Literal["pixels", "random_encoder"], ...] = ("pixels", "random_encoder")
    pixel_size: int = Field(32, ge=1)  # px, side of the raw frames of the baseline `pixels`
    steps: int = Field(500, ge=1)  # of training the heads, all at once
    batch_size: int = Field(64, ge=1)
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    weight_decays: tuple[float, ...] = (0.01, 0.3)
    # Of attentive heads: the last level is the pool, before it the tokens meet in blocks.
    depths: tuple[int, ...] = (1, 4)
    head_dim: int = Field(32, ge=2, multiple_of=2)  # channels of an attention head of the blocks
    num_neighbors: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> ProbeSettings:
        if (self.train is None) != (self.test is None):
            raise ValueError(
                "train and test belong together: give both, or neither for the run's own "
                "trajectories"
            )
        for name, least in (("learning_rates", 0), ("weight_decays", 0), ("depths", 1)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise ValueError(f"{name} {list(values)}: give at least one, none below {least}")
        return self


class EvaluationSettings(Section):
    """The closed loop's judgement: frozen goal tasks or seeds of episodes for reward, and the
    budget."""

    task: ChosenTask = None  # null: the world's own; of episodes for reward there is none
    episodes: int = Field(100, ge=1)  # of each kind of layouts; windows of `eval offline`
    task_seed: int = 0  # draws the episodes
    budget: int = Field(200, ge=1)  # environment steps
    # policies of the heads that play the same goal episodes alone, beside the search
    policies: tuple[PolicyName, ...] = ()
    # `demo` also runs the whole pipeline on an encoder that was never trained
    random_encoder_baseline: bool = False

    _once = field_validator("policies")(none_twice)


class AllEvaluationSettings(EvaluationSettings):
    """The same, and what `eval offsets` reads beside them, which `plan` does not."""

    # environment steps from start to goal, each a row; the budget is twice as many
    offsets: tuple[int, ...] = (25, 50, 100)

    @model_validator(mode="after")
    def _ahead(self) -> AllEvaluationSettings:
        if not self.offsets or min(self.offsets) < 1 or len(set(self.offsets)) < len(self.offsets):
            raise ValueError(
                f"offsets {list(self.offsets)}: give one or more numbers of steps from 1 on, none "
                "twice"
            )
        return self
