"""The manifest of a pack: read and checked when a pack is opened, with the way out where it cannot be."""

import gzip
import json
from pathlib import Path
from typing import Any

from scope.errors import PackError
from scope.features.pack.format import SCHEMA
from scope.progress import OnProgress
from scope.provenance import DictionaryId
from scope.versions import version_of
from scope.whole_files import file_sha256


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pack whose files are there, of the right size and of this schema.

    Raises:
        PackError: no pack, a pack being built, damage, or another schema; each with the way out.
    """
    file = folder / "manifest.json"
    if not file.exists():
        raise PackError(_missing(folder))
    try:
        manifest = json.loads(file.read_text())
        schema, files = manifest["schema"], manifest["files"]
    except (ValueError, KeyError, TypeError):
        raise PackError(f"{file} is damaged. Make the pack again: scope features DICTIONARY --out {folder}") from None
    if schema != SCHEMA:
        raise PackError(_other_schema(folder, manifest))
    for name, stated in files.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else None
        if found != stated["size"]:
            what = "is missing" if found is None else f"has {found:,} bytes; the manifest says {stated['size']:,}"
            raise PackError(
                f"{folder / name} {what}. The pack is damaged or half copied.\n"
                f"  Copy it again, or make it again: scope features DICTIONARY --out {folder}"
            )
    return manifest


def _other_schema(folder: Path, manifest: dict[str, Any]) -> str:
    """An older pack is made again; a newer one wants a newer program, and to make it again with this one would lose it."""
    schema, made = manifest["schema"], manifest.get("made")
    by = made.get("scope") if isinstance(made, dict) else None
    text = f"schema {schema}{f', written by scope {by}' if by else ''}; scope {version_of()} here reads schema {SCHEMA}."
    if isinstance(schema, int) and schema > SCHEMA:
        return (
            f"{folder} is newer than this program: {text}\n"
            f"  Open it with {f'scope {by}' if by else 'a newer scope'} or later,\n"
            f"  or make one of your own beside it: scope features DICTIONARY --out {folder}-{SCHEMA}"
        )
    return f"{folder} is older than this program: {text}\n  Make it again: scope features DICTIONARY --out {folder}"


def _missing(folder: Path) -> str:
    building = folder.with_name(folder.name + ".building") / "build.json"
    if building.exists():
        try:
            state = json.loads(building.read_text())
            text = f"{state['done']:,} of {state['total']:,} tokens"
        except (ValueError, KeyError, TypeError):
            text = "just begun"
        return (
            f"{folder} is being built, or its building was stopped ({text}).\n"
            "  Wait for it, or give the same `scope features` command again to go on where it stopped."
        )
    what = "is no feature pack: it has no manifest.json" if folder.exists() else "does not exist"
    return f"{folder} {what}.\n  To make a pack: scope features DICTIONARY --recording RECORDING --out {folder}"


def verify(folder: Path, on_progress: OnProgress | None = None) -> list[str]:
    """Names of files whose bytes are not those that were written; empty when all is well."""
    files, bad = read_manifest(folder)["files"], []
    for done, (name, stated) in enumerate(files.items(), 1):
        if file_sha256(folder / name) != stated["sha256"]:
            bad.append(name)
        if on_progress:
            on_progress(done, len(files), {})
    return bad


def load_json(file: Path) -> Any:
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return json.loads(raw.decode("utf-8", "surrogatepass"))
    except (ValueError, OSError, EOFError) as error:
        raise PackError(f"{file} is damaged and cannot be read: {error}. Copy the pack again or make it again.") from None


def owner_of(manifest: dict[str, Any]) -> str:
    """The hash of the dictionary that a pack shows: what its notes belong to."""
    dictionary = DictionaryId.of(manifest["dictionary"])
    return str(dictionary.parameters_sha256 or dictionary.weights_sha256)
