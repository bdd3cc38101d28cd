"""One latent as plain values: the content of the JSON export, from which the other formats are made."""

from pathlib import Path
from typing import Any

from scope.features.exports.tables import dumps, plain
from scope.features.pack.data import PackData
from scope.features.pack.feature import Example, Feature
from scope.features.pack.format import GROUPS
from scope.progress import OnProgress
from scope.provenance import without_folders

WHAT = "scope features"


def about(pack: PackData) -> dict[str, Any]:
    """Where the numbers come from: the pack's manifest but for its checksums and the folders of this machine."""
    written = {name: value for name, value in pack.manifest.as_written.items() if name != "files"}
    return {"made_from": WHAT, **without_folders(written)}


def described(feature: Feature) -> dict[str, Any]:
    """One latent: its row, histogram, bands, examples by group, output, relations, tokens, and what people said of it."""
    edges, counts = feature.histogram
    lit = counts.nonzero()[0]
    span = slice(int(lit[0]), int(lit[-1]) + 1) if len(lit) else slice(0, 0)
    notes = feature.pack.notes
    right, asked = notes.guessed(feature.id)
    by_role = [{name: plain(value) for name, value in row.items()} for row in feature.by_role]
    return {
        **{name: plain(value) for name, value in feature.row.items()},
        "flags": feature.flags,
        "histogram": {
            "edges": plain(edges[span.start : span.stop + 1]) if len(lit) else [],
            "counts": plain(counts[span]),
        },
        "bands": [{name: plain(value) for name, value in band.items()} for band in feature.bands],
        "promoted": _pairs(feature.promoted, "logit"),
        "suppressed": _pairs(feature.suppressed, "logit"),
        "measured": _pairs(feature.measured, "rise"),
        "neighbours": [{"id": i, "cos": plain(cos)} for i, cos in feature.neighbours],
        "co_firing": [{"id": j, "p": plain(p), "lift": plain(lift)} for j, p, lift in feature.co_firing],
        **({"by_role": by_role} if by_role else {}),
        "tokens": [{name: plain(value) for name, value in row.items()} for row in feature.tokens],
        "examples": {group: [example_of(e) for e in feature.examples(group, 10_000)] for group in GROUPS},
        "note": notes.note(feature.id),
        "guessed": {"right": right, "asked": asked},
    }


def example_of(example: Example) -> dict[str, Any]:
    return {
        "tokens": example.tokens,
        "ids": example.ids,
        "acts": [round(v, 5) for v in plain(example.acts)],
        "peak": example.peak,
        "value": plain(example.value),
        "band": example.band,
        "document": example.document,
        "context": example.context,
        "offset": example.offset,
    }


def _pairs(pairs: list[tuple[str, float]], name: str) -> list[dict[str, Any]]:
    return [{"token": token, name: plain(value)} for token, value in pairs]


def json_file(pack: PackData, latents: list[int], file: Path, on_progress: OnProgress | None = None) -> None:
    """{"about": the pack's manifest, "latents": [...]}, a latent a line, written one by one: no pack is too large for it."""
    with file.open("w", encoding="utf-8") as f:
        f.write(f'{{"about":{dumps(about(pack))},\n"latents":[\n')
        for done, latent in enumerate(latents, 1):
            f.write(dumps(described(Feature(latent, pack))) + (",\n" if done < len(latents) else "\n"))
            if on_progress:
                on_progress(done, len(latents), {})
        f.write("]}\n")
