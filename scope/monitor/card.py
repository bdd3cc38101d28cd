"""The card of a monitor: what it is, what it was worth beside its nulls, and its limits, in plain words."""

from scope.escape import visible
from scope.monitor.monitor import BASE_RATES, Monitor
from scope.monitor.statistics import Rate
from scope.provenance import ModelId, without_folders


def card(monitor: Monitor) -> str:
    """The card as Markdown."""
    m = monitor
    return "\n".join([*_what(m), *_worth(m), *_errors(m), *_groups(m), *_cost(m), *_limits(m), *_again(m)]) + "\n"


def cell(text: object) -> str:
    """Text of others as it stands in a table: on one line, and no markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~" else c for c in visible(str(text)))


def _what(m: Monitor) -> list[str]:
    model, after = (
        ModelId.of(m.model),
        "as a chat: the user's turn, up to where the model would answer" if m.chat else "as it is",
    )
    names = [f"| {i} | {cell(label) or 'no label'} |" for i, label in zip(m.latents, m.labels, strict=True)]
    latents = ["", "| latent | its label in the pack |", "|---|---|", *names] if any(m.labels) else []
    aggregations = {"max": "the largest", "mean": "the mean", "last": "the last token's"}
    return [
        f"# Monitor for {cell(repr(m.positive))}",
        "",
        f"It reads {cell(m.reads())} at {m.site} of {cell(without_folders(model.name))} and gives each text one score: "
        f"{aggregations[m.aggregation]} of the scores of its tokens. Above {m.threshold:.6g} the alarm sounds.",
        "",
        f"The text is read {after}; at most {m.context:,} tokens, what exceeds them is cut off. Control tokens do not count.",
        f"Texts with the label {cell(repr(m.positive))} are positive, those with {cell(repr(m.negative))} negative.",
        *latents,
        "",
    ]


def _worth(m: Monitor) -> list[str]:
    rows = []
    for s in m.scores:
        draws = f" (mean of {s.draws}; largest {s.largest:.3f})" if s.largest is not None else ""
        gap = s.difference_interval
        apart = "" if s.difference is None else f"{s.difference:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" if gap else "none"
        caught = f"{s.tpr.share:.1%} at {s.fpr.share:.1%}" if s.tpr and s.fpr else ""
        rows.append(f"| {s.name}{draws} | {s.auc:.3f} ({s.interval.low:.3f} to {s.interval.high:.3f}) | {apart} | {caught} |")
    beaten = m.beaten_by()
    so = (
        f"**On these texts the monitor is not shown to be better than: {', '.join(beaten)}.**"
        if beaten
        else "The monitor is above each of them by more than the interval of the difference, and above every draw of the nulls."
    )
    counts = {s.name: s for s in m.splits}
    test = counts["test"]
    return [
        "## What it is worth",
        "",
        f"AUC on {test.positive + test.negative:,} test texts ({test.positive:,} positive) that nothing was chosen on: how "
        "often a positive text scores above a negative one; 0.5 is guessing. In brackets 95 % intervals over texts (DeLong).",
        "",
        "| detector | AUC | monitor minus it, on the same texts | positive texts caught, at alarms on negative ones |",
        "|---|---|---|---|",
        *rows,
        "",
        so,
        "",
        "Bag of words: a logistic regression on the counts of the model's tokens, fitted to the same training texts; it "
        "needs no model. Length: the number of tokens. Shuffled labels: the same fit, its settings chosen anew, to training "
        "texts whose labels were exchanged. Random direction: a random vector at the same site, its sign chosen on "
        "the training texts; AUC does not depend on its length."
        + (" Random latents: as many, drawn from those that fire, fitted in the same way." if m.method == "latents" else ""),
        "",
    ]


def _errors(m: Monitor) -> list[str]:
    c = m.calibration
    rates = [
        f"| 1 in {round(1 / base):,} | {_share(m.precision(base))} | {_share(m.precision_at_worst(base))} |"
        for base in BASE_RATES
    ]
    bins = [f"| {b.n} | {b.probability:.1%} | {b.positive:.1%} |" for b in c.bins]
    return [
        "## The alarm",
        "",
        f"The threshold {m.threshold:.6g} was set on the validation texts for a false-positive rate of at most {m.fpr:.2%}.",
        "",
        "| | validation texts | test texts |",
        "|---|---|---|",
        f"| alarms on negative texts | {_rate(m.validation_fpr)} | {_rate(m.test_fpr)} |",
        f"| alarms on positive texts | | {_rate(m.test_tpr)} |",
        "",
        "How many alarms are right depends on how rare positive texts are. By the rates on the test texts, and with both rates "
        "at the worse end of their interval:",
        "",
        "| positive texts | right alarms | at worst |",
        "|---|---|---|",
        *rates,
        "",
        f"Probability of the positive label, fitted on the validation texts and for their share of positives: expected "
        f"calibration error on the test texts {c.error:.3f}; exactly right ones would come to {c.by_chance:.3f}.",
        "",
        "| test texts | mean probability | positive |",
        "|---|---|---|",
        *bins,
        "",
    ]


def _groups(m: Monitor) -> list[str]:
    if not m.groups:
        return []
    rows = [
        f"| {cell(g.name)[:80]} | {g.n} | {_rate(g.fpr)} | {_rate(g.tpr)} | {g.probability:.1%} | {g.positive:.1%} |"
        for g in m.groups
    ]
    return [
        "## By group",
        "",
        "| group | test texts | alarms on negative texts | alarms on positive texts | mean probability | positive |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _cost(m: Monitor) -> list[str]:
    c = m.cost
    if c.layers is None:
        part = "The whole model has to run."
    else:
        part = f"Only {c.layers} of {c.n_layers} blocks have to run where the model is run for the monitor alone."
    return [
        "## What it costs",
        "",
        f"For each token {c.flops:,} operations beside the {c.model_flops:,} of the model's matrices "
        f"({c.flops / c.model_flops:.3%}). {part}",
        f"Measured on {c.device}, {c.tokens:,} tokens, medians of five: the monitor {c.microseconds:.2f} microseconds a token, "
        f"the model up to the site {c.to_site:.1f}, the whole forward pass {c.whole:.1f}.",
        "",
    ]


def _limits(m: Monitor) -> list[str]:
    counts = "; ".join(f"{s.name} {s.positive:,} positive and {s.negative:,} negative" for s in m.splits)
    limits = [
        f"Texts: {counts}.",
        "The numbers hold for texts like the test texts. Nothing is known of other kinds of text, nor of texts written to "
        "evade the monitor.",
        "A bag of words that does as well says that the labels can be read off the words, for which no model has to run.",
        *m.notes,
    ]
    if not m.groups:
        limits.append(
            "The texts have no groups, so it is not known whether errors fall on some kinds of text more than on others."
        )
    if m.hook is None:
        limits.append(f"No module of transformers computes {m.site}: score.py cannot read it; `scope monitor run` can.")
    return ["## Limits", "", *(f"* {cell(limit)}" for limit in limits), ""]


def _again(m: Monitor) -> list[str]:
    model = ModelId.of(m.model)
    rows = [
        f"| {c.aggregation} | {'' if c.setting is None else f'{c.setting:g}'} | {c.auc:.3f} | {'yes' if c.chosen else ''} |"
        for c in m.choices
    ]
    dictionary = m.dictionary or {}
    return [
        "## How it was chosen, and from what it was made",
        "",
        f"Seed {m.seed}. AUC on training texts left out in turn (three folds), for each setting that was tried:",
        "",
        "| aggregation | ridge or latents | AUC | chosen |",
        "|---|---|---|---|",
        *rows,
        "",
        f"* Model: {cell(without_folders(model.name))} in {model.dtype}, weights {model.weights_sha256}",
        f"* Tokenizer: {model.tokenizer_sha256}",
        *([f"* SAE: parameters {dictionary.get('parameters_sha256')}"] if dictionary else []),
        f"* Texts: {cell(m.data.get('name'))}, sha256 {m.data.get('sha256')}",
        f"* weights.safetensors: sha256 {m.weights_sha256}",
        f"* Versions: {', '.join(f'{name} {version}' for name, version in m.versions.items())}",
        "",
        '`python score.py "a text"` scores without this project, with `--model FOLDER` where transformers does not find the '
        "model by its name; `scope monitor run` scores with it.",
    ]


def _rate(rate: Rate) -> str:
    if rate.interval is None:
        return "no such texts"
    return f"{rate.share:.1%} ({rate.k} of {rate.n}; {rate.interval.low:.1%} to {rate.interval.high:.1%})"


def _share(share: float) -> str:
    return "no alarms" if share != share else f"{share:.1%}"
