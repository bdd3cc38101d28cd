"""Columns of the table of all latents from the collected statistics. Their meaning: `scope.features.pack.table`."""

import math

import numpy as np
import pandas as pd
import torch

from scope.features.collect.codes import edges
from scope.features.collect.config import Flags
from scope.features.collect.streams import Moments, WordsBeside
from scope.features.pack.table import BY_OUTPUT, BY_TOKENS, BY_WORDS, COLUMNS, UNCLEAR, label, output_label
from scope.sae.base import SAE


def make_table(sae: SAE, source, statistics, tokens, effects, scores, relations, vocab, totals, null, config) -> pd.DataFrame:
    moments, n = statistics.moments, source.n_tokens
    count = moments.count
    safe = np.maximum(count, 1)
    mean = moments.sum / safe
    deviation, skew, kurtosis = _shape(moments, mean)
    nothing = np.full(len(count), np.nan)
    W_enc, W_dec = sae.W_enc.detach().float(), sae.W_dec.detach().float()
    top = tokens["id"][:, 0]
    pieces = len(vocab) if source.n_pieces is None else source.n_pieces  # a row that is no token names nothing
    labels = [_label(f, tokens, count, vocab[:pieces], totals) for f in range(len(count))]
    columns = {
        "count": count,
        "density": count / max(n, 1),
        "mean": mean,
        "max": moments.max.astype(np.float64),
        **{f"p{q}": percentile(moments, statistics.low, q / 100) for q in (50, 90, 99)},
        "cv": np.where(count > 0, deviation / np.maximum(mean, 1e-30), 0.0),
        "skew": skew,
        "kurtosis": kurtosis,
        "top_token": [vocab[t] if t >= 0 else "" for t in top],
        "top_token_share": tokens["count"][:, 0] / safe,
        "n_tokens": tokens["n_tokens"],
        "n_tokens_half": tokens["n_half"],
        "promotes": _words(relations.get("promoted_id"), vocab, len(count)),
        "suppresses": _words(relations.get("suppressed_id"), vocab, len(count)),
        "logit_std": nothing if effects is None else effects.deviation.astype(np.float64),
        "logit_skew": nothing if effects is None else effects.skew.astype(np.float64),
        "logit_kurtosis": nothing if effects is None else effects.kurtosis.astype(np.float64),
        "out_score": nothing if scores is None else scores.score,
        "out_kl": nothing if scores is None else scores.kl,
        "nearest": relations["neighbour_id"][:, 0],
        "nearest_cos": relations["neighbour_cos"][:, 0].astype(np.float64),
        "dec_norm": W_dec.norm(dim=1).cpu().numpy().astype(np.float64),
        "enc_dec_cos": torch.cosine_similarity(W_enc.T, W_dec).cpu().numpy().astype(np.float64) if sae.autoencodes else nothing,
        "label": [text for text, _ in labels],
        "label_source": [BY_TOKENS] * len(count),
        "label_score": [score for _, score in labels],
    }
    table = pd.DataFrame(columns)
    _label_by_words(table, statistics.beside)
    table["flags"] = flags(table, config.flags, null.get("null_p95", math.inf), top < pieces)
    _label_by_output(table, relations, vocab)
    return table[list(COLUMNS)]


def _shape(moments, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(standard deviation, skewness, excess kurtosis) of the activations when they fire; NaN where all are equal."""
    safe = np.maximum(moments.count, 1)
    second, third, fourth = moments.square / safe, moments.cube / safe, moments.fourth / safe
    variance = np.maximum(second - mean**2, 0)
    spread = np.where(variance > 1e-9 * second, variance, np.nan)  # below that, only the rounding of the sums is left
    skew = (third - 3 * mean * second + 2 * mean**3) / spread**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / spread**2 - 3
    return np.sqrt(variance), skew, kurtosis


def _label_by_output(table: pd.DataFrame, relations: dict[str, np.ndarray], vocab: list[str]) -> None:
    """Where tokens predict little of the firing and the direction moves the output, let the label say what it promotes."""
    unclear = table["flags"].str.contains("output") & (table["label_score"] < UNCLEAR) & (table["count"] > 0)
    for f in np.flatnonzero(unclear.to_numpy(dtype=bool)):
        promoted, measured = ([vocab[i] for i in relations[name][f] if i >= 0] for name in ("promoted_id", "measured_id"))
        text = output_label(promoted, measured)
        if text is not None:
            table.loc[f, ["label", "label_source"]] = [text, BY_OUTPUT]


def _label_by_words(table: pd.DataFrame, beside: WordsBeside | None) -> None:
    """Where tokens predict little, name the words beside pictures that go with a latent's strongest activation in each."""
    if beside is None or not beside.words:
        return
    correlation = beside.result()
    best = correlation.max(1)
    told = (table["label_score"] < UNCLEAR) & (table["count"] > 0) & (best > beside.chance)
    for f in np.flatnonzero(told.to_numpy(dtype=bool)):
        near = np.argsort(-correlation[f], kind="stable")[:3]
        words = [beside.words[k] for k in near if correlation[f, k] > max(beside.chance, best[f] / 2)]
        text = ", ".join(f"“{word}”" for word in words)
        table.loc[f, ["label", "label_source", "label_score"]] = [text, BY_WORDS, float(best[f])]


def _label(f: int, tokens: dict[str, np.ndarray], count: np.ndarray, vocab: list[str], totals: np.ndarray) -> tuple[str, float]:
    ids, fired = tokens["id"][f], tokens["count"][f]
    rows = [
        (vocab[t], int(n), int(totals[t])) for t, n in zip(ids.tolist(), fired.tolist(), strict=True) if 0 <= t < len(vocab)
    ]
    return label(rows, int(count[f]))


def _words(ids: np.ndarray | None, vocab: list[str], n: int) -> list[list[str]]:
    return [[]] * n if ids is None else [[vocab[i] for i in row] for row in ids.tolist()]


def percentile(moments: Moments, low: int, q: float) -> np.ndarray:
    """[d_sae] the q-quantile of the firings, interpolated on a log scale within its bin, and not outside of the weakest firing
    and the strongest; NaN for a silent latent."""
    histogram = moments.histogram
    cumulative = histogram.cumsum(1, dtype=np.float64)
    total = cumulative[:, -1:]
    at = (cumulative < q * total).sum(1).clip(max=histogram.shape[1] - 1)
    rows = np.arange(len(histogram))
    inside = histogram[rows, at].astype(np.float64)
    before = cumulative[rows, at] - inside
    share = np.divide(q * total[:, 0] - before, inside, out=np.zeros(len(rows)), where=inside > 0)
    fired = total[:, 0] > 0
    least, largest = (np.where(fired, found, 1).astype(np.float64) for found in (moments.min, moments.max))
    ends = np.log(edges(low))
    values = np.exp(ends[at] + share * (ends[at + 1] - ends[at]))
    return np.where(fired, np.clip(values, least, largest), np.nan)


def flags(table: pd.DataFrame, limits: Flags, null_score: float, token: np.ndarray | bool = True) -> list[str]:
    """Comma separated flags a latent; `null_score` is what the best twentieth of random directions reach as output score, and
    `token` says whether the top token is one, and no patch of a picture."""
    tests = {
        "dead": table["count"] == 0,
        "dense": table["density"] >= limits.dense,
        "rare": (table["count"] > 0) & (table["count"] < limits.rare),
        "single-token": (table["count"] >= limits.rare) & (table["top_token_share"] >= limits.single_token) & token,
        "duplicate": table["nearest_cos"] >= limits.duplicate,
        "output": table["out_score"] > null_score,
    }
    masks = {name: mask.to_numpy(dtype=bool) for name, mask in tests.items()}
    return [",".join(name for name, mask in masks.items() if mask[i]) for i in range(len(table))]
