"""How long work reports its progress."""

from collections.abc import Callable
from typing import Any

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called as (units done, units in total, numbers to show beside them)."""
