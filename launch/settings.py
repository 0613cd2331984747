"""Section of the config: where a job runs and what it asks of a cluster; none of it changes what a
run computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jepa_wm.core.settings import Section


class LaunchSettings(Section):
    """What `jepa-wm launch` asks for. Commands that several ranks do as one job take nodes x
    tasks_per_node of them."""

    cluster: Literal["local", "torchrun", "slurm"] = "local"
    nodes: int = Field(1, ge=1)
    tasks_per_node: int = Field(
        1, ge=1
    )  # ranks on a node, each with a GPU of its own where there are any
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_task: int = Field(
        0, ge=0
    )  # and CPU threads of a rank; 0: an even share here, one on slurm
    memory_gb: float | None = Field(None, gt=0)  # of a node; null: the cluster's default
    minutes: int = Field(
        60, ge=1
    )  # time limit; a job that meets it saves, goes back into the queue and goes on
    warning_seconds: int = Field(90, ge=1)  # before the limit, in which to save
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    array_parallelism: int = Field(256, ge=1)  # jobs of a sweep or of a split that run at a time
    setup: tuple[
        str, ...
    ] = ()  # shell lines before the job (modules to load, say); one that fails ends it
