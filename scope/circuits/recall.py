"""Asks models for what they read n tokens ago: a needle ("the code word is ...") and random tokens that are repeated.

needle      "The code word is apple." + n tokens of other text + "The code word is": does the right one of the words that might
            stand there score highest, and how much likelier is it than where another word was named?
repetition  some random tokens + n tokens of other text + the same tokens again: how much likelier is each of them but the first
            than where other random tokens stood before? A small model that answers no question may well do this (induction).

Both are read from the logits, so nothing is drawn; each trial has its own text between and its own tokens. The comparison is
paired: the same trial with another needle. Intervals are 95 %: Wilson's of the accuracy, a bootstrap over trials of the gain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scope.circuits.tables import html_table
from scope.errors import ConfigError, TokensError
from scope.json_result import JsonResult
from scope.models.face import LanguageModel
from scope.null_seeds import generator
from scope.progress import OnProgress
from scope.shapes import Tokens
from scope.steering.compare.statistics import interval, wilson
from scope.whole_files import write_whole

Task = Literal["needle", "repetition"]
TASKS: tuple[Task, ...] = ("needle", "repetition")
DISTANCES = (0, 4, 8, 16, 32, 64, 128)
BEFORE, AFTER = "The code word is", "The code word is"
WORDS = (
    *("apple", "river", "king", "house", "water", "gold", "horse", "ship", "fire", "stone", "tree", "snow", "bird", "church"),
    *("door", "garden", "sword", "mother", "city", "paper", "silver", "school", "music", "winter", "father", "island", "army"),
)
_SCHEMA = 1
_REPEATED = 8
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class RecallRow:
    """One model, task and distance."""

    model: str
    task: Task
    distance: int
    """Tokens of other text between the needle and the question."""

    trials: int
    accuracy: float
    """Share of trials in which the right one scores highest among those that could stand there."""

    low: float
    high: float
    chance: float
    gain: float
    """Mean log-probability of the right one, less that where another was named before: nats."""

    gain_low: float
    gain_high: float


@dataclass(frozen=True, kw_only=True)
class Recall(JsonResult):
    """What models can say after n tokens, by task and distance."""

    error, way_out = ConfigError, "Make it again: scope memory --needle --save FILE"

    rows: tuple[RecallRow, ...]
    words: tuple[str, ...]
    """Words that might stand at the place of the needle."""

    corpus: str
    seed: int
    schema: int = _SCHEMA

    def to_frame(self) -> Any:
        """A row per model, task and distance."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text."""
        return [
            (
                row.model,
                row.task,
                str(row.distance),
                f"{row.accuracy:.0%} [{row.low:.0%}, {row.high:.0%}]",
                f"{row.chance:.0%}",
                f"{row.gain:+.2f} [{row.gain_low:+.2f}, {row.gain_high:+.2f}]",
            )
            for row in self.rows
        ]

    def verdicts(self) -> list[str]:
        """For each model and task the largest distance up to which it recalls at all."""
        lines = []
        for model, task in dict.fromkeys((row.model, row.task) for row in self.rows):
            rows = [row for row in self.rows if (row.model, row.task) == (model, task)]
            for what, above in (
                ("accuracy is above chance", [row.low > row.chance for row in rows]),
                ("a token seen before is likelier than an unseen one", [row.gain_low > 0 for row in rows]),
            ):
                until = above.index(False) if False in above else len(above)
                reach = f"up to {rows[until - 1].distance} tokens" if until else f"at no distance from {rows[0].distance} on"
                lines.append(f"{model}, {task}: {what} {reach}.")
        return lines

    _COLUMNS = ("model", "task", "tokens between", "accuracy [95 %]", "chance", "gain over unseen, nats [95 %]")

    def __str__(self) -> str:
        rows = [self._COLUMNS, *self.cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.verdicts()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table([], self._COLUMNS, self.cells(), self.verdicts())

    def plot(self, measure: Literal["accuracy", "gain"] = "gain") -> Any:
        """Accuracy or gain by distance, a line a model and task, as a Plotly figure."""
        import plotly.graph_objects as go

        ends = ("low", "high") if measure == "accuracy" else ("gain_low", "gain_high")
        figure = go.Figure()
        for model, task in dict.fromkeys((row.model, row.task) for row in self.rows):
            rows = [row for row in self.rows if (row.model, row.task) == (model, task)]
            y = [getattr(row, measure) for row in rows]
            up = [getattr(row, ends[1]) - v for row, v in zip(rows, y, strict=True)]
            down = [v - getattr(row, ends[0]) for row, v in zip(rows, y, strict=True)]
            bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
            figure.add_scatter(
                x=[row.distance for row in rows], y=y, error_y=bars, mode="lines+markers", name=f"{model}, {task}"
            )
        figure.update_layout(
            xaxis_title="tokens between", yaxis_title=measure, template="simple_white", height=420, hovermode="x unified"
        )
        return figure

    def to_html(self, file: str | Path | None = None) -> str:
        """As a page that needs nothing else, also written to `file`."""
        figures = "".join(
            self.plot(measure).to_html(full_html=False, include_plotlyjs=first)
            for first, measure in ((True, "gain"), (False, "accuracy"))
        )
        text = f"<!doctype html><meta charset='utf-8'><title>Recall</title><h1>Recall</h1>{self._repr_html_()}{figures}"
        if file is not None:
            write_whole(Path(file), text)
        return text


@torch.no_grad()
def recall(
    models: LanguageModel | Sequence[LanguageModel],
    texts: Iterable[str],
    *,
    tasks: Sequence[str] = TASKS,
    distances: Sequence[int] = DISTANCES,
    trials: int = 64,
    words: Sequence[str] = WORDS,
    corpus: str = "",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Recall:
    """Ask models for what they read n tokens ago. `texts` fill the distance, such as documents of a corpus; distances that a
    model's context does not hold are left out.

    Raises:
        ConfigError: an unknown task, fewer than two trials, no distance that fits.
        TokensError: too little text, or fewer than two of the words are one token of a model.
    """
    models = [models] if isinstance(models, LanguageModel) else list(models)
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ConfigError(f"There is no task {unknown[0] if unknown else ''!r}; there are {', '.join(TASKS)}.")
    if trials < 2 or not distances or min(distances) < 0:
        raise ConfigError("Recall is measured at one distance of 0 or more at least, in two trials or more.")
    common = [w for w in words if all(len(m.words.encode(f" {w}", bos=False)) == 1 for m in models)]
    if "needle" in tasks and len(common) < 2:
        raise TokensError("Fewer than two of the words are one token of each model. Give others: words=[...]")
    documents = list(texts)
    rows: list[RecallRow] = []
    jobs = [(model, task, n) for model in models for task in tasks for n in sorted(set(distances))]
    for number, (model, task, distance) in enumerate(jobs):
        draw = generator(f"recall, {task}, {distance}", seed)
        if distance < model.cfg.n_ctx:
            between = _between(model, documents, distance, trials, draw)
            made = _needles(model, common, between, draw) if task == "needle" else _repetitions(model, between, draw)
            if made[0].shape[1] <= model.cfg.n_ctx:
                rows.append(_row(model, task, distance, *made))
        if on_progress:
            on_progress(number + 1, len(jobs), {})
    if not rows:
        raise ConfigError(f"No distance fits into a context of {max(m.cfg.n_ctx for m in models)} tokens. Give smaller ones.")
    return Recall(rows=tuple(rows), words=tuple(common), corpus=corpus, seed=seed)


def _between(model: LanguageModel, documents: list[str], n: int, trials: int, draw: torch.Generator) -> Tokens:
    """[trial n] stretches of the texts.

    Raises:
        TokensError: no text is long enough.
    """
    if not n:
        return torch.zeros(trials, 0, dtype=torch.long)
    stretches: list[list[int]] = []
    for text in documents:
        ids = [i for i in model.words.encode(text[: 40 * n + 4000], bos=False) if i not in model.special_ids]
        stretches += [ids[i : i + n] for i in range(0, len(ids) - n + 1, n)][:8]
        if len(stretches) >= 4 * trials:
            break
    if not stretches:
        raise TokensError(f"No text has {n} tokens to stand between. Give longer texts.")
    chosen = torch.randint(len(stretches), (trials,), generator=draw)
    return torch.tensor([stretches[int(i)] for i in chosen])


def _joined(*parts: Tensor | list[int], trials: int) -> Tokens:
    wide = [p if isinstance(p, Tensor) else torch.tensor(p, dtype=torch.long).expand(trials, -1) for p in parts]
    return torch.cat(wide, 1)


def _needles(
    model: LanguageModel, words: Sequence[str], between: Tokens, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(texts, the same with another needle, [trial k] what might follow, [trial 1] the places of its scores). The first of
    what might follow is right."""
    trials = len(between)
    known = torch.tensor([model.words.encode(f" {word}", bos=False)[0] for word in words])
    order = torch.rand(trials, len(known), generator=draw).argsort(1)
    candidates = known[order]
    before = [model.cfg.bos, *model.words.encode(BEFORE, bos=False)]
    dot, after = model.words.encode(".", bos=False), model.words.encode(f" {AFTER}", bos=False)
    texts = [_joined(before, candidates[:, i : i + 1], dot, between, after, trials=trials) for i in (0, 1)]
    return texts[0], texts[1], candidates[:, None], torch.tensor([texts[0].shape[1] - 1])


def _repetitions(model: LanguageModel, between: Tokens, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(texts, the same with other tokens before, [trial place k] what might follow, the places of its scores)."""
    trials, special = len(between), torch.tensor(sorted(model.special_ids))
    usual = torch.ones(model.cfg.d_vocab, dtype=torch.bool)
    usual[special[special < model.cfg.d_vocab]] = False
    usual[min(len(model.words), model.cfg.d_vocab) :] = False
    ids = usual.nonzero()[:, 0]
    drawn = ids[torch.randint(len(ids), (2, trials, _REPEATED), generator=draw)]
    texts = [_joined([model.cfg.bos], first, between, drawn[0], trials=trials) for first in drawn]
    n = texts[0].shape[1]
    # what might follow: each of the other repeated tokens, the right one first
    places = torch.arange(n - _REPEATED, n - 1)
    follow = torch.stack([drawn[0].roll(-k, 1) for k in range(1, _REPEATED)], -1)[:, : _REPEATED - 1]
    return texts[0], texts[1], follow, places


def _row(
    model: LanguageModel, task: Task, distance: int, texts: Tokens, unseen: Tokens, follow: Tensor, places: Tensor
) -> RecallRow:
    log_p = [_scores(model, tokens, follow, places) for tokens in (texts, unseen)]
    right = (log_p[0].argmax(-1) == 0).float().mean(1)
    gains = (log_p[0][..., 0] - log_p[1][..., 0]).mean(1)
    trials = len(texts)
    accuracy = float(right.mean())
    if right.unique().numel() <= 2:
        low, high = wilson(accuracy, trials)
    else:
        low, high = interval(right.double().numpy())
    gain_low, gain_high = interval(gains.double().numpy())
    name = str(model.provenance.get("model") or "model")
    return RecallRow(
        model=name,
        task=task,
        distance=distance,
        trials=trials,
        accuracy=accuracy,
        low=float(low),
        high=float(high),
        chance=1 / follow.shape[-1],
        gain=float(gains.mean()),
        gain_low=float(gain_low),
        gain_high=float(gain_high),
    )


def _scores(model: LanguageModel, tokens: Tokens, follow: Tensor, places: Tensor) -> Tensor:
    """[trial place k] log-probabilities of what might follow the places."""
    parts = []
    for rows, wanted in zip(tokens.split(_BATCH), follow.split(_BATCH), strict=True):
        stream = model(rows.to(model.device), stop_at_layer=model.cfg.n_layers)
        log_p = model.logits_of(stream[:, places]).float().log_softmax(-1).cpu()
        parts.append(log_p.gather(2, wanted))
    return torch.cat(parts)
