"""The folder of a pack, from what a person gives for it."""

from pathlib import Path


def pack_folder(folder: Path) -> Path:
    """The folder itself, or pack/ within it: `scope demo` and `scope app` are given the folder around the pack, too."""
    inner = folder / "pack"
    return inner if not (folder / "manifest.json").exists() and (inner / "manifest.json").exists() else folder
