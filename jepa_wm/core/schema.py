"""Every setting of a run, typed and checked; sections carry the names of the rooms that read them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Unknown keys are refused; a section never changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


# ---------------------------------------------------------------- worlds


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
    """How strong each distraction is, in units where an image spans -1..1; all zero means a clean world."""

    brightness: float = 0.0  # per-frame gain is 1 + brightness * normal
    pixel: float = 0.0  # standard deviation, independent for each pixel and channel
    blotches: float = 0.0  # standard deviation of the low-frequency coloured pattern
    wavelength: tuple[float, float] = (16.0, 64.0)  # px, range of the waves in the pattern
    drift: float = 0.2  # rad per step, spread of each wave's steady motion
    wander: float = 0.7  # rad per step, random part of each wave's motion

    @property
    def any(self) -> bool:
        return self.brightness > 0 or self.pixel > 0 or self.blotches > 0


class Worlds(Section):
    """The simulator, and the wandering policy that collects data in it."""

    name: Literal["two_rooms"] = "two_rooms"
    geometry: Geometry = Geometry()
    noise: NoiseLevels = NoiseLevels()
    cross: float = Field(0.5, ge=0, le=1)  # share of the wanderer's legs that lead through the door
    drift: float = Field(0.3, ge=0, le=1)  # share of legs that follow a drifting heading instead of a target


# ---------------------------------------------------------------- observe, encode, predict, freeze


class Observe(Section):
    """The data set that `collect` makes, and clips drawn from it."""

    path: str | None = None  # a folder with train.h5 and heldout.h5 made elsewhere; null: `collect` makes them
    episodes: int = Field(1500, ge=1)
    length: int = Field(91, ge=2)  # frames in an episode
    heldout_episodes: int = Field(100, ge=1)
    heldout_length: int = Field(181, ge=2)
    image_size: int = 64  # px, side of what the encoder sees; frames are cut or resized to it
    frames: int = Field(8, ge=1)  # in a pretraining clip
    gaps: tuple[int, ...] = (3, 4, 5)  # environment steps between the frames of a clip, drawn per clip


class Encode(Section):
    """The vision transformer."""

    patch: int = 8
    tubelet: int = Field(1, ge=1)
    width: int = 128
    depth: int = Field(4, ge=1)
    heads: int = Field(2, ge=1)
    channels: int = 3
    attend: Literal["clip", "frame"] = "frame"  # what a token sees: the whole clip, or only its own frame
    rope_base: float = 100.0
    locality: float = 1.5  # initial query and key bias; 0: attention starts out blind to distance

    @model_validator(mode="after")
    def _fits(self) -> Encode:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        return self


class BlockMask(Section):
    """`blocks` boxes of `scale` of a frame's area and `aspect` (height / width) over `time` of the clip's length.

    scale .15 x 8 blocks and .7 x 2 blocks over the full length are V-JEPA's short and long range masks.
    time 1.0 hides a tube; less hides a stretch at a random place. scale 1.0 hides whole frames.
    """

    blocks: int = Field(8, ge=1)
    scale: tuple[float, float] = (0.15, 0.15)
    aspect: tuple[float, float] = (0.75, 1.5)
    time: tuple[float, float] = (1.0, 1.0)
    least_seen: float = Field(0.125, ge=0, lt=1)  # share of tokens left visible even where boxes cover all


class Targets(Section):
    """What the predictor has to guess: the target encoder's tokens, and how they differ from another moment.

    With `centre`, each position's mean over the batch is removed first, so that a constant cannot be a target.
    """

    centre: bool = True
    stay: float = Field(1.0, ge=0)  # weight of the plain token, absolute error
    move: float = Field(1.0, ge=0)  # weight of its change against far frames of the same episode, squared error
    far: int = Field(1, ge=0)  # far frames a clip; the context never sees them
    apart: int = Field(25, ge=1)  # environment steps between the clip and a far frame, at least

    @model_validator(mode="after")
    def _fits(self) -> Targets:
        if self.move > 0 and self.far == 0:
            raise ValueError("move > 0 needs far >= 1: a change is measured against a frame the context never sees")
        return self


class Predict(Section):
    """The predictor, what it sees, what it must guess, and how the target encoder follows."""

    width: int = 64
    depth: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    locality: float = 1.5
    masks: tuple[BlockMask, ...] = (BlockMask(blocks=1, scale=(1.0, 1.0), aspect=(1.0, 1.0), time=(0.5, 0.5)),)
    targets: Targets = Targets()
    contrast: float = Field(1.0, ge=0)  # weight of telling whole context frames apart, the regulariser
    most_targets: int = Field(0, ge=0)  # at most this many target tokens a clip, drawn at random; 0: all
    ema: tuple[float, float] = (0.99, 0.999)  # target encoder's momentum at the first and at the last step


class Freeze(Section):
    """The frozen eye's features on disk."""

    stride: int = Field(1, ge=1)  # every how many frames are encoded; must divide dynamics.frameskip
    samples: int = 4000  # frames whose mean and spread standardise the features


# ---------------------------------------------------------------- dynamics, imagine, plan, act


class Bottleneck(Section):
    """A label-free summary of a frame's tokens: what the dynamics and the planner work on."""

    slots: int = Field(1, ge=1)  # latent tokens a frame
    width: int = Field(128, ge=1)  # numbers a slot
    queries: int = Field(8, ge=1)  # attention queries that read the frozen tokens
    variance: float = 1.0  # weight: every number has at least unit spread over the batch
    covariance: float = 0.02  # weight: numbers are not copies of each other
    inverse: float = 3.0  # weight: the mean action is readable from two successive latents
    contrast: float = 1.0  # weight: a frame's successor can be told from the other frames of the window


class Metric(Section):
    """The learned steps-to-go metric: a quasimetric head on the latents."""

    groups: int = 16
    components: int = 16
    width: int = 256
    slack: float = 0.05  # by how much one observed step may exceed distance 1


class Dynamics(Section):
    """The action-conditioned predictor on frozen features."""

    frameskip: int = Field(5, ge=1)  # environment steps, and actions, between two latents
    window: int = Field(3, ge=1)  # frames a prediction sees
    width: int = 192
    depth: int = Field(3, ge=1)
    heads: int = Field(3, ge=1)
    bottleneck: Bottleneck | None = Bottleneck()  # null: all frozen tokens are the latent
    metric: Metric = Metric()


class Plan(Section):
    """The solver and what it minimises."""

    solver: Literal["cem", "mppi", "random"] = "cem"
    objective: Literal["metric", "l1", "l2", "cosine"] = "metric"
    compare: tuple[Literal["metric", "l1", "l2", "cosine"], ...] = ("l2",)  # objectives reported beside it
    steps: Literal["last", "all"] = "all"  # which imagined steps are compared with the goal
    horizon: int = Field(6, ge=1)  # model steps
    candidates: int = Field(128, ge=2)
    rounds: int = Field(6, ge=1)
    elites: int = Field(16, ge=1)
    std: float = 0.7  # first spread, as a share of the action box's half width
    min_std: float = 0.05
    temperature: float = 0.5  # MPPI only
    hold: bool = True  # one action is searched per model step and held for its `frameskip` environment steps
    execute: int = Field(1, ge=1)  # model steps executed before planning again


class Act(Section):
    """The closed loop's judgement: frozen tasks, budget and success rule."""

    task: Literal["two_rooms", "wall"] = "two_rooms"
    episodes: int = Field(100, ge=1)
    task_seed: int = 0  # names the frozen task file
    budget: int = Field(200, ge=1)  # environment steps
    radius: float = 4.5  # px
    strict_radius: float = 1.41  # px, reported beside
    random_encoder_floor: bool = False  # `demo` also runs the whole chain on an encoder that was never trained


# ---------------------------------------------------------------- train


class Optimiser(Section):
    """AdamW with warm-up and cosine decay, as functions of the step."""

    steps: int = Field(1000, ge=0)
    batch: int = Field(64, ge=1)
    lr: float = 1e-3
    warmup: int = Field(100, ge=0)
    final_lr: float = 0.1  # share of lr left at the last step
    weight_decay: float = 0.04  # on matrices; never on biases, norms and single vectors
    clip: float = 1.0  # largest gradient norm
    save_every: int = Field(250, ge=1)
    eval_every: int = Field(500, ge=1)


class Pretrain(Optimiser):
    probe_frames: int = 5000
    probe_steps: int = 400


class TrainDynamics(Optimiser):
    frames: int = Field(12, ge=2)  # in a training window
    rollout: float = 1.0  # weight of the multi-step rollout loss beside teacher forcing


class Train(Section):
    threads: int = Field(0, ge=0)  # of the CPU; 0: as many as there are cores
    precision: Literal["bf16", "fp32"] = "bf16"
    pretrain: Pretrain = Pretrain()
    dynamics: TrainDynamics = TrainDynamics(steps=800, batch=48, lr=2e-3, frames=10)
    metric: Optimiser = Optimiser(steps=1500, batch=512, lr=1e-3)


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
        if self.plan.elites > self.plan.candidates:
            raise ValueError(f"plan.elites {self.plan.elites} exceed plan.candidates {self.plan.candidates}")
        return self
