"""Processes that are killed, forked from a server that has imported what they need: each starts at once."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

_IMPORTED = ["tests.activations.processes", "tests.training.processes_child", "tests.training.children"]


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def forked(target: Callable, *arguments: Any) -> BaseProcess:
    """A process at work."""
    process = server().Process(target=target, args=arguments)
    process.start()
    return process


def code(process: BaseProcess, patience: float = 120) -> int | None:
    """How it ended, once it has: the negative number of the signal that killed it, or what it returned."""
    process.join(patience)
    return process.exitcode
