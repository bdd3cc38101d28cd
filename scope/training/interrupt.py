"""Ctrl-C and SIGTERM stop a training after the current step."""

import signal
import sys
import threading


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

    def leave(self) -> None:
        """Raise what the signal would have: KeyboardInterrupt, or SystemExit(143) for SIGTERM. Where another process was
        asked and not this one, as if it had been SIGTERM."""
        self._leave(self.asked or signal.SIGTERM)

    @staticmethod
    def _leave(number: int) -> None:
        if number == signal.SIGTERM:
            sys.exit(128 + number)
        raise KeyboardInterrupt
