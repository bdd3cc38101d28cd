"""SAEDashboard's JSON: what `SaeVisData.load_json` reads, so that its own pages can be made of a pack.

Filled from the pack: activation and logit histograms, promoted and suppressed tokens, top examples and strength bands as
sequence groups, maxima, densities and quantiles. Left empty, because a pack does not hold it: correlated neurons and
features, ablation effects; the logit of each token of an example is NaN. Schema: sae-dashboard 0.8, `_SaeVisData`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from scope.features.exports.histograms import bars, logit_bars, quantiles
from scope.features.exports.tables import plain
from scope.features.pack.data import PackData
from scope.features.pack.feature import Example, Feature
from scope.progress import OnProgress

_RANGES = (([0.0, 0.95], 3), ([0.95, 0.99], 4), ([0.99, 1.0], 5))
"""Of the quantiles: from, to, and how many decimals apart, as SAEDashboard has them."""


def saedashboard_file(pack: PackData, latents: list[int], file: Path, on_progress: OnProgress | None = None) -> None:
    """{"feature_data_dict": {id: ...}, "feature_stats": ...}, written latent by latent."""
    at = np.concatenate([np.arange(a, b - 0.5 * 10.0**-p, 10.0**-p) for (a, b), p in _RANGES])
    stats: dict[str, Any] = {"max": [], "frac_nonzero": [], "skew": [], "kurtosis": [], "quantile_data": []}
    with file.open("w", encoding="utf-8") as f:
        f.write('{"feature_data_dict": {\n')
        for done, latent in enumerate(latents, 1):
            feature = Feature(latent, pack)
            f.write(f'"{latent}": {json.dumps(_feature(feature))}' + (",\n" if done < len(latents) else "\n"))
            row = feature.row
            stats["max"].append(round(float(row["max"]), 6))
            stats["frac_nonzero"].append(float(row["density"]))
            found = quantiles(*feature.histogram, pack.n_tokens, at, float(row["max"])) if row["count"] else np.zeros(0)
            stats["quantile_data"].append([round(float(v), 5) for v in found[found > 1e-6]])
            if on_progress:
                on_progress(done, len(latents), {})
        stats["quantiles"] = [round(float(q), 6) for q in [*at, 1.0]]
        stats["ranges_and_precisions"] = [[list(ends), p] for ends, p in _RANGES]
        f.write(f'}},\n"feature_stats": {json.dumps(stats)}}}\n')


def _feature(feature: Feature) -> dict[str, Any]:
    row, pack = feature.row, feature.pack
    values, heights = bars(*feature.histogram, float(row["max"]))
    logit_values, logit_heights = logit_bars(*(pack.relation(n)[feature.id] for n in ("logit_histogram", "logit_ends")))
    table = {}
    for theirs, ours in (("top", "promoted"), ("bottom", "suppressed")):
        table[f"{theirs}_token_ids"] = plain(pack.relation(f"{ours}_id")[feature.id])
        table[f"{theirs}_logits"] = [round(v, 4) for v in plain(pack.relation(f"{ours}_logit")[feature.id])]
    return {
        "feature_tables_data": {},
        "acts_histogram_data": _histogram(values, heights, f"ACTIVATIONS<br>DENSITY = {row['density']:.3%}"),
        "logits_table_data": table,
        "logits_histogram_data": _histogram(logit_values, logit_heights, None),
        "sequence_data": {"seq_group_data": [] if feature.dead else _groups(feature)},
        "prompt_data": {},
        "dfa_data": {},
        "decoder_weights_data": None,
    }


def _histogram(values: list[float], heights: list, title: str | None) -> dict[str, Any]:
    ticks = [round(float(v), 1) for v in np.linspace(min(values[0], 0.0), values[-1], 4)] if values else []
    return {"bar_heights": heights, "bar_values": values, "tick_vals": ticks, "title": title}


def _groups(feature: Feature) -> list[dict[str, Any]]:
    """Top examples, then the bands from strong to weak; CONTAINS is a share of all tokens, as there."""
    n = max(feature.pack.n_tokens, 1)
    title = f"TOP ACTIVATIONS<br>MAX = {feature.row['max']:.3f}"
    groups = [{"title": title, "seq_data": [_sequence(e, feature.pack.n_ctx) for e in feature.examples("top", 10_000)]}]
    inside = feature.examples("bands", 10_000)
    for band in reversed(feature.bands):
        some = [_sequence(e, feature.pack.n_ctx) for e in inside if e.band == band["band"]]
        share = f"CONTAINS {band['count'] / n:.3%}"
        groups.append({"title": f"INTERVAL {band['low']:.3f} - {band['high']:.3f}<br>{share}", "seq_data": some})
    return groups


def _sequence(example: Example, n_ctx: int) -> dict[str, Any]:
    """The window, cut so that the peak stands in its middle, where SAEDashboard looks for it."""
    half = min(example.peak, len(example.ids) - 1 - example.peak)
    near = slice(example.peak - half, example.peak + half + 1)
    ids = example.ids[near]
    return {
        "original_index": example.context,
        "qualifying_token_index": example.offset,
        "token_ids": ids,
        "feat_acts": [round(v, 4) for v in plain(example.acts[near])],
        "loss_contribution": [],
        "token_logits": [float("nan")] * len(ids),
        "top_token_ids": [],
        "top_logits": [],
        "bottom_token_ids": [],
        "bottom_logits": [],
    }
