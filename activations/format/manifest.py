"""What a recording is: the manifest says what it was made from, the journal which shards are finished.

manifest.json     written before the first shard; everything that must be equal for a run to continue this recording
journal.jsonl     one line per sealed shard, appended after the shard is on the disk under its name
shard-00000.h5    see shards.py; shard-00007-24.h5 is a last shard that holds only its first 24 contexts so far
open-00003.json   how far shard 3, which is being written, has come; gone when it is sealed
recording.lock    who writes, while somebody does

While several processes write there are more, see ranks.py; for a recording in an object store, see remote.py.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scope.activations.errors import RecordingError
from scope.activations.format.files import read_journal, read_json, write_json

FORMAT, VERSION = "activations", 2
WITH_ROLES = 3
"""The version of recordings that also store what each row is, since its token does not tell: patches of images, say."""
_OLD = 1  # its manifest has no checksum, and its sums are CRC-32
MANIFEST, JOURNAL, LOCK = "manifest.json", "journal.jsonl", "recording.lock"

_MADE_FROM = ("model", "tokenizer", "corpus")
_CONFIG = ("sites", "context", "shard_rows", "dtype", "seed", "exclude", "outlier_times")
_LAYOUT = ("widths", "packing")


@dataclass(frozen=True)
class Recorded:
    """A recording's manifest, the journal's entries in order, and how many bytes of the journal they fill."""

    manifest: dict
    entries: list[dict]
    journal_bytes: int

    @property
    def n_contexts(self) -> int:
        return self.entries[-1]["contexts"][1] if self.entries else 0

    @property
    def n_rows(self) -> int:
        return self.entries[-1]["rows"][1] if self.entries else 0

    @property
    def exhausted(self) -> bool:
        """Whether the corpus ended before the budget."""
        return bool(self.entries) and self.entries[-1]["exhausted"]


def read_recording(folder: Path) -> Recorded:
    """
    Raises:
        RecordingError: there is no recording, it is of another version, or manifest or journal are damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        there = "which does not exist" if not folder.exists() else "which has no manifest.json"
        raise RecordingError(f"There is no recording in {folder}, {there}.\n  To make one: scope harvest --out {folder}")
    manifest = read_json(path, checked=False)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RecordingError(f"{path} is not the manifest of a recording. Give the folder that `scope harvest` wrote.")
    if manifest.get("version") not in (_OLD, VERSION, WITH_ROLES):
        what = f"{folder} is a recording of version {manifest.get('version')}"
        raise RecordingError(f"{what}; this program reads versions {_OLD} to {WITH_ROLES}.")
    manifest = read_json(path, checked=manifest["version"] != _OLD)
    entries, good = read_journal(folder / JOURNAL)
    at = 0
    for entry in entries:
        if entry["contexts"][0] != at:
            raise RecordingError(f"{folder / JOURNAL} is damaged: contexts {at} to {entry['contexts'][0]} are missing.")
        at = entry["contexts"][1]
    return Recorded(manifest, entries, good)


def versions() -> dict[str, str]:
    """What computes: recorded, because rounding may differ between them."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "h5py", "transformers", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def must_continue(folder: Path, old: dict, new: dict) -> None:
    """Refuse to continue a recording that was made from something else, or in another form.

    Raises:
        RecordingError: names every difference, what is recorded and what was asked.
    """
    old, new = _identity(old), _identity(new, like=old)
    differences = [*_different_sites(old, new), *_differences("", old, new)]
    if differences:
        raise RecordingError(
            f"{folder} holds another recording; it differs from what is asked in:\n"
            + "".join(f"  {difference}\n" for difference in differences)
            + "  Ask for the same, or record into another folder."
        )


def continues(folder: Path, new: dict) -> bool:
    """Whether a recording of these things is there already, to be gone on with; False where a new one begins.

    Raises:
        RecordingError: another recording is there, or something else.
    """
    if not (folder / MANIFEST).exists():
        _refuse_strangers(folder)
        return False
    recorded = read_recording(folder)
    if not recorded.entries and not any(folder.glob("journal.rank*.jsonl")) and not is_of(recorded.manifest, new):
        return False  # nothing was recorded under the old one
    must_continue(folder, recorded.manifest, new)
    return True


def is_of(old: dict, new: dict) -> bool:
    """Whether two manifests are of one recording."""
    return _identity(old) == _identity(new, like=old)


def begin(folder: Path, new: dict) -> Recorded:
    """Write the manifest of a new recording, or check that it continues the one that is there.

    A larger budget, other versions of libraries and another batch size continue a recording; the manifest then says since which
    context (`continued`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not continues(folder, new):
        for path in folder.glob("open-*.json"):
            path.unlink()
        write_json(folder / MANIFEST, new)
        return Recorded(new, [], 0)
    recorded = read_recording(folder)
    old = recorded.manifest
    merged = old | {"config": old["config"] | {"tokens": max(old["config"]["tokens"], new["config"]["tokens"])}}
    made = {"versions": new["versions"], "batch_contexts": new["config"]["batch_contexts"]}
    last = {"versions": old["versions"], "batch_contexts": old["config"]["batch_contexts"]}
    for step in old.get("continued", []):
        last = {key: step[key] for key in last}
    if made != last and _has_work(recorded, new):
        merged["continued"] = [*old.get("continued", []), made | {"from_context": recorded.n_contexts}]
    if merged != old:
        write_json(folder / MANIFEST, merged)
    return Recorded(merged, recorded.entries, recorded.journal_bytes)


def contexts_for(tokens: int, context: int) -> int:
    """Whole contexts that hold a budget of tokens."""
    return -(-tokens // context)


def _has_work(recorded: Recorded, new: dict) -> bool:
    config = new["config"]
    return not recorded.exhausted and recorded.n_contexts < contexts_for(config["tokens"], config["context"])


def _refuse_strangers(folder: Path) -> None:
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    strangers = [name for name in names if not name.endswith(".lock") and not (MANIFEST in name and name.endswith(".tmp"))]
    if strangers:
        raise RecordingError(
            f"{folder} is no recording and not empty; it holds {', '.join(sorted(strangers)[:3])}.\n"
            "  Give a new folder to --out."
        )


def _identity(manifest: dict, like: dict | None = None) -> dict:
    """What must be equal. Of a setting that did not exist when the recording `like` began, nothing is asked."""
    config = [key for key in _CONFIG if key in (like or manifest)["config"]]
    made_from = {key: manifest[key] for key in _MADE_FROM}
    return made_from | {key: manifest["config"][key] for key in config} | {key: manifest["layout"][key] for key in _LAYOUT}


def _different_sites(old: dict, new: dict) -> list[str]:
    """How two identities differ in their sites, in one line; takes sites and widths out of both."""
    (was, widths), (asked, others) = ((made.pop("sites"), made.pop("widths")) for made in (old, new))
    if was == asked:
        return list(_differences("widths", widths, others))
    said = [f"sites: recorded {len(was)}, asked {len(asked)}"]
    for what, sites, besides in (("not asked", was, asked), ("not recorded", asked, was)):
        missing = [site for site in sites if site not in besides]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        said += [f"{what}: {', '.join(missing[:3])}{more}"] if missing else []
    return ["; ".join(said)]


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield f"{name}: recorded {_short(old)}, asked {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
