"""Goal tasks frozen in a file, and that they are none of what was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.held_out import check_same_cameras, common_episodes
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.worlds.collect import data_seeds
from jepa_wm.worlds.tasks import Episodes, Task
from jepa_wm.worlds.world import CollectSettings


def frozen_tasks(file: Path, task: Task, evaluation: EvaluationSettings) -> Episodes:
    """The episodes of the file, drawn and written now if it is not there; UserError where they are
    of another task or were drawn by other settings."""
    if not file.exists():
        task.sample(evaluation.episodes, evaluation.task_seed).save(file)
    episodes = Episodes.load(file)
    drawn = task.sample(1, episodes.seed)
    theirs, ours = ((each.name, each.plain_settings) for each in (episodes, drawn))
    if theirs != ours:
        raise UserError(
            f"{file}: its tasks are {theirs[0]} with {theirs[1]}, not {ours[0]} with {ours[1]}; "
            "plan in another --run, or delete the file and what was played of it"
        )
    return episodes


def refuse_seeds_of_data(
    seeds: np.ndarray, collect: CollectSettings, seed: int, evaluation: EvaluationSettings
) -> None:
    """UserError where episodes of a world without layouts have the seeds of the data's."""
    for taken in data_seeds(collect, seed).values():
        if len(np.intersect1d(seeds, taken)):
            raise UserError(
                f"evaluation.task_seed {evaluation.task_seed}: its episodes are in the "
                "data; choose another"
            )


def refuse_recording_of_data(train: Path, recording: Path) -> None:
    """UserError where goals are of a recording that has episodes of the training data, or shows
    other cameras."""
    if not train.exists():
        return
    data, goals = Trajectories(train), Trajectories(recording)
    check_same_cameras(data, goals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is refused here
        common = common_episodes(data, goals)
    if common:
        raise UserError(
            f"evaluation.task.path {recording}: {common} of its episodes are in {train}, which "
            "the model was trained on; name a held-out recording"
        )
