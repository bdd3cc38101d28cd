"""Readings of the Prompt page that were saved in the pack: texts and settings, by the hash of what they hold."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.app.kit.plain import show_line

from scope.errors import PackError
from scope.typed_json import read_typed
from scope.whole_files import beside, write_json

LONGEST = 1500
"""Most characters of a text that an address carries."""


def save(folder: Path, texts: list[str], settings: dict[str, Any], made_with: dict[str, Any]) -> str:
    """Save a reading's texts and settings in the pack; its name is the hash of its content."""
    content = {"texts": texts, "settings": settings, "made_with": made_with}
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    place = folders_of(folder)[0]
    place.mkdir(exist_ok=True)
    write_json(place / f"{name}.json", content)
    return name


def load(folder: Path, name: str) -> dict[str, Any]:
    """The texts and settings of a saved reading.

    Raises:
        PackError: there is no such reading in this pack, or it cannot be read.
    """
    files = [place / f"{name}.json" for place in folders_of(folder)]
    file = next((file for file in files if file.exists()), None) if re.fullmatch(r"[0-9a-f]{12}", name) else None
    if file is None:
        raise PackError(f"There is no saved reading {name!r} in this pack.\n  Readings are saved in {folders_of(folder)[0]}")
    reading = read_typed(file, _Reading, PackError, "Remove it.")
    return {"texts": reading.texts[:2], "settings": reading.settings}


@dataclass(frozen=True)
class _Reading:
    texts: list[str]
    settings: dict[str, Any]


def saved(folder: Path, most: int = 20) -> list[tuple[str, str]]:
    """(name, beginning of the text) of the saved readings, newest first."""
    every = [file for place in folders_of(folder) if place.is_dir() for file in place.glob("*.json")]
    files = sorted(every, key=lambda f: -f.stat().st_mtime)[:most]
    readings = []
    for file in files:
        with suppress(PackError):
            readings.append((file.stem, show_line(" / ".join(load(folder, file.stem)["texts"]))))
    return readings


def folders_of(pack: Path) -> tuple[Path, Path]:
    """(where readings are saved: in the pack, so that they move with it; where earlier versions did: beside it)."""
    return pack / "prompts", beside(pack, ".prompts")
