"""Work that needs the model for longer than a moment: it waits for its turn like everybody, and tells how far it is.

A job runs in a thread of its own, so a click elsewhere neither ends nor blocks it: `stop` does, and, where it was told how to
ask, that its reader closed the page. Its result is its own affair to keep.
"""

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, Literal

from scope.app.serve.turns import Turns

PATIENCE = 10.0
"""Seconds without its reader after which a job ends: a page that is only loaded anew is back sooner."""
State = Literal["waiting", "running", "done", "failed", "cancelled"]


class Job:
    """Something to be done: `work(job)` gives the result. It looks at `stopping` often, and tells of itself in `told`."""

    def __init__(
        self, kind: str, work: Callable[["Job"], Any], turns: Turns, about: Any = None, here: Callable[[], bool] | None = None
    ):
        self.kind, self.about, self._work, self._turns = kind, about, work, turns
        self.state: State = "waiting"
        self.result: Any = None
        self.error: Exception | None = None
        self.told: dict[str, Any] = {}
        self._ticket: object = None
        self._here, self._seen = here, time.monotonic()
        self._stop, self._finished = Event(), Event()

    def start(self) -> "Job":
        """Get in line, and go on."""
        Thread(target=self._run, name=f"scope {self.kind}", daemon=True).start()
        return self

    @property
    def stopping(self) -> bool:
        if self._here is not None:
            now = time.monotonic()
            if self._here():
                self._seen = now
            elif now - self._seen > PATIENCE:
                self._stop.set()
        return self._stop.is_set()

    @property
    def active(self) -> bool:
        return not self._finished.is_set()

    @property
    def ahead(self) -> int:
        """How many have the model before it."""
        return self._turns.before(self._ticket) if self.state == "waiting" and self._ticket is not None else 0

    def stop(self) -> None:
        """Ask it to end. One that still waits is cancelled; one that runs keeps what it has."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it is finished, or as long as given; whether it is."""
        return self._finished.wait(seconds)

    def give_way(self) -> None:
        """Between two parts of long work: let those who wait have the model first. Comes back with it, or `stopping`."""
        self._turns.leave(self._ticket)
        self._ticket = self._turns.ask()
        self._until_turn()

    def _until_turn(self) -> None:
        self.state = "waiting"
        while not self.stopping and self._turns.before(self._ticket, wait=0.1):
            pass
        self.state = "running"

    def _run(self) -> None:
        self._ticket = self._turns.ask()
        try:
            self._until_turn()
            if self.stopping:
                self.state = "cancelled"
                return
            self.result = self._work(self)
            self.state = "done"
        except Exception as error:  # whatever it was, it is told on the page, and the next one gets its turn
            self.error, self.state = error, "failed"
        finally:
            self._turns.leave(self._ticket)
            self._finished.set()
