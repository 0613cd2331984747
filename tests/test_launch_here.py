"""Jobs on this machine: the same verb as a job, ranks that die, what the snapshot holds, shares of work, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ranks import CURVES, alone, assert_equal_to_rounding, overrides  # noqa: F401  (alone is a fixture)

from jepa_wm import cli
from jepa_wm.core.config import load_config
from jepa_wm.core.run import RunFolder
from jepa_wm.freeze.cache import Features
from jepa_wm.observe.datasets import open_data

SPOIL = """
import os, signal, sys
from jepa_wm.train import loop
original = loop._one_step
def one_step(task, optimiser, settings, step):
    if step == 3 and os.environ["RANK"] == "1":
        {}
    return original(task, optimiser, settings, step)
loop._one_step = one_step
"""


def launch(*words, code=0, timeout=100, env=()):
    done = subprocess.run(
        [sys.executable, "-m", "jepa_wm", "launch", *map(str, words)], capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(env)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def record_of(folder):
    (record,) = (path for path in (folder / "launch").iterdir() if path.is_dir())
    return record


@pytest.mark.parametrize("cluster", ["local", "torchrun"])
def test_two_ranks_as_a_job_train_what_one_process_does(tmp_path, alone, tiny_data, cluster):  # noqa: F811
    folder = tmp_path / "run"
    words = ["--config", "debug", "--run", folder, "--cluster", cluster, "--tasks-per-node", 2, *overrides(tiny_data)]
    done = launch("pretrain", *words, "--json")
    assert json.loads(done.stdout)["jobs"][0]["state"] == "COMPLETED"
    assert_equal_to_rounding(folder, alone, curves=CURVES[:1])
    record = record_of(folder)
    assert {"code", "config.yaml", "git.json", "git.diff", "job.json", "log"} <= {path.name for path in record.iterdir()}
    assert (record / "code/jepa_wm/evals/planning.py").exists() and (record / "code/jepa_wm/configs/debug.yaml").exists()
    assert "pretrain: done" in (record / "log/0.log").read_text()
