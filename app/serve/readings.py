"""Readings of the Prompt page that were saved beside the pack: texts and settings, by the hash of what they hold."""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from scope.app.kit.plain import show_line

from scope.errors import PackError

LONGEST = 1500
"""Characters of a text that stand in an address."""


def save(folder: Path, texts: list[str], settings: dict[str, Any], made_with: dict[str, Any]) -> str:
    """Keep a reading's texts and settings beside the pack; its name is the hash of what it holds."""
    held = {"texts": texts, "settings": settings, "made_with": made_with}
    name = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:12]
    place = runs(folder)
    place.mkdir(exist_ok=True)
    aside = place / f".{name}.writing"
    aside.write_text(json.dumps(held, indent=1))
    aside.rename(place / f"{name}.json")
    return name


def load(folder: Path, name: str) -> dict[str, Any]:
    """A run that was kept.

    Raises:
        PackError: no such run lies beside this pack, or it cannot be read.
    """
    file = runs(folder) / f"{name}.json"
    if not re.fullmatch(r"[0-9a-f]{12}", name) or not file.exists():
        raise PackError(f"No saved reading {name!r} lies beside this pack.\n  Readings are kept in {runs(folder)}")
    try:
        held = json.loads(file.read_text())
        return {"texts": [str(t) for t in held["texts"]][:2], "settings": dict(held["settings"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise PackError(f"{file} is damaged. Remove it.") from None


def saved(folder: Path, most: int = 20) -> list[tuple[str, str]]:
    """(name, beginning of the text) of the runs that were kept, newest first."""
    files = sorted(runs(folder).glob("*.json"), key=lambda f: -f.stat().st_mtime)[:most] if runs(folder).is_dir() else []
    found = []
    for file in files:
        with suppress(PackError):
            found.append((file.stem, show_line(" / ".join(load(folder, file.stem)["texts"]))))
    return found


def runs(folder: Path) -> Path:
    """Where readings are kept: beside the pack, which holds nothing that is not its own."""
    return folder.with_name(folder.name + ".prompts")
