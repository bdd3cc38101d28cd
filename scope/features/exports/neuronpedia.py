"""Neuronpedia's format: the files of a source as they lie in its public bucket, s3://neuronpedia-datasets/v1.

The admin panel of a Neuronpedia downloads from that bucket and takes no folder from a disk. To show a source there, its makers
are asked to put the folder into the bucket; an instance of one's own may be pointed at another bucket, by DATASET_BUCKET in its
apps/webapp/lib/utils/s3.ts. The fields are columns of its database, of which the lines hold no others (prisma/schema.prisma).

OUT/MODEL/SOURCE/   release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl         a line each
    features/batch-0.jsonl.gz      a line a latent: densities, histograms, promoted and suppressed tokens, neighbours
    activations/batch-0.jsonl.gz   a line an example: the strongest, and some of each strength band
    explanations/batch-0.jsonl.gz  a line a label that a person or a model gave; those from token statistics stay here

A source is called LAYER-SET, e.g. 20-gemmascope-res-16k. Random firings, near misses and co-firing have no place there.
"""

import gzip
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from scope.errors import PackError
from scope.features.exports.histograms import bars, logit_bars
from scope.features.exports.tables import plain
from scope.features.pack.data import PackData
from scope.features.pack.feature import Example, Feature
from scope.features.pack.table import BY_OUTPUT, BY_TOKENS
from scope.progress import OnProgress
from scope.provenance import without_folders
from scope.typed_json import plain_name
from scope.whole_files import write_whole

BATCH = 1024
"""Latents a file."""

CREATOR = "clkht01d40000jv08hvalcvly"
"""Neuronpedia's user for what comes from outside; an importing server replaces it by its own."""

_ACTIVATION_KINDS = (("hook_resid", "res"), ("mlp", "mlp"), ("attn", "att"))


def neuronpedia_folder(
    pack: PackData, latents: list[int], out: Path, on_progress: OnProgress | None = None, name: str | None = None
) -> Path:
    """Write the folder and return that of the source. `name` is the set's; by default it says kind and width.

    Raises:
        PackError: the site belongs to no layer, or the name of the set or of the model cannot be part of a path.
    """
    layer = re.match(r"blocks\.(\d+)\.", pack.site)
    if not layer:
        raise PackError(f"Neuronpedia orders its sources by layer, and {pack.site} belongs to none.")
    name = name or _set_name(pack)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise PackError(f"{name!r} cannot be the name of a set: letters, digits, dots, dashes and underscores only.")
    model = plain_name(re.split(r"[/\\]", pack.model_name.rstrip("/\\"))[-1], pack.folder / "manifest.json", PackError)
    source = f"{layer[1]}-{name}"
    folder = out / model / source
    for part in ("features", "activations", "explanations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    _heads(pack, folder, model, source, name, now)
    labels = {i: label for i, label in pack.notes.labels().items() if label.source not in (BY_TOKENS, BY_OUTPUT)}
    owner = {"modelId": model, "layer": source}
    for number, start in enumerate(range(0, len(latents), BATCH)):
        rows: dict[str, list[dict]] = {"features": [], "activations": [], "explanations": []}
        for latent in latents[start : start + BATCH]:
            feature = Feature(latent, pack)
            which = {**owner, "index": str(latent)}
            rows["features"].append({**which, **_feature(feature, name, now)})
            rows["activations"] += [{**which, **row} for row in _activations(feature, f"{source}-{latent}", now)]
            if latent in labels:
                rows["explanations"].append({**which, **_explanation(labels[latent], f"{source}-{latent}", now)})
        for part, lines in rows.items():
            data = b"".join(map(_line, lines))
            write_whole(folder / part / f"batch-{number}.jsonl.gz", gzip.compress(data, 5, mtime=0))
        if on_progress:
            on_progress(min(start + BATCH, len(latents)), len(latents), {})
    return folder


def _set_name(pack: PackData) -> str:
    kind = next((short for part, short in _ACTIVATION_KINDS if part in pack.site), "site")
    width = f"{pack.d_sae // 1024}k" if pack.d_sae % 1024 == 0 else str(pack.d_sae)
    return f"scope-{kind}-{width}"


def _heads(pack: PackData, folder: Path, model: str, source: str, name: str, now: str) -> None:
    common = {"creatorId": CREATOR, "createdAt": now}
    title = f"{pack.title}, made with scope"
    heads = {
        "release": {"name": name, "description": title, "creatorName": "scope", "visibility": "PUBLIC", "urls": []},
        "model": {"id": model, "instruct": model.endswith("-it"), "displayName": model, "displayNameShort": model},
        "sourceset": {"modelId": model, "name": name, "description": title, "releaseName": name, "creatorName": "scope"},
        "source": {
            "id": source,
            "modelId": model,
            "setName": name,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "num_prompts": len(pack.contexts),
            "num_tokens_in_prompt": pack.n_ctx,
            "dataset": pack.manifest.corpus_name,
            "notes": f"weights {pack.dictionary.parameters_sha256}",
        },
    }
    heads["model"] |= {"owner": "", "layers": 0, "neuronsPerLayer": 0, "visibility": "PUBLIC", "updatedAt": now}
    heads["sourceset"] |= {"visibility": "PUBLIC", "hasDashboards": True, "type": "", "urls": []}
    for part, line in heads.items():
        write_whole(folder / f"{part}.jsonl", _line({**line, **common}))


def _line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON; its database takes no lone surrogates."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _feature(feature: Feature, name: str, now: str) -> dict[str, Any]:
    row, pack = feature.row, feature.pack
    values, heights = bars(*feature.histogram, float(row["max"]))
    logit_values, logit_heights = logit_bars(*(pack.relation(n)[feature.id] for n in ("logit_histogram", "logit_ends")))
    near = feature.neighbours
    return {
        "creatorId": CREATOR,
        "createdAt": now,
        "sourceSetName": name,
        "maxActApprox": round(float(row["max"]), 5),
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": round(float(row["max"]), 5),
        "hookName": pack.site,
        "topkCosSimIndices": [i for i, _ in near],
        "topkCosSimValues": [round(cos, 4) for _, cos in near],
        **{f"neuron_alignment_{part}": [] for part in ("indices", "values", "l1")},
        **{f"correlated_neurons_{part}": [] for part in ("indices", "pearson", "l1")},
        **{f"correlated_features_{part}": [] for part in ("indices", "pearson", "l1")},
        "neg_str": [token for token, _ in feature.suppressed],
        "neg_values": [round(logit, 4) for _, logit in feature.suppressed],
        "pos_str": [token for token, _ in feature.promoted],
        "pos_values": [round(logit, 4) for _, logit in feature.promoted],
        "frac_nonzero": float(row["density"]),
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": values,
        "logits_hist_data_bar_heights": logit_heights,
        "logits_hist_data_bar_values": logit_values,
        "decoder_weights_dist": [],
    }


def _activations(feature: Feature, key: str, now: str) -> list[dict[str, Any]]:
    """-1 in place of a band marks the strongest ones, as there."""
    if feature.dead:
        return []
    bands, n = {band["band"]: band for band in feature.bands}, max(feature.pack.n_tokens, 1)
    found = [(e, -1.0, feature.row["max"], -1.0) for e in feature.examples("top", 10_000)]
    for e in (e for e in feature.examples("bands", 10_000) if e.band in bands):
        band = bands[e.band]
        found.append((e, band["low"], band["high"], band["count"] / n))
    rows = []
    for nth, (example, low, high, share) in enumerate(found):
        ends = {"binMin": round(float(low), 5), "binMax": round(float(high), 5), "binContains": round(float(share), 8)}
        rows.append({"id": _id(f"{key}-{nth}"), **_example(example), **ends, "creatorId": CREATOR, "createdAt": now})
    return rows


def _example(example: Example) -> dict[str, Any]:
    values = [round(v, 4) for v in plain(example.acts)]
    return {
        "tokens": example.tokens,
        "values": values,
        "maxValue": max(values),
        "minValue": min(values),
        "maxValueTokenIndex": values.index(max(values)),
        "qualifyingTokenIndex": example.peak,
        "dataIndex": None,
        "dataSource": example.document,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
    }


def _explanation(label, key: str, now: str) -> dict[str, Any]:
    measure = "F1" if str(label.detail.get("measure", "")).startswith("F1") else "balanced accuracy"
    score = "" if label.score is None else f", {measure} {label.score:.3f}"
    by = without_folders(label.author)
    # Names of types and models would have to stand in tables of Neuronpedia's.
    about = {"description": label.text, "typeName": None, "explanationModelName": None, "notes": f"by {by}{score}"}
    return {"id": _id(f"{key}-label"), "authorId": CREATOR, "createdAt": now, **about}


def _id(key: str) -> str:
    """An identifier of the form that the database wants; the same latent's example keeps its own."""
    return "c" + hashlib.sha256(key.encode()).hexdigest()[:24]
