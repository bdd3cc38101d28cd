"""Manifest and journal of a recording: its origin and settings, and the finished shards.

manifest.json     written before the first shard; everything that must be equal to continue this recording
journal.jsonl     one line per finished shard, appended after the shard is synced and renamed
shard-00000.h5    see shard_writer.py; shard-00007-24.h5 is a last shard that holds only 24 contexts so far
open-00003.json   progress of shard 3 while it is being written
recording.lock    names the process that is writing

ranks.py describes the files of several writing processes, remote.py recordings in an object store.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scope.activations.errors import RecordingError
from scope.activations.format.files import read_journal, read_json, write_json

from scope.provenance import ModelId

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
    """A recording's manifest, the entries of its journal, and the number of journal bytes that they fill."""

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
        """Whether the corpus ended before the budget was reached."""
        return bool(self.entries) and self.entries[-1]["exhausted"]


def read_recording(folder: Path) -> Recorded:
    """Read manifest and journal.

    Raises:
        RecordingError: problem is no recording, it has an unknown version, or manifest or journal are damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        problem = "which does not exist" if not folder.exists() else "which has no manifest.json"
        raise RecordingError(f"There is no recording in {folder}, {problem}.\n  To make one: scope harvest --out {folder}")
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
    """Versions of Python and the libraries that compute, since rounding may differ between them."""
    numbers = {"python": platform.python_version()}
    for package in ("torch", "numpy", "h5py", "transformers", "tokenizers"):
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def must_continue(folder: Path, old: dict, new: dict) -> None:
    """Check that a recording can be continued with a manifest.

    Raises:
        RecordingError: they differ; the message lists every difference.
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
    """Whether the folder holds a recording that a new manifest continues; False if a new one can begin.

    Raises:
        RecordingError: the folder holds another recording, or other files.
    """
    if not (folder / MANIFEST).exists():
        _refuse_other_files(folder)
        return False
    recorded = read_recording(folder)
    if not recorded.entries and not any(folder.glob("journal.rank*.jsonl")) and not is_of(recorded.manifest, new):
        return False  # the old one holds no rows
    must_continue(folder, recorded.manifest, new)
    return True


def is_of(old: dict, new: dict) -> bool:
    """Whether two manifests describe the same recording."""
    return _identity(old) == _identity(new, like=old)


def begin(folder: Path, new: dict) -> Recorded:
    """Write the manifest of a new recording, or check that it continues the existing one.

    A larger budget, other versions of libraries and another batch size are allowed; the manifest then lists under "continued"
    since which context.
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
    settings = {"versions": new["versions"], "batch_contexts": new["config"]["batch_contexts"]}
    last = {"versions": old["versions"], "batch_contexts": old["config"]["batch_contexts"]}
    for step in old.get("continued", []):
        last = {key: step[key] for key in last}
    if settings != last and _has_work(recorded, new):
        merged["continued"] = [*old.get("continued", []), settings | {"from_context": recorded.n_contexts}]
    if merged != old:
        write_json(folder / MANIFEST, merged)
    return Recorded(merged, recorded.entries, recorded.journal_bytes)


def contexts_for(tokens: int, context: int) -> int:
    """Number of contexts for a budget of tokens."""
    return -(-tokens // context)


def _has_work(recorded: Recorded, new: dict) -> bool:
    config = new["config"]
    return not recorded.exhausted and recorded.n_contexts < contexts_for(config["tokens"], config["context"])


def _refuse_other_files(folder: Path) -> None:
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if not name.endswith(".lock") and not (MANIFEST in name and name.endswith(".tmp"))]
    if others:
        raise RecordingError(
            f"{folder} is no recording and not empty; it holds {', '.join(sorted(others)[:3])}.\n  Give a new folder to --out."
        )


def _identity(manifest: dict, like: dict | None = None) -> dict:
    """The entries that must be equal. Settings that the recording `like` does not have are left out."""
    config = [key for key in _CONFIG if key in (like or manifest)["config"]]
    made_from = {key: manifest[key] for key in _MADE_FROM}
    if isinstance(manifest["model"], dict):
        made_from["model"] = {key: value for key, value in manifest["model"].items() if key != "weights_sampled"}
        recorded = ModelId.of(like and like["model"])
        if recorded.same_weights(ModelId.of(manifest["model"])):  # by the rule of the version that recorded them
            made_from["model"]["weights_sha256"] = recorded.weights_sha256
    return made_from | {key: manifest["config"][key] for key in config} | {key: manifest["layout"][key] for key in _LAYOUT}


def _different_sites(old: dict, new: dict) -> list[str]:
    """One line about differing sites; removes sites and widths from both identities."""
    (was, widths), (wanted, other_widths) = ((made.pop("sites"), made.pop("widths")) for made in (old, new))
    if was == wanted:
        return list(_differences("widths", widths, other_widths))
    parts = [f"sites: recorded {len(was)}, asked {len(wanted)}"]
    for what, sites, besides in (("not asked", was, wanted), ("not recorded", wanted, was)):
        missing = [site for site in sites if site not in besides]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        parts += [f"{what}: {', '.join(missing[:3])}{more}"] if missing else []
    return ["; ".join(parts)]


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield f"{name}: recorded {_short(old)}, asked {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def without_missing(journal: list[dict]) -> tuple[list[dict], list[dict]]:
    """(entries of the shards that can be read, numbered without gaps; what the shards in quarantine held).

    A renumbered entry keeps its numbers in the whole recording under "whole".
    """
    if not any("quarantined" in entry for entry in journal):
        return journal, []
    kept, left_out, row, context = [], [], 0, 0
    for entry in journal:
        whole = {"rows": entry["rows"], "contexts": entry["contexts"]}
        if "quarantined" in entry:
            left_out.append({"shard": entry["shard"], **whole, "why": entry["quarantined"]["why"]})
            continue
        rows, contexts = (entry[key][1] - entry[key][0] for key in ("rows", "contexts"))
        kept.append(entry | {"rows": [row, row + rows], "contexts": [context, context + contexts], "whole": whole})
        row, context = row + rows, context + contexts
    return kept, left_out


def describe_missing(folder: Path, left_out: list[dict], n_rows: int) -> str:
    """A sentence about the shards that are missing from a recording with `n_rows` readable rows; empty if none is."""
    if not left_out:
        return ""
    rows = sum(hole["rows"][1] - hole["rows"][0] for hole in left_out)
    shards = ", ".join(str(hole["shard"]) for hole in left_out)
    noun, was, is_, it = ("shard", "was", "is", "it") if len(left_out) == 1 else ("shards", "were", "are", "them")
    return (
        f"{folder} is read without {rows:,} of {n_rows + rows:,} rows: {noun} {shards} {was} damaged and {is_} in quarantine. "
        f"The same `scope harvest` as before makes {it} again."
    )
