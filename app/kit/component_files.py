"""Reads the files of a component: its styles and scripts, with those that components share."""

from pathlib import Path

_KIT = Path(__file__).parent
_SHARED = ("meaning.css", "meaning.js", "shown_ahead.js", "typing.js")


def joined(folder: Path, *names: str) -> str:
    """The files of these names one after another; those that components share are in kit, wherever `folder` is."""
    return "".join(((_KIT if name in _SHARED else folder) / name).read_text(encoding="utf-8") for name in names)
