"""Reads the files of a component: its styles and scripts, with those that components share."""

from pathlib import Path

_KIT = Path(__file__).parent


def joined(folder: Path, *names: str) -> str:
    """The files of these names one after another; "meaning.css" and "meaning.js" are those of kit, wherever `folder` is."""
    return "".join(((_KIT if name.startswith("meaning.") else folder) / name).read_text(encoding="utf-8") for name in names)
