"""A whole pack without a model: planted latents on made-up text, every figure by brute force. For tests of packs and pages."""

from pathlib import Path

import numpy as np
import pandas as pd

from scope.features.collect import collect_pack
from scope.features.collect.codes import lowest_bin
from scope.features.collect.config import Flags
from scope.features.collect.streams import Moments
from scope.features.collect.table import flags, percentile
from scope.features.face import Pack
from scope.features.pack.format import N_BINS
from scope.features.pack.table import COLUMNS, label
from scope.features.pack.write import PackArrays, write_pack
from tests.features.brute import Brute

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<b>bold</b>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "&#60;img&#62;",
    "</span></div></body>",
    "<!-- comment",
    "<style>*{display:none}</style>",
    "<iframe src=//evil.example>",
    "![x](http://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "$\\href{http://evil.example}{x}$",
    ":material/delete:",
    "**bold** _it_ `code`",
    "| a | b |\n|---|---|",
    "=HYPERLINK(0)",
    "+1+1",
    "@SUM(A1)",
    "\u202eevil\u202c",
    "\u2066x\u2069\u200b\ufeff",
    "\x00\x07\x1b[31m",
    "{{7*7}} ${7*7} #{7*7}",
    "a\u0301\u0301\u0301\u0301",
]
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", " the", " dog", " dogs", " cat", " river", " runs", " looks", " at", " to", "."]
WORDS += [
    "\n",
    "\t",
    "  ",
    " number",
    "7",
    " returns",
    " value",
    "ing",
    " 中文",
    " مرحبا",
    "👩\u200d🚀",
    "<0xE2>",
    "<0x82>",
    "<0xAC>",
]
VOCAB = WORDS + HOSTILE


def collect(*given, **settings) -> Pack | None:
    """`scope.features.collect.collect_pack.collect`, and the pack opened as people open it."""
    made = collect_pack.collect(*given, **settings)
    return None if made is None else Pack.open(made.folder)


def make_toy_pack(
    out: Path, n_contexts: int = 60, n_ctx: int = 40, seed: int = 0, health: dict | None = None, roles: bool = False
) -> Brute:
    """Write a pack of 24 latents to `out`; returns the brute-force statistics that it was made from. With `roles`, the first
    half of every context is a prefix and the other a middle.

    0 dead; 1 fires on " dog" and " dogs"; 2 dense; 3 on the token after " the"; 4 on one token alone; 5 rare; 6 a duplicate
    of 4; 7 on hostile tokens; 8 on the bytes of one character; the rest on two or three tokens each, with noise.
    """
    rng = np.random.default_rng(seed)
    d_vocab, d_sae = len(VOCAB), 24
    odds = np.r_[np.zeros(4), np.geomspace(1, 0.05, d_vocab - 4)]
    tokens = rng.choice(d_vocab, size=(n_contexts, n_ctx), p=odds / odds.sum())
    euro = VOCAB.index("<0xE2>")
    tokens[::3, 10:13] = [euro, euro + 1, euro + 2]
    tokens[:, 0], tokens[-1, 25:] = 2, 0
    keep = tokens > 3
    latents = _planted(rng, tokens, d_sae)
    latents[~keep] = 0
    low = lowest_bin(float(latents.max()))
    brute = Brute(latents, tokens, keep, low, seed)
    decoder = rng.normal(size=(d_sae, 16))
    decoder[6] = decoder[4] + 0.01 * rng.normal(size=16)
    logits = decoder @ rng.normal(size=(16, d_vocab))
    relations = _relations(brute, decoder, logits, rng)
    table = _table(brute, decoder, relations, rng)
    names = [f"toy/{i}.txt" for i in range(6)] + ["<script>alert('name')</script>.txt"]
    manifest = {
        "site": "blocks.2.hook_resid_post",
        "model": {"model": "toy", "revision": None, "weights_sha256": "toy-weights", "tokenizer_sha256": "toy-tokenizer"},
        "dictionary": {"weights_sha256": "toy-dictionary", "site": "blocks.2.hook_resid_post"},
        "corpus": {"name": "made-up words", "seed": seed},
        "n_tokens": int(keep.sum()),
        "n_contexts": n_contexts,
        "n_ctx": n_ctx,
        "pad": 0,
        "window": brute.window,
        "control_half": 8,
        "histogram": {"low": low, "bins": N_BINS},
        "norm_median": 9.5,
        "excluded": "<bos>, special tokens and padding",
        "flags": {"dense": 0.1, "rare": 10, "single_token": 0.8, "duplicate": 0.9},
        "output_score": {"strength": 0.5, "null_mean": 0.001, "null_p95": 0.01, "prompts": 2},
        "map": {
            "method": "pca",
            "explained": [0.2, 0.1],
            "explained_by_chance": [0.1, 0.1],
            "kept": 0.6,
            "kept_by_chance": 0.4,
        },
        "made": {"scope": "test", "date": "2026-01-01"},
    }
    if roles:
        halves = [(slice(None), slice(0, n_ctx // 2)), (slice(None), slice(n_ctx // 2, None))]
        relations["role_count"] = np.stack([(latents[half] > 0).sum((0, 1)) for half in halves], 1)
        relations["role_sum"] = np.stack([latents[half].sum((0, 1)) for half in halves], 1)
        manifest["roles"] = {name: int(keep[half].sum()) for name, half in zip(("prefix", "middle"), halves, strict=True)}
    documents = np.broadcast_to(np.arange(n_contexts)[:, None] % len(names), (n_contexts, n_ctx))
    totals = brute.totals(d_vocab)
    arrays = PackArrays(
        table=table,
        examples=brute.examples(),
        relations=relations,
        token_totals=totals,
        contexts=tokens,
        documents=documents,
        document_names=names,
        vocab=VOCAB,
        manifest=manifest,
        health=health,
        controls=_controls(brute, rng),
        map=_places(decoder),
    )
    write_pack(out, arrays)
    return brute


def _places(decoder: np.ndarray) -> np.ndarray:
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    return (centred @ np.linalg.svd(centred)[2][:2].T).astype(np.float32)


def _controls(brute: Brute, rng: np.random.Generator, n: int = 120, half: int = 8) -> dict[str, np.ndarray]:
    middles = np.sort(rng.choice(np.flatnonzero(brute.keep), n, replace=False))
    lists = []
    for p in middles:
        c, o = divmod(int(p), brute.n_ctx)
        lists.append(np.flatnonzero((brute.latents[c, max(0, o - half) : o + half + 1] > 0).any(0)))
    return {"position": middles, "start": np.cumsum([0, *map(len, lists)]), "latent": np.concatenate(lists)}


def _planted(rng: np.random.Generator, tokens: np.ndarray, d_sae: int) -> np.ndarray:
    latents = np.zeros((*tokens.shape, d_sae), np.float32)
    strength = rng.lognormal(0.5, 0.5, size=latents.shape).astype(np.float32)

    def plant(f: int, where: np.ndarray) -> None:
        latents[..., f] = np.where(where, strength[..., f], 0)

    plant(1, np.isin(tokens, [5, 6]) & (rng.random(tokens.shape) < 0.9))
    plant(2, rng.random(tokens.shape) < 0.6)
    plant(3, np.pad(tokens[:, :-1] == 4, ((0, 0), (1, 0))))
    plant(4, tokens == 8)
    plant(5, (tokens == 9) & (rng.random(tokens.shape) < 0.02))
    latents[..., 6] = latents[..., 4] * 0.5
    plant(7, tokens >= len(WORDS))
    plant(8, np.isin(tokens, [25, 26, 27]))
    for f in range(9, d_sae):
        mine = rng.choice(np.arange(4, len(VOCAB)), size=2 + f % 2, replace=False)
        plant(f, (np.isin(tokens, mine) & (rng.random(tokens.shape) < 0.8)) | (rng.random(tokens.shape) < 0.01))
    return latents


def _relations(brute: Brute, decoder: np.ndarray, logits: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    d_sae = len(decoder)
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(d_sae)
    near, far = np.argsort(-cosine, 1)[:, :10], np.argsort(cosine + 4 * np.eye(d_sae), 1)[:, :4]
    active = (brute.latents.reshape(-1, d_sae) > 0).astype(float)
    both, count = active.T @ active, active.sum(0)
    p = both / np.maximum(count[:, None], 1) * (1 - np.eye(d_sae)) * (count[:, None] > 0)
    together = np.argsort(-p, 1)[:, :10]
    p_found = np.take_along_axis(p, together, 1)
    density = np.maximum(count / brute.keep.sum(), 1e-9)
    ids, counts, sums = np.full((d_sae, 32), -1), np.zeros((d_sae, 32), int), np.zeros((d_sae, 32))
    for f in range(d_sae):
        for k, (t, n, s) in enumerate(brute.token_counts(f)[:32]):
            ids[f, k], counts[f, k], sums[f, k] = t, n, s
    order = np.argsort(-logits, 1)
    rise = np.sort(rng.random((d_sae, 10)) * 0.05, 1)[:, ::-1]
    return {
        "neighbour_id": near,
        "neighbour_cos": np.take_along_axis(cosine, near, 1),
        "opposite_id": far,
        "opposite_cos": np.take_along_axis(cosine, far, 1),
        "cofiring_id": np.where(p_found > 0, together, -1),
        "cofiring_p": p_found,
        "cofiring_lift": p_found / density[together],
        "token_id": ids,
        "token_count": counts,
        "token_sum": sums,
        "promoted_id": order[:, :10],
        "promoted_logit": np.take_along_axis(logits, order[:, :10], 1),
        "suppressed_id": order[:, ::-1][:, :10],
        "suppressed_logit": np.take_along_axis(logits, order[:, ::-1][:, :10], 1),
        "measured_id": order[:, 1:11],
        "measured_rise": rise,
    }


def _table(brute: Brute, decoder: np.ndarray, relations: dict[str, np.ndarray], rng: np.random.Generator) -> pd.DataFrame:
    totals, n, rows = brute.totals(len(VOCAB)), int(brute.keep.sum()), []
    histogram = np.stack([brute.histogram(f) for f in range(brute.d_sae)])
    moments = Moments(brute.d_sae, brute.low)
    moments.histogram = histogram
    for f in range(brute.d_sae):
        values = [v for _, v in brute.firings(f)]
        moments.min[f], moments.max[f] = min(values, default=np.inf), max(values, default=0)
    quantiles = {q: percentile(moments, brute.low, q / 100) for q in (50, 90, 99)}
    for f in range(brute.d_sae):
        values = np.array([v for _, v in brute.firings(f)])
        counts = brute.token_counts(f)
        text, score = label([(VOCAB[t], c, int(totals[t])) for t, c, _ in counts], len(values))
        shares = np.cumsum([c for _, c, _ in counts]) / max(len(values), 1)
        rows.append(
            {
                "count": len(values),
                "density": len(values) / n,
                "mean": values.mean() if len(values) else 0.0,
                "max": values.max() if len(values) else 0.0,
                **{f"p{q}": quantiles[q][f] for q in quantiles},
                "cv": values.std() / values.mean() if len(values) else 0.0,
                "skew": _standard(values, 3),
                "kurtosis": _standard(values, 4) - 3,
                "top_token": VOCAB[counts[0][0]] if counts else "",
                "top_token_share": counts[0][1] / len(values) if counts else 0.0,
                "n_tokens": len(counts),
                "n_tokens_half": int((shares < 0.5).sum()) + 1 if counts else 0,
                "promotes": [VOCAB[t] for t in relations["promoted_id"][f]],
                "suppresses": [VOCAB[t] for t in relations["suppressed_id"][f]],
                "logit_std": rng.random(),
                "logit_skew": rng.normal(),
                "logit_kurtosis": rng.normal(),
                "out_score": rng.random() * 0.05,
                "out_kl": rng.random(),
                "nearest": int(relations["neighbour_id"][f, 0]),
                "nearest_cos": float(relations["neighbour_cos"][f, 0]),
                "dec_norm": float(np.linalg.norm(decoder[f])),
                "enc_dec_cos": rng.random(),
                "label": text,
                "label_source": "token statistics",
                "label_score": score,
            }
        )
    table = pd.DataFrame(rows)
    table["flags"] = flags(table, Flags(), 0.01)
    return table[list(COLUMNS)]


def _standard(values: np.ndarray, power: int) -> float:
    spread = values.std() if len(values) else 0.0
    return float((((values - values.mean()) / spread) ** power).mean()) if spread > 0 else float("nan")
