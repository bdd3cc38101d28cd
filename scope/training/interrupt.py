"""Leaving in order: a signal is remembered until the step is done, and one folder belongs to one run at a time."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scope.errors import ConfigError


class Interrupt:
    """Within the block, Ctrl-C and SIGTERM only set `asked`; a second one stops at once. Outside the main thread it
    does nothing."""

    def __enter__(self) -> "Interrupt":
        self.asked: int | None = None
        self.before: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        if self.asked is not None:
            self._leave(number)
        self.asked = number

    def leave_if_asked(self) -> None:
        """Raise what the signal would have: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.asked is not None:
            self._leave(self.asked)

    @staticmethod
    def _leave(number: int) -> None:
        if number == signal.SIGTERM:
            sys.exit(128 + number)
        raise KeyboardInterrupt


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however that happens.

    Raises:
        ConfigError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    with open(folder / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"Another process is training in {folder}. Wait for it, or give another --out.") from None
        yield
