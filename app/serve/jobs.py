"""The queue for the model, one reader at a time, in the order of asking; and long work that runs in a thread of its own.

A click elsewhere on the page neither ends nor blocks a job. `stop` ends it, and so does its reader closing the page.
"""

import time
from collections.abc import Callable
from threading import Condition, Event, Thread, current_thread
from typing import Any, Literal

PATIENCE = 10.0
"""Seconds without its reader after which a job ends: a page that is only reloaded is back sooner."""
State = Literal["waiting", "running", "done", "failed", "cancelled"]


class ModelQueue:
    """A fair lock that knows who waits. A thread that has the turn may take another turn within it."""

    def __init__(self):
        self._changed = Condition()
        self._queue: list[tuple[Thread, object]] = []  # the first of them has the turn

    def join(self) -> object:
        """A ticket at the end of the queue; at its head for the thread whose turn it is. Give it back by `leave`."""
        with self._changed:
            ticket, me = object(), current_thread()
            place = 0 if self._queue and self._queue[0][0] is me else len(self._queue)
            self._queue.insert(place, (me, ticket))
            return ticket

    def ahead(self, ticket: object, wait: float = 0.0) -> int:
        """How many are ahead of this ticket; 0 means that it is its turn. Waits up to `wait` seconds for that."""
        with self._changed:
            self._changed.wait_for(lambda: self._place(ticket) == 0, wait)
            return self._place(ticket)

    def leave(self, ticket: object) -> None:
        """Give back a ticket, whether its turn had come or not."""
        with self._changed:
            self._queue = [(who, other) for who, other in self._queue if other is not ticket]
            self._changed.notify_all()

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for a turn as a lock does, for so many seconds or for ever; True if it came. Release it from the same thread."""
        ticket = self.join()
        while self.ahead(ticket, timeout if timeout >= 0 else 60.0):
            if timeout >= 0:
                self.leave(ticket)
                return False
        return True

    def release(self) -> None:
        """Give back the turn that this thread acquired last.

        Raises:
            RuntimeError: it has none.
        """
        with self._changed:
            if not self._queue or self._queue[0][0] is not current_thread():
                raise RuntimeError("release of a turn that this thread does not have")
            del self._queue[0]
            self._changed.notify_all()

    def _place(self, ticket: object) -> int:
        return next((i for i, (_, other) in enumerate(self._queue) if other is ticket), 0)


class Job:
    """`work(job)` gives the result. It checks `stopping` often and reports how far it is in `progress`.

    `reader_present` says whether the reader's page is still open; without it the job does not depend on a reader.
    """

    def __init__(
        self,
        kind: str,
        work: Callable[["Job"], Any],
        queue: ModelQueue,
        model: Any = None,
        reader_present: Callable[[], bool] | None = None,
    ):
        self.kind, self.model, self._work, self._queue = kind, model, work, queue
        self.state: State = "waiting"
        self.result: Any = None
        self.error: Exception | None = None
        self.progress: dict[str, Any] = {}
        self._ticket: object = None
        self._reader_present, self._last_seen = reader_present, time.monotonic()
        self._stop, self._finished = Event(), Event()

    def start(self) -> "Job":
        """Join the queue and run in a thread."""
        Thread(target=self._run, name=f"scope {self.kind}", daemon=True).start()
        return self

    @property
    def stopping(self) -> bool:
        if self._reader_present is not None:
            now = time.monotonic()
            if self._reader_present():
                self._last_seen = now
            elif now - self._last_seen > PATIENCE:
                self._stop.set()
        return self._stop.is_set()

    @property
    def active(self) -> bool:
        return not self._finished.is_set()

    @property
    def ahead(self) -> int:
        """How many have the model before this job."""
        return self._queue.ahead(self._ticket) if self.state == "waiting" and self._ticket is not None else 0

    def stop(self) -> None:
        """Ask the job to end. A waiting job is cancelled; a running job keeps what it has so far."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the job is finished, or for so many seconds; True if it is finished."""
        return self._finished.wait(seconds)

    def let_others_go_first(self) -> None:
        """Between two parts of long work: whoever waits gets the model first. Returns with the turn, or `stopping`."""
        self._queue.leave(self._ticket)
        self._ticket = self._queue.join()
        self._until_turn()

    def _until_turn(self) -> None:
        self.state = "waiting"
        while not self.stopping and self._queue.ahead(self._ticket, wait=0.1):
            pass
        self.state = "running"

    def _run(self) -> None:
        self._ticket = self._queue.join()
        try:
            self._until_turn()
            if self.stopping:
                self.state = "cancelled"
                return
            self.result = self._work(self)
            self.state = "done"
        except Exception as error:  # any error is shown on the page, and the next job gets its turn
            self.error, self.state = error, "failed"
        finally:
            self._queue.leave(self._ticket)
            self._finished.set()
