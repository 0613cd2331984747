"""What the command line does, by name: each command, evaluation, bench and tool with the function
that does it."""

from __future__ import annotations

# command -> the function that does it, `run(run: Run) -> dict`, and its line in the help
COMMANDS = {
    "demo": (
        "jepa_wm.demo:run",
        "the whole pipeline in minutes: collect, learn to see, learn to act, plan, report",
    ),
    "collect": (
        "jepa_wm.worlds.collect:run",
        "let a policy explore the world and store the trajectories",
    ),
    "pretrain": (
        "jepa_wm.training.pretrain:run",
        "learn to see: masked latent prediction, no labels, no decoder",
    ),
    "features": (
        "jepa_wm.features.cache:run",
        "freeze the encoder and compute the features of all frames once",
    ),
    "dynamics": ("jepa_wm.training.dynamics:run", "learn what actions do to the frozen features"),
    "heads": (
        "jepa_wm.training.heads:run",
        "learn rewards, ends, states and a policy from the columns there are",
    ),
    "plan": (
        "jepa_wm.evals.goal_reaching:run",
        "reach goal images by planning in imagination; success with intervals",
    ),
    "report": ("jepa_wm.report.report:run", "one HTML page: curves, GIFs, tables"),
}
# command -> what does one shard of its work, `shard(run, k, n) -> dict`, for the command itself to find
# and finish
SHARDS = {
    "features": "jepa_wm.features.cache:encode_shard",
    "plan": "jepa_wm.evals.goal_reaching:play_shard",
}
# bench -> `run(config, quick=...) -> dict`; they need no run folder
BENCHES = {name: f"jepa_wm.evals.bench.{name}:run" for name in ("plan", "data", "train")}
EVALS = {
    **{
        name: f"jepa_wm.evals.{name}:run" for name in ("planning", "rollout", "collapse", "parity")
    },
    **{
        name: f"jepa_wm.evals.probes:{name}" for name in ("linear", "attentive", "knn", "state")
    },
}
# evaluations of files instead of a run -> the files, which `run(weights=Path, ...)` is given by
# these names
FILES = {
    "parity": {
        "weights": "a released V-JEPA 2 pretraining file",
        "ac": "one with the action-conditioned predictor",
        "io": "safetensors with inputs and the outputs of the public code",
    }
}
# tool -> its module (`add_arguments(parser)`, `run(arguments) -> dict`, `lines(result)`) and its
# line in the help
TOOLS = {
    "convert": (
        "jepa_wm.data.convert",
        "trajectories of another format as the HDF5 that data.path takes",
    ),
    "pack": ("jepa_wm.data.pack", "videos and images as tar shards with an index, for large sets"),
    "inspect": (
        "jepa_wm.data.inspect",
        "what is in a set of trajectories or videos, and what is broken there",
    ),
    "compare": (
        "jepa_wm.evals.statistics",
        "success or return over training seeds and tasks, and what methods differ by",
    ),
    "launch": ("jepa_wm.launch.command", "a command as a job: here, under torchrun or on SLURM"),
}
# commands that several ranks do as one job
TOGETHER = ("pretrain", "dynamics", "heads")
