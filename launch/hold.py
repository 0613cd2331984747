"""Run Python with SIGUSR2 held back until the job can answer it: `python hold.py ARGUMENT ...`.

SLURM may warn of a time limit, or of preemption, while a job still imports; the signal's default
is to kill. A blocked signal stays pending over exec and the imports until `release`.
"""

import os
import signal
import sys

HELD = {signal.SIGUSR2}


def release() -> None:
    """Let the signal through, also one that came meanwhile: there is a handler now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
