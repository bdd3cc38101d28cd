"""Fits a monitor: everything is chosen on the training texts, the threshold on the validation texts, and reported on the rest.

Each null is made by the same steps as the monitor: with the labels of the training texts shuffled, its setting and aggregation
are chosen anew.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from scope.errors import ConfigError
from scope.models.face import LanguageModel
from scope.monitor import linear
from scope.monitor.baselines import bag_of_words, length
from scope.monitor.columns import AGGREGATIONS, FOLDS, Column, Fitted, How, choose, context_of, fit_columns, rng_of
from scope.monitor.cost import cost
from scope.monitor.labelled import SPLITS, Labelled, MonitorError, assign
from scope.monitor.monitor import Check, Group, Monitor, Score, SplitCounts
from scope.monitor.places import hook_of, sliding_window_of
from scope.monitor.reading import Read, activations, read_text
from scope.monitor.readout import latent_weights, top_k_of, vector_weights
from scope.monitor.scorer import aggregate, token_scores
from scope.monitor.statistics import (
    Clusters,
    Rate,
    auc,
    auc_interval,
    calibration,
    difference_interval,
    threshold_at,
)
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.shapes import Acts

_FEW_GROUPS = 20
_PANGRAM = "The quick brown fox jumps over the lazy dog. "


def fit(
    model: LanguageModel,
    data: Labelled,
    how: How,
    sae: SAE | None = None,
    labels: Mapping[int, str] | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Monitor, dict[str, Tensor]]:
    """A monitor and its weights. `labels` are what the pack calls latents.

    Raises:
        MonitorError: a false-positive rate that so few negatives cannot show, or latents that never fire.
        ConfigError: a setting that cannot be.
    """
    _check(how, data, sae)
    reads = [read_text(model, text, how.chat, how.context) for text in data.texts]
    if silent := sum(not read.places for read in reads):
        keep = np.array([bool(read.places) for read in reads])
        data = data.only(keep, f"{silent:,} texts hold nothing but control tokens and are left out.")
        reads = [read for read in reads if read.places]
    train = data.where("train")
    folds = assign(np.unique(data.clusters[train], return_inverse=True)[1], data.labels[train], [1 / FOLDS] * FOLDS, how.seed)
    fitted = fit_columns(model, data, how, sae, reads, train, folds, on_progress)
    chosen, choices = choose(fitted, data, train, folds, 0)
    place = fitted.at(chosen)
    score = fitted.scores[:, place]
    weights = _weights(how, sae, fitted, place)
    validation, test = data.where("validation"), data.where("test")
    threshold = threshold_at(score[validation[~data.labels[validation]]], how.fpr)
    a, b = _platt(score[validation], data.labels[validation])
    clusters = data.clusters if data.identity.get("by_group") else None
    rivals = _rivals(fitted, chosen, data, how, reads, train, folds)
    alarms = score > threshold
    probability = 1 / (1 + np.exp(-np.clip(a * score + b, -700, 700)))
    notes = [*data.notes]
    if n_cut := sum(read.cut > 0 for read in reads):
        notes.append(f"{n_cut:,} texts are longer than {context_of(model, how):,} tokens; only their beginnings were read.")
    if clusters is not None and (n_groups := len(np.unique(clusters[test]))) < _FEW_GROUPS:
        notes.append(
            f"The test texts are of {n_groups} groups only, which says little about others; rates count texts, not groups."
        )
    latents = tuple(int(i) for i in fitted.features[fitted.weights[:, place] != 0]) if how.method == "latents" else ()
    top_k = top_k_of(sae) if how.method == "latents" else None
    monitor = Monitor(
        method=how.method,
        site=how.site,
        latents=latents,
        labels=tuple((labels or {}).get(i, "") for i in latents),
        direction=how.direction_name,
        aggregation=chosen.aggregation,
        top_k=top_k,
        threshold=threshold,
        fpr=how.fpr,
        positive=data.positive,
        negative=data.negative,
        probability=(a, b),
        typical=float(np.median(score[validation[~data.labels[validation]]])),
        chat=how.chat,
        chat_template=model.words.chat_template if how.chat else None,
        context=context_of(model, how),
        bos=model.cfg.bos,
        excluded_ids=tuple(sorted(model.special_ids)),
        hook=hook_of(model, how.site),
        sliding_window=sliding_window_of(model),
        check=_checks(model, how, weights, top_k, chosen.aggregation),
        model=dict(model.provenance),
        data=data.identity,
        seed=how.seed,
        splits=tuple(
            SplitCounts(name=s, positive=int(data.labels[w].sum()), negative=int((~data.labels[w]).sum()))
            for s, w in ((s, data.where(s)) for s in SPLITS)
        ),
        choices=choices,
        scores=_compared(score, rivals, data, how.fpr, clusters),
        validation_fpr=_rate(alarms, ~data.labels, validation),
        groups=_groups(data, alarms, probability, test),
        calibration=calibration(probability[test], data.labels[test], rng_of("calibration", how.seed)),
        cost=cost(model, how.site, [reads[i] for i in test], weights, top_k),
        notes=tuple(notes),
    )
    return monitor, weights


def refuse_fpr(data: Labelled, fpr: float) -> None:
    """
    Raises:
        ConfigError: it is no rate.
        MonitorError: the negative validation texts are too few for it.
    """
    negatives = int((~data.labels[data.where("validation")]).sum())
    if not 0 < fpr < 1:
        raise ConfigError(f"--fpr is {fpr}; a false-positive rate lies between 0 and 1, such as 0.05.")
    if fpr * negatives < 1 - 1e-9:
        raise MonitorError(
            f"A false-positive rate of {fpr:.3%} cannot be set with {negatives:,} negative validation texts: one false "
            f"alarm among them is {1 / negatives:.2%} already.\n  Give --fpr {_up(1 / negatives)} or more, or at least "
            f"{int(np.ceil(1 / fpr)):,} negative validation texts (a quarter of all, unless a field names the splits)."
        )


def _check(how: How, data: Labelled, sae: SAE | None) -> None:
    refuse_fpr(data, how.fpr)
    if how.aggregation not in (None, *AGGREGATIONS):
        raise ConfigError(f"There is no aggregation {how.aggregation!r}; there are {', '.join(AGGREGATIONS)}.")
    if how.method == "latents" and sae is not None and how.latents:
        wrong = [i for i in how.latents if not 0 <= i < sae.d_sae]
        if wrong:
            raise MonitorError(f"There is no latent {wrong[0]}: this SAE's run from 0 to {sae.d_sae - 1:,}.")


def _up(x: float) -> str:
    """A little more than x, in two digits."""
    digits = int(np.ceil(-np.log10(x))) + 1
    return f"{np.ceil(x * 10**digits) / 10**digits:g}"


def _weights(how: How, sae: SAE | None, fitted: Fitted, place: int) -> dict[str, Tensor]:
    w, b = fitted.weights[:, place], float(fitted.bias[place])
    if how.method != "latents" or sae is None:
        return vector_weights(w, b)
    chosen = np.flatnonzero(w)
    return latent_weights(sae, [int(i) for i in fitted.features[chosen]], w[chosen], b)


def _platt(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(a, b) of the probability 1 / (1 + exp(-(a score + b))), by logistic regression (Platt 1999)."""
    centre, spread = float(scores.mean()), float(scores.std()) or 1.0
    weights = np.full((len(scores), 1), 1 / len(scores))
    x = ((scores - centre) / spread)[:, None].astype(float)
    w, b = linear.logistic(x, labels[:, None], weights, np.array([1e-3]))
    a = float(w[0, 0]) / spread
    return a, float(b[0]) - a * centre


def _rivals(
    fitted: Fitted,
    chosen: Column,
    data: Labelled,
    how: How,
    reads: Sequence[Read],
    train: np.ndarray,
    folds: np.ndarray,
) -> dict[str, np.ndarray]:
    """Baseline or null -> scores [text draw]."""
    tokens = [read.counted() for read in reads]
    y = data.labels
    rivals = {"bag of words": bag_of_words(tokens, y, train, folds)[:, None], "length": length(tokens, y, train)[:, None]}
    shuffles = [rng_of(f"labels shuffled {n}", how.seed).permutation(y[train]) for n in range(how.nulls)]
    best = [choose(fitted, data, train, folds, n, shuffled)[0] for n, shuffled in enumerate(shuffles, 1)]
    rivals["shuffled labels"] = fitted.scores[:, [fitted.at(column) for column in best]].astype(float)
    random = fitted.random[chosen.aggregation]
    signs = np.array([1 if auc(random[train, n], y[train])[0] >= 0.5 else -1 for n in range(how.nulls)])
    rivals["random direction"] = random * signs
    if how.method == "latents":
        places = [fitted.at(Column(-1 - n, chosen.aggregation, chosen.setting, None)) for n in range(how.nulls)]
        rivals["random latents"] = fitted.scores[:, places].astype(float)
    return rivals


def _compared(
    score: np.ndarray, rivals: dict[str, np.ndarray], data: Labelled, fpr: float, clusters: Clusters | None
) -> tuple[Score, ...]:
    """The monitor on the test texts, and each rival with the paired difference."""
    test, validation = data.where("test"), data.where("validation")
    y, within = data.labels[test], None if clusters is None else clusters[test]

    def rates(scores: np.ndarray) -> dict[str, Rate]:
        alarms = scores > threshold_at(scores[validation[~data.labels[validation]]], fpr)
        return {"fpr": _rate(alarms, ~data.labels, test), "tpr": _rate(alarms, data.labels, test)}

    value, influence = auc(score[test].astype(float), y)
    rows = [Score(name="this monitor", auc=value, interval=auc_interval(value, influence, y, within), **rates(score))]
    for name, scores in rivals.items():
        each = [auc(column, y) for column in scores[test].T]
        mean, its = float(np.mean([v for v, _ in each])), np.mean([i for _, i in each], 0)
        rows.append(
            Score(
                name=name,
                auc=mean,
                interval=auc_interval(mean, its, y, within),
                draws=len(each),
                largest=max(v for v, _ in each) if len(each) > 1 else None,
                **(rates(scores[:, 0]) if len(each) == 1 else {}),
                difference=value - mean,
                difference_interval=difference_interval(value - mean, influence - its, within),
            )
        )
    return tuple(rows)


def _rate(alarms: np.ndarray, side: np.ndarray, texts: np.ndarray) -> Rate:
    return Rate.of(int(alarms[texts[side[texts]]].sum()), int(side[texts].sum()))


def _groups(data: Labelled, alarms: np.ndarray, probability: np.ndarray, test: np.ndarray) -> tuple[Group, ...]:
    """Alarms in each group of the test texts, the largest first; none where the texts have no groups."""
    names = sorted({data.groups[i] or "(no group)" for i in test if any(g is not None for g in data.groups)})
    rows = []
    for name in names:
        where = np.array([i for i in test if (data.groups[i] or "(no group)") == name])
        rows.append(
            Group(
                name=name,
                n=len(where),
                tpr=_rate(alarms, data.labels, where),
                fpr=_rate(alarms, ~data.labels, where),
                probability=float(probability[where].mean()),
                positive=float(data.labels[where].mean()),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.n))


def _checks(
    model: LanguageModel, how: How, weights: dict[str, Tensor], top_k: int | None, aggregation: str
) -> tuple[Check, ...]:
    """Two texts that say nothing of the data, a short one and one as long as the context, with their scores."""
    texts = [_PANGRAM.strip(), (_PANGRAM * (context_of(model, how) // 8 + 1)).strip()]
    reads = [read_text(model, text, how.chat, how.context) for text in texts]
    scores = {n: score_of(acts, weights, top_k, aggregation)[0] for n, acts in activations(model, how.site, reads)}
    return tuple(Check(text, scores[n]) for n, text in enumerate(texts))


def score_of(acts: Acts, weights: dict[str, Tensor], top_k: int | None, aggregation: str) -> tuple[float, list[float]]:
    """(score of a text, scores of its tokens) from the activations of the tokens that count."""
    scores = token_scores(acts.cpu(), weights, top_k)
    return float(aggregate(scores, aggregation)[0]), scores[:, 0].tolist()
