"""The callback by which long work reports its progress."""

import time
from collections.abc import Callable
from typing import Any

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called as (units done, units in total, numbers to show beside them)."""

LATER = "seconds later"
"""Among the numbers of a progress: seconds that the work will take after this total, which are not shown."""


class Forecast:
    """How long work will still take, measured on its first seconds.

    `update` returns the seconds that are left, once: when `after` seconds have passed since the first unit was done (which
    is left out: it loads and compiles). A total that changes begins another part, with a forecast of its own; a forecast
    that turns out less than half of the truth is corrected.
    """

    def __init__(self, after: float = 8.0, clock: Callable[[], float] = time.monotonic):
        self.after, self.clock = after, clock
        self.total: int | None = None

    def update(self, done: int, total: int) -> float | None:
        now = self.clock()
        if total != self.total:
            self.total, self.first, self.begun, self.end = total, done, now, None
            return None
        elapsed = now - self.begun
        if done <= self.first or elapsed < self.after:
            return None
        left = elapsed / (done - self.first) * (total - done)
        if self.end is not None and now + left - self.begun <= 2 * (self.end - self.begun):
            return None
        self.end = now + left
        return left


def size(nbytes: float) -> str:
    """Bytes for people: 302 MB, 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.0f} TB" if nbytes >= 10 else f"{nbytes:.1f} TB"


def duration(seconds: float) -> str:
    """Time for people: 40 s, 5 min, 3 h 20 min, 2 days 4 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
