"""Starts the ranks of one training as processes of their own, as a launcher does; for tests."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from jepa_wm import cli

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["jepa_wm.train.pretrain", "jepa_wm.train.dynamics", "torch.utils.tensorboard"])


def run_ranks(size, words, meeting, *, log=None, stop_at=None):
    """Run `jepa-wm <words>` on `size` ranks that meet by the file `meeting`; returns their exit codes.

    At training step `stop_at` the last rank, and only that one, gets a SIGUSR2.
    """
    shared = (size, words, meeting, log, stop_at)
    processes = [context.Process(target=_rank, args=(rank, *shared)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _rank(rank, size, words, meeting, log, stop_at):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ["JEPA_WM_RENDEZVOUS"] = str(meeting)
    if log is not None:
        said = os.open(Path(log).with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
    import torch

    torch.set_num_threads(1)
    if stop_at is not None and rank == size - 1:
        from jepa_wm.train import loop

        one_step = loop._one_step

        def stopping(task, optimiser, settings, step):
            if step == stop_at:
                signal.raise_signal(signal.SIGUSR2)
            return one_step(task, optimiser, settings, step)

        loop._one_step = stopping
    sys.exit(cli.main(words))
