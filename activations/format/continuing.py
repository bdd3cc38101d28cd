"""Checks that a folder's recording can be continued with new settings, and writes the manifest with which it is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scope.activations.errors import RecordingError
from scope.activations.format.files import write_json
from scope.activations.format.manifest import MANIFEST, Continued, Manifest, Recorded, read_recording

from scope.provenance import ModelId
from scope.typed_json import as_json

_CONFIG = ("sites", "context", "shard_rows", "dtype", "seed", "exclude", "outlier_times")


def must_continue(folder: Path, old: Manifest, new: Manifest) -> None:
    """Check that a recording can be continued with a manifest.

    Raises:
        RecordingError: they differ; the message lists every difference.
    """
    was, wanted = _identity(old), _identity(new, like=old)
    differences = [*_different_sites(was, wanted), *_differences("", was, wanted)]
    if differences:
        raise RecordingError(
            f"{folder} holds another recording; it differs from what is asked in:\n"
            + "".join(f"  {difference}\n" for difference in differences)
            + "  Ask for the same, or record into another folder."
        )


def continues(folder: Path, new: Manifest) -> bool:
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


def is_of(old: Manifest, new: Manifest) -> bool:
    """Whether two manifests describe the same recording."""
    return _identity(old) == _identity(new, like=old)


def begin(folder: Path, new: Manifest) -> Recorded:
    """Write the manifest of a new recording, or check that it continues the existing one.

    A larger budget, other versions of libraries and another batch size are allowed; the manifest then lists under "continued"
    since which context.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not continues(folder, new):
        for path in folder.glob("open-*.json"):
            path.unlink()
        write_json(folder / MANIFEST, new.to_json())
        return Recorded(new, [], 0)
    recorded = read_recording(folder)
    old = recorded.manifest
    merged = replace(old, config=replace(old.config, tokens=max(old.config.tokens, new.config.tokens)))
    last = old.continued[-1] if old.continued else None
    settings = (last.versions, last.batch_contexts) if last else (old.versions, old.config.batch_contexts)
    if settings != (new.versions, new.config.batch_contexts) and _has_work(recorded, new):
        batch, context = new.config.batch_contexts, recorded.n_contexts
        step = Continued(versions=new.versions, batch_contexts=batch, from_context=context)
        merged = replace(merged, continued=(*old.continued, step))
    if merged != old:
        write_json(folder / MANIFEST, merged.to_json())
    return replace(recorded, manifest=merged)


def contexts_for(tokens: int, context: int) -> int:
    """Number of contexts for a budget of tokens."""
    return -(-tokens // context)


def _has_work(recorded: Recorded, new: Manifest) -> bool:
    return not recorded.exhausted and recorded.n_contexts < contexts_for(new.config.tokens, new.config.context)


def _refuse_other_files(folder: Path) -> None:
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    ours = (".lock", ".lock.soft")
    others = [name for name in names if not name.endswith(ours) and not (MANIFEST in name and name.endswith(".tmp"))]
    if others:
        raise RecordingError(
            f"{folder} is no recording and not empty; it holds {', '.join(sorted(others)[:3])}.\n  Give a new folder to --out."
        )


def _identity(manifest: Manifest, like: Manifest | None = None) -> dict[str, Any]:
    """The entries that must be equal. Settings that the recording `like` does not have are left out."""
    known = {key: getattr(manifest.config, key) for key in _CONFIG}
    if (like or manifest).config.outlier_times is None:
        del known["outlier_times"]
    config = as_json(known)
    model = {key: value for key, value in manifest.model.items() if key != "weights_sampled"}
    recorded = ModelId.of(like.model if like else None)
    if recorded.same_weights(ModelId.of(manifest.model)):  # by the rule of the version that recorded them
        model["weights_sha256"] = recorded.weights_sha256
    made_from = {"model": model, "tokenizer": manifest.tokenizer, "corpus": manifest.corpus}
    return made_from | config | {"widths": manifest.layout.widths, "packing": manifest.layout.packing}


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
