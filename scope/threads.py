"""The time for which the threads of one operation spin while they wait for each other, before they sleep.

An operation of PyTorch that runs on several threads ends when the last of them ends; the others spin until then, and until the
next operation. GNU's OpenMP, which PyTorch's wheels for Linux bring, lets a thread spin for some 20 ms, LLVM's and Intel's for
200 ms. On an idle machine this costs nothing. Beside other programs, the core on which one thread spins is the core for which
another thread of the same operation waits, and a training step on two threads takes two to ten times as long as on one.
"""

import os

SETTINGS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}
"""Turns of GNU's waiting loop (about 0.1 ms, longer than most pauses between two operations of a training step), and
milliseconds of LLVM's and Intel's. tests/benchmarks/README.md gives the times."""


def sleep_while_waiting() -> None:
    """Set `SETTINGS` in this process's environment, except where the user has set them or OMP_WAIT_POLICY.

    OpenMP reads them once, when torch is loaded. So they take effect if scope is imported before torch, and in every process
    that this one starts.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
