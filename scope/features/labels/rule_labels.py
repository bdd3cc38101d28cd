"""Labels by rules: searched over a pack's text, tested on the half of it that did not choose them, without a language model.

A latent whose rule predicts too little is not named: its label shows the contexts in which it fires most strongly.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.escape import fold, visible_token
from scope.features.labels.properties import Text, TextProperties
from scope.features.labels.rule_search import RuleScore, search_rules
from scope.features.labels.rules import VERSION, Rule, in_words
from scope.features.pack.data import PackData
from scope.features.pack.feature import Feature
from scope.features.pack.format import GROUPS, RULES
from scope.features.pack.table import BY_CONTEXTS, BY_RULES, UNCLEAR
from scope.progress import OnProgress
from scope.typed_json import parse_json, typed
from scope.versions import version_of

MEASURE = "F1 of 'fires exactly where the rule holds', on the half of the contexts that did not choose the rule"
_PEAKS = 8
"""Strongest examples of which half must fire on one token for a label to say that the latent peaks on it."""
_AROUND = 4
"""Tokens on either side of the firing one in a label that shows contexts."""


def rules_table(scores: Sequence[RuleScore]) -> pd.DataFrame:
    """Rules and scores as rules.parquet holds them."""
    rows = [
        {
            "rule": "" if one.rule is None else json.dumps(to_json(one.rule), ensure_ascii=False),
            "words": "" if one.rule is None else in_words(one.rule),
            **{name: round(getattr(one, name), 4) for name in ("score", "chosen", "single_token", "null")},
            "firings": one.firings,
        }
        for one in scores
    ]
    return pd.DataFrame(rows, columns=list(RULES))


def to_json(rule: Rule) -> dict:
    """A rule as JSON; `from_json` reads it."""
    return {"version": VERSION, **asdict(rule)}


def from_json(text: str) -> Rule:
    """A rule from its JSON.

    Raises:
        PackError: it is no rule of this version.
    """
    value = typed(parse_json(text, "A rule", PackError), dict, "A rule", PackError)
    if value.pop("version", VERSION) != VERSION:
        raise PackError(f"This rule was written by a later version of scope: {text[:80]}")
    return typed(value, Rule, "A rule", PackError)


def label_columns(
    table: pd.DataFrame, rules: pd.DataFrame, contexts: dict[int, str], peaks: dict[int, str] | None = None
) -> pd.DataFrame:
    """The three label columns of a table, with rules in place of labels from tokens where they predict more than UNCLEAR, and
    with contexts in place of names that would say little.

    Args:
        contexts: by latent, the text that shows its strongest contexts.
        peaks: by latent, the token on which most of its strongest examples fire.
    """
    label, source, score = (table[name].to_numpy(object, copy=True) for name in ("label", "label_source", "label_score"))
    by_tokens = table["label_source"].to_numpy() == "token statistics"
    alive, rule_score = table["count"].to_numpy() > 0, rules["score"].to_numpy()
    named = (rule_score >= UNCLEAR) & (rule_score > rules["null"].to_numpy()) & (rules["words"].to_numpy() != "") & alive
    named &= by_tokens | (rule_score >= 2 * UNCLEAR)  # a label by what it promotes is replaced by a clear rule alone
    words = rules["words"].to_numpy(object)
    for i in np.flatnonzero(named).tolist():
        label[i] = with_peak(words[i], (peaks or {}).get(i))
    score[named] = rule_score[named]
    source[named] = BY_RULES
    for i in np.flatnonzero(by_tokens & ~named & alive).tolist():
        if i in contexts:
            label[i], source[i], score[i] = contexts[i], BY_CONTEXTS, np.nan
    return table.assign(label=label, label_source=source, label_score=score.astype(np.float64))


def with_peak(words: str, peak: str | None) -> str:
    """The words of a rule, and before them the token of the strongest examples if the words do not name it."""
    named = "" if peak is None else f"“{visible_token(peak)}”"
    return words if named in words else f"peaks on {named}; {words}"


def peak_token(tokens: Sequence[str]) -> str | None:
    """The token, without case and outer spaces, on which at least half of the strongest examples fire."""
    folded = [fold(token.strip()) for token in tokens if token.strip()]
    token, n = Counter(folded).most_common(1)[0] if folded else ("", 0)
    return token if 2 * n >= max(2, len(tokens)) else None


def collected_peaks(examples: dict[str, np.ndarray], contexts: np.ndarray, vocab: Sequence[str]) -> dict[int, str]:
    """{latent: its `peak_token`} of a pack that is being made."""
    top, ids = GROUPS.index("top") + 1, contexts.reshape(-1)
    peaks = {}
    for i, (group, position) in enumerate(zip(examples["group"], examples["position"], strict=True)):
        tokens = [vocab[t] for t in ids[position[group == top][:_PEAKS]].tolist() if t < len(vocab)]
        if (peak := peak_token(tokens)) is not None:
            peaks[i] = peak
    return peaks


def unclear_latents(table: pd.DataFrame, rules: pd.DataFrame) -> np.ndarray:
    """Latents whose contexts `label_columns` may need."""
    score = rules["score"].to_numpy()
    return np.flatnonzero(((score < UNCLEAR) | (score <= rules["null"].to_numpy())) & (table["count"].to_numpy() > 0))


def context_label(windows: Sequence[tuple[Sequence[str], int]]) -> str:
    """Three contexts as a label, the token that fires between « and »; given the pieces around each and the index of it."""
    shown = []
    for pieces, at in windows[:3]:
        texts = [visible_token(piece) if piece.strip(" ") else piece for piece in pieces]
        lead = " " if texts[at].startswith(" ") else ""
        texts[at] = f"{lead}«{texts[at].strip(' ') or '␣'}»"
        shown.append("".join(texts).strip())
    return "in " + " · ".join(f"“{text}”" for text in dict.fromkeys(shown))


def contexts_of(feature: Feature) -> str:
    """The label that shows a latent's three strongest contexts; "" for one without examples."""
    windows = []
    for example in feature.examples("top", 3):
        first = max(0, example.peak - _AROUND)
        windows.append((example.tokens[first : example.peak + _AROUND + 1], example.peak - first))
    return context_label(windows) if windows else ""


def collected_contexts(latents: np.ndarray, examples: dict[str, np.ndarray], contexts: np.ndarray, vocab: Sequence[str]):
    """{latent: contexts as a label} of a pack that is being made."""
    n_ctx, found = contexts.shape[1], {}
    top = GROUPS.index("top") + 1
    for i in latents.tolist():
        places = np.flatnonzero(examples["group"][i] == top)[:3]
        windows = []
        for position in examples["position"][i][places].tolist():
            context, offset = divmod(int(position), n_ctx)
            first = max(0, offset - _AROUND)
            ids = contexts[context, first : offset + _AROUND + 1].tolist()
            windows.append(([vocab[t] if t < len(vocab) else "" for t in ids], offset - first))
        if windows:
            found[i] = context_label(windows)
    return found


def label_by_rules(
    pack: PackData, latents: Sequence[int], *, again: bool = False, seed: int = 0, on_progress: OnProgress | None = None
) -> list[dict]:
    """Label latents of a pack by rules, and save that in its notes; labels of people and of language models stay.

    Returns a dictionary a label: latent, text, score, chosen, single_token, null.

    Raises:
        PackError: a pack of pictures, whose rows are no tokens; notes that cannot be written.
    """
    if pack.pictures is not None:
        raise PackError("Rules speak of tokens, and the rows of this pack are patches of pictures. Use --with SERVER instead.")
    pack.notes.require_writable()
    labels, count = pack.notes.labels(), pack.table["count"].to_numpy()
    mine = {i for i, label in labels.items() if label.source in (BY_RULES, BY_CONTEXTS)}
    others = {i for i, label in labels.items() if i not in mine and label.source != "token statistics"}
    todo = [i for i in latents if count[i] > 0 and i not in others and (again or i not in mine)]
    if not todo:
        return []
    documents, names = pack.documents
    text = TextProperties(Text(pack.contexts, pack.vocab, pack.token_totals, documents, names))
    some = np.array(todo)
    promoted = pack.relation("promoted_id")
    scores = search_rules(
        text,
        pack.firing_sample[some],
        count[some],
        promoted[some] if promoted.shape[1] else None,
        seed,
        on_progress,
    )
    rows, labelled = [], []
    for i, one in zip(todo, scores, strict=True):
        named = one.rule is not None and one.score >= UNCLEAR and one.score > one.null
        strongest = [example.tokens[example.peak] for example in Feature(i, pack).examples("top", _PEAKS)]
        words = with_peak(in_words(one.rule), peak_token(strongest)) if named else contexts_of(Feature(i, pack))
        if not words:
            continue
        numbers = {name: round(getattr(one, name), 4) for name in ("score", "chosen", "single_token", "null")}
        about = {**numbers, "firings": one.firings, "measure": MEASURE, "made_by": f"scope {version_of()}"}
        if one.rule is not None:
            about["rule"] = to_json(one.rule)
        rows.append((i, words, BY_RULES if named else BY_CONTEXTS, numbers["score"] if named else None, about))
        labelled.append({"latent": i, "text": words, "named": named, **numbers})
    pack.notes.set_labels(rows)
    return labelled
