"""The callback by which long work reports its progress."""

from collections.abc import Callable
from typing import Any

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called as (units done, units in total, numbers to show beside them)."""


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
