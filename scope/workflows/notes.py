"""Notes beside the result of a workflow: remarks and plans, as plain text to whoever runs it."""

from collections.abc import Callable

OnNote = Callable[[str], None]
"""Called with a remark that a reader should see before believing the result."""


def silent(note: str) -> None:
    """Ignores a remark."""
