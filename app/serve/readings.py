"""Readings of the Prompt page that were saved beside the pack: texts and settings, by the hash of what they hold."""

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
    """Save a reading's texts and settings beside the pack; its name is the hash of its content."""
    content = {"texts": texts, "settings": settings, "made_with": made_with}
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    folder_of(folder).mkdir(exist_ok=True)
    write_json(folder_of(folder) / f"{name}.json", content)
    return name


def load(folder: Path, name: str) -> dict[str, Any]:
    """The texts and settings of a saved reading.

    Raises:
        PackError: there is no such reading beside this pack, or it cannot be read.
    """
    file = folder_of(folder) / f"{name}.json"
    if not re.fullmatch(r"[0-9a-f]{12}", name) or not file.exists():
        raise PackError(f"There is no saved reading {name!r} beside this pack.\n  Readings are saved in {folder_of(folder)}")
    reading = read_typed(file, _Reading, PackError, "Remove it.")
    return {"texts": reading.texts[:2], "settings": reading.settings}


@dataclass(frozen=True)
class _Reading:
    texts: list[str]
    settings: dict[str, Any]


def saved(folder: Path, most: int = 20) -> list[tuple[str, str]]:
    """(name, beginning of the text) of the saved readings, newest first."""
    files = (
        sorted(folder_of(folder).glob("*.json"), key=lambda f: -f.stat().st_mtime)[:most] if folder_of(folder).is_dir() else []
    )
    readings = []
    for file in files:
        with suppress(PackError):
            readings.append((file.stem, show_line(" / ".join(load(folder, file.stem)["texts"]))))
    return readings


def folder_of(pack: Path) -> Path:
    """Where readings are saved: beside the pack, whose own files are never changed."""
    return beside(pack, ".prompts")
