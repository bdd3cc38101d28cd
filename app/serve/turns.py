"""Whose turn it is with the model: one at a time, in the order of asking, and everybody may leave the queue."""

from threading import Condition, Thread, current_thread


class Turns:
    """A fair lock that says who waits. One thread may take its turn within its own turn."""

    def __init__(self):
        self._changed = Condition()
        self._queue: list[tuple[Thread, object]] = []  # the first of them has the turn

    def ask(self) -> object:
        """A place at the end of the queue, to be given back by `leave`; at its head for the thread whose turn it is."""
        with self._changed:
            ticket, me = object(), current_thread()
            place = 0 if self._queue and self._queue[0][0] is me else len(self._queue)
            self._queue.insert(place, (me, ticket))
            return ticket

    def before(self, ticket: object, wait: float = 0.0) -> int:
        """How many are before this ticket: 0 means that it is its turn. Waits up to `wait` seconds for that."""
        with self._changed:
            self._changed.wait_for(lambda: self._place(ticket) == 0, wait)
            return self._place(ticket)

    def leave(self, ticket: object) -> None:
        """Give back a ticket, whether its turn had come or not."""
        with self._changed:
            self._queue = [(who, other) for who, other in self._queue if other is not ticket]
            self._changed.notify_all()

    def acquire(self, timeout: float = -1) -> bool:
        """As a lock's: wait for a turn, for so many seconds or for ever; whether it came. Give it back from the same thread."""
        ticket = self.ask()
        while self.before(ticket, timeout if timeout >= 0 else 60.0):
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
