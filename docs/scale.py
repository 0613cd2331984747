"""Writes docs/scale.md: what a run on many GPUs needs, computed from the sizes below; `python
docs/scale.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from jepa_wm.config import Config, load_config
from jepa_wm.models.masks import draw_masks

BF16, FP32 = 2, 4  # bytes
GB = 1e9


VIT_G = "vjepa2_vitg16"  # V-JEPA 2's largest encoder at its main resolution


@dataclass(frozen=True)
class Machine:
    """What is assumed of it."""

    gpu_flops: float = 989e12  # dense bf16 of an H100
    utilisation: float = 0.45  # of it: the target of this project, not a measurement
    gpu_memory: float = 80 * GB
    link: float = 50 * GB  # bytes a second between nodes, for each GPU (400 Gbit/s)
    # Clips a second of a CPU core: 16 frames of 256 px from h264 with a key frame every 250.
    decode: float = 40.0
    clip_bytes: float = 0.35e6  # of h264 that are read for one clip
    disk: float = 2 * GB  # bytes a second that one node writes
    hours_between_failures: float = (
        50_000.0  # of one GPU with its share of a node, as in published runs on 16,000
    )
    restart_minutes: float = 6.0  # to notice, queue, start and load
    save_minutes: float = 10.0  # between checkpoints


@dataclass(frozen=True)
class Model:
    """Sizes that follow from a config: tokens of a clip, and of context and target for each mask
    type."""

    config: Config
    tokens: int
    masked: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: Config) -> Model:
        """With masks drawn for a few clips."""
        steps = config.data.num_frames // config.encoder.tubelet_size
        grid = config.data.image_size // config.encoder.patch_size
        generator, masked = torch.Generator().manual_seed(0), []
        for mask in draw_masks(config.jepa, (16, steps, grid), generator):
            masked.append((mask.context_ids.shape[1], mask.target_ids.shape[1]))
        return cls(config, steps * grid * grid, tuple(masked))

    @property
    def encoder(self) -> float:
        """Parameters."""
        e = self.config.encoder
        return (
            e.depth * (4 + 2 * e.mlp_ratio) * e.width**2
            + e.tubelet_size * 3 * e.patch_size**2 * e.width
        )

    @property
    def predictor(self) -> float:
        """Parameters."""
        p = self.config.jepa
        return p.depth * 12 * p.width**2 + 3 * self.config.encoder.width * p.width


def flops(model: Model) -> float:
    """Of one clip: the target forward, context and predictor forward and backward for each mask
    type."""
    e, p = model.config.encoder, model.config.jepa

    def blocks(count: float, depth: int, width: int, ratio: float) -> float:
        return depth * count * ((8 + 4 * ratio) * width**2 + 4 * count * width)

    total = blocks(model.tokens, e.depth, e.width, e.mlp_ratio)
    for kept, targets in model.masked:
        total += 3 * (
            blocks(kept, e.depth, e.width, e.mlp_ratio)
            + blocks(kept + targets, p.depth, p.width, 4)
        )
    return total


def memory(model: Model, gpus: int, *, recompute: bool) -> dict[str, float]:
    """Bytes on one GPU with everything sharded: what is kept, two gathered blocks, and the
    activations of its clips."""
    e, p = model.config.encoder, model.config.jepa
    trained, clips = model.encoder + model.predictor, model.config.train.pretrain.batch / gpus
    # Kept of a block for the backward pass, in bf16 with fused attention: its input alone, or what
    # its layers need.
    full, narrow = 8 + 2 * e.mlp_ratio, 16.0
    each = sum((1.0 if recompute else full) * kept * e.width * e.depth for kept, _ in model.masked)
    each += sum(
        (1.0 if recompute else narrow) * (kept + targets) * p.width * p.depth
        for kept, targets in model.masked
    )
    if recompute:  # of the one block that is being computed again
        each += max(kept for kept, _ in model.masked) * e.width * full
    return {
        "weights, gradients, moments, target": (trained * 4 * FP32 + model.encoder * FP32) / gpus,
        "two gathered blocks": 2 * model.encoder / e.depth * (BF16 + FP32),
        "activations": clips * each * BF16,
    }


def communication(model: Model) -> float:
    """Bytes each GPU sends a step: trained weights are gathered for the forward and the backward
    pass of each mask type, the target's once, in bf16; gradients are reduced in fp32."""
    trained = model.encoder + model.predictor
    return trained * (2 * len(model.masked) * BF16 + FP32) + model.encoder * BF16


def rows(model: Model, machine: Machine, gpus: int) -> list[tuple[str, str]]:
    """What a run on so many GPUs needs."""
    batch, steps = model.config.train.pretrain.batch, model.config.train.pretrain.steps
    compute = batch / gpus * flops(model) / (machine.gpu_flops * machine.utilisation)
    sent = communication(model)
    step = max(compute, sent / machine.link)
    checkpoint = (model.encoder + model.predictor) * 3 * FP32 + model.encoder * FP32
    failures = gpus * 24 / machine.hours_between_failures
    lost = failures * (machine.restart_minutes + machine.save_minutes / 2) / 1440
    needs = [("clips a GPU and step", f"{batch / gpus:.0f}")]
    for recompute in (False, True):
        parts = memory(model, gpus, recompute=recompute)
        total, how = sum(parts.values()), "recomputed" if recompute else "kept"
        fits = "fits" if total < 0.9 * machine.gpu_memory else "does not fit"
        needs += [(f"GB a GPU, activations {how}", f"{total / GB:.1f}: {fits}")]
        needs += [
            (f"of it {name}", f"{size / GB:.2f}")
            for name, size in parts.items()
            if recompute or name == "activations"
        ]
    return [
        *needs,
        ("seconds a step, computing", f"{compute:.2f}"),
        ("GB sent by a GPU a step", f"{sent / GB:.1f}"),
        ("seconds a step, sending", f"{sent / machine.link:.2f}"),
        ("what limits a step", "computing" if step == compute else "the link"),
        ("days for all steps", f"{steps * step / 86400:.1f}"),
        ("CPU cores a GPU for decoding", f"{batch / gpus / step / machine.decode:.1f}"),
        ("GB a second read from storage", f"{batch / step * machine.clip_bytes / GB:.1f}"),
        ("GB of a checkpoint", f"{checkpoint / GB:.1f}"),
        ("seconds to write it, from one node", f"{checkpoint / machine.disk:.0f}"),
        ("failures a day", f"{failures:.2f}"),
        ("share of the time lost to them", f"{lost:.2%}"),
    ]


def page(model: Model, machine: Machine) -> str:
    """The whole text."""
    few, many = (rows(model, machine, gpus) for gpus in (128, 1024))
    table = "\n".join(
        f"| {name} | {value} | {other} |"
        for (name, value), (_, other) in zip(few, many, strict=True)
    )
    kept = " or ".join(str(kept) for kept, _ in model.masked)
    assumed = "\n".join(f"| `{name}` | {value:g} |" for name, value in vars(machine).items())
    return f"""# A ViT-g run, on paper

Computed by `python docs/scale.py` from `configs/{VIT_G}.yaml`, without its cooldown; nothing here
was measured on such a machine.

The encoder has {model.encoder / 1e9:.2f} billion parameters, the predictor
{model.predictor / 1e6:.0f} million; a clip has {model.tokens} tokens, of which masks leave {kept}
in view, and costs {flops(model) / 1e12:.1f} TFLOP a step.

| | 128 GPUs | 1024 GPUs |
| --- | --- | --- |
{table}

What follows: the sharded state is small at either size, activations decide about memory. Where
few clips are left to a GPU the link limits a step, and more GPUs want a larger batch or sharding
within a node only. Decoding wants a few cores a GPU, or key frames closer together. One rank that
writes the whole checkpoint will do, as training does not wait for it; what failures cost is the
time between checkpoints and of starting again.

## Assumed

Sharding is over all GPUs (`train.parallel.fsdp`), one block gathered ahead of the one that
computes, communication hidden behind computing where it is the shorter; activations are counted
with fused attention; failures are independent.

| | |
| --- | --- |
{assumed}
"""


if __name__ == "__main__":
    text = page(Model.of(load_config(VIT_G)), Machine())
    (Path(__file__).parent / "scale.md").write_text(text, encoding="utf-8")
