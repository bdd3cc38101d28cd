"""The cost of an edit: how much worse the model predicts ordinary texts with it, beside random directions of the same size."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.errors import EditError
from scope.evaluation.metrics import kl
from scope.models.face import LanguageModel
from scope.progress import OnProgress
from scope.renamed import old_keywords
from scope.result import Result
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import at_each_layer, check_sites, check_tokens, dictionaries, resolve
from scope.steering.apply.strength_units import StrengthUnits, units_for
from scope.steering.compare.statistics import ratio_interval
from scope.steering.edits.interventions import Edit, Edits
from scope.texts import list_of_texts

_NUMBERS = 2**26
"""Logits of a batch at most: a quarter of a gigabyte in float32."""


@dataclass(frozen=True, kw_only=True)
class Cost(Result):
    """Mean loss of the next token on ordinary texts, nats. Intervals are at 95 %, over texts, of differences text by text."""

    n_tokens: int
    plain: float
    steered: float
    random: float
    """With a random direction of the same size, the mean over `draws` of them."""
    low: float
    high: float
    """`low` to `high` is the interval of steered - plain."""
    n_texts: int = 1
    draws: int = 1
    random_range: tuple[float, float] = (math.nan, math.nan)
    """The smallest and the largest loss of a random direction."""
    random_interval: tuple[float, float] = (math.nan, math.nan)
    """Of random - plain."""
    beyond_random: tuple[float, float] = (math.nan, math.nan)
    """Of steered - random."""
    kl: dict[str, float] = field(default_factory=dict)
    """Condition -> mean KL(plain || condition) of the next-token distributions, nats."""
    kl_interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    touched: float = math.nan
    """Share of the tokens to which the edit added something."""
    reads_as: str = "prompt"
    """What the texts count as, for rules of positions: "prompt", or "generated" but for <bos>."""
    notes: tuple[str, ...] = ()

    bars = ("condition", "loss")

    def to_frame(self):
        """Loss, perplexity, difference to plain with its interval, and KL of each condition, as a pandas table."""
        import pandas as pd

        intervals = {"plain": (0.0, 0.0), "steered": (self.low, self.high), "random": self.random_interval}
        rows = []
        for name, (low, high) in intervals.items():
            loss = getattr(self, name)
            row = {"condition": name, "loss": loss, "perplexity": math.exp(min(loss, 700.0)), "difference": loss - self.plain}
            rows.append(row | {"low": low, "high": high, "kl": self.kl.get(name, 0.0)})
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """As JSON; None where a single text gives no interval."""
        return {name: finite(value) for name, value in asdict(self).items()}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Loss, perplexity and KL by condition, the differences that are paired, and what the edit touched."""
        low, high = self.random_range
        several = f", {self.draws} directions from {low:.3f} to {high:.3f}" if self.draws > 1 else ""
        rows = [f"loss on {self.n_tokens:,} tokens of {self.n_texts} texts, nats a token (perplexity):"]
        for name in ("plain", "steered", "random"):
            loss = getattr(self, name)
            bounds = {"plain": None, "steered": (self.low, self.high), "random": self.random_interval}[name]
            apart = "" if bounds is None else f"  {loss - self.plain:+.3f} {_bounds(bounds)}"
            divergence = "" if name not in self.kl else f"  KL from plain {self.kl[name]:.3f}"
            rows.append(f"  {name:<8} {loss:.3f} ({math.exp(min(loss, 700.0)):.1f}){apart}{divergence}")
        rows[-1] += several
        rows.append(f"  steered - random {self.steered - self.random:+.3f} {_bounds(self.beyond_random)}")
        share = "" if math.isnan(self.touched) else f"; the edit acted at {self.touched:.0%} of the tokens"
        rows.append(f"  the texts count as {_COUNTS[self.reads_as]}{share}")
        return [*rows, *(f"  note: {note}" for note in self.notes)]

    def __str__(self) -> str:
        return (
            f"loss on {self.n_tokens} tokens: plain {self.plain:.3f}, steered {self.steered:.3f} "
            f"({self.steered - self.plain:+.3f} [{self.low:+.3f}, {self.high:+.3f}]), random direction {self.random:.3f}"
        )


_COUNTS = {
    "prompt": "a prompt that is read, no token as generated",
    "generated": "generated after <bos>, as the edit acts on what is generated",
}


@old_keywords(gauges="strength_units")
@torch.no_grad()
def cost(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    texts: str | Iterable[str],
    *,
    strength_units: StrengthUnits | Mapping[str, StrengthUnits] | None = None,
    control_seed: int = 0,
    draws: int = 1,
    context: int | None = None,
    on_progress: OnProgress | None = None,
) -> Cost:
    """The loss on texts that have nothing to do with the edit: about 2,000 tokens are enough. Texts of more than `context`
    tokens are cut there. Ctrl-C ends it early with the texts that were read, if there are two.

    Raises:
        EditError: no text, or an edit that cannot be applied.
        TokensError: without `context`, a text longer than the model's.
    """
    texts = list_of_texts(texts, EditError)
    if not all(t.strip() for t in texts):
        raise EditError("A text is empty. Give some ordinary sentences.")
    if draws < 1:
        raise EditError(f"draws is {draws}; compare with at least one random direction.")
    edits, saes = at_each_layer(model, Edits.of(edits)), dictionaries(sae)
    check_sites(model, saes, edits)
    check_tokens(model, edits, texts)
    units = units_for(model, saes, edits, texts, strength_units)
    resolved = [resolve(edit, saes, units) for edit in edits]
    arms: list[Editing | None] = [None, Editing(model, saes, resolved)]
    arms += [Editing(model, saes, resolved, control=control_seed + draw) for draw in range(draws)]
    rows = [model.to_tokens(text)[0][:context] for text in texts]
    kind, done = counts_as(edits), 0
    sums, divergences, counts = np.zeros((len(rows), len(arms))), np.zeros((len(rows), len(arms))), np.zeros(len(rows))
    notes: list[str] = []
    for batch in _batches(model, rows):
        try:
            measured = _losses(model, [rows[i] for i in batch], arms, kind)
        except KeyboardInterrupt:
            if done < 2:
                raise
            notes.append(f"Stopped after {done} of {len(rows)} texts.")
            break
        for i, (loss, divergence) in zip(batch, measured, strict=True):
            sums[i], divergences[i], counts[i] = loss, divergence, len(rows[i]) - 1
        done += len(batch)
        if on_progress:
            on_progress(done, len(rows), {})
    kept = counts > 0
    if not kept.any():
        raise EditError("No text has a second token, so there is nothing to predict. Give some ordinary sentences.")
    report = arms[1].report()
    acted = sum(report.edited_per_step) / max(1, sum(report.seen_per_step))
    if not acted:
        notes.append("The edit touched none of these tokens, so these figures say nothing about it.")
    if any(edit.positions.kind == "last_prompt" for edit in edits):
        notes.append("The edit acts at the last token of a text, and what follows it is not predicted here.")
    return _result(sums[kept], divergences[kept], counts[kept], draws, acted, kind, notes)


def counts_as(edits: Edits) -> str:
    """What whole texts count as: "generated" for edits that act on what is generated, else "prompt"."""
    return "generated" if any(edit.positions.kind == "generated" for edit in edits) else "prompt"


@contextmanager
def read_as(model: LanguageModel, kind: str, n: int) -> Iterator[None]:
    """Within the block, `n` whole texts count as prompts, or as generated after <bos>."""
    before = model.run.prompt_lengths
    model.run.prompt_lengths = torch.ones(n, dtype=torch.long, device=model.device) if kind == "generated" else None
    try:
        yield
    finally:
        model.run.prompt_lengths = before


def _batches(model: LanguageModel, rows: Sequence[Tensor]) -> list[list[int]]:
    """Places of texts of like length, as many at once as keep the logits small."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i]) * model.cfg.d_vocab > _NUMBERS:
            batches.append([])
        batches[-1].append(i)
    return batches


def _losses(
    model: LanguageModel, rows: list[Tensor], arms: Sequence[Editing | None], kind: str
) -> list[tuple[list[float], list[float]]]:
    """Per text the sums of the loss and of the KL from plain, by condition."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), model.cfg.pad, dtype=torch.long, device=model.device)
    real = torch.zeros_like(tokens, dtype=torch.bool)
    for row, mask, ids in zip(tokens, real, rows, strict=True):
        row[: len(ids)], mask[: len(ids)] = ids, True
    padded = {} if bool(real.all()) else {"attention_mask": real}
    target, losses, divergences, plain = real[:, 1:], [], [], None
    for arm in arms:
        with read_as(model, kind, len(rows)):
            logits = model.run_with_hooks(tokens, fwd_hooks=arm.hooks() if arm else [], **padded)[:, :-1].float()
        plain = logits if plain is None else plain
        loss = -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        losses.append(torch.where(target, loss, 0.0).double().sum(1))
        divergences.append(torch.where(target, kl(plain, logits), 0.0).double().sum(1))
    return list(zip(torch.stack(losses, 1).tolist(), torch.stack(divergences, 1).tolist(), strict=True))


def _result(
    sums: np.ndarray, divergences: np.ndarray, counts: np.ndarray, draws: int, acted: float, kind: str, notes: list[str]
) -> Cost:
    by_arm, random = sums.sum(0) / counts.sum(), sums[:, 2:].mean(1)
    plain, steered = (float(s) for s in by_arm[:2])
    low, high = ratio_interval(sums[:, 1] - sums[:, 0], counts)
    apart = {"steered": divergences[:, 1], "random": divergences[:, 2:].mean(1)}
    return Cost(
        n_tokens=int(counts.sum()),
        n_texts=len(counts),
        plain=plain,
        steered=steered,
        random=float(random.sum() / counts.sum()),
        low=low,
        high=high,
        draws=draws,
        random_range=(float(by_arm[2:].min()), float(by_arm[2:].max())),
        random_interval=ratio_interval(random - sums[:, 0], counts),
        beyond_random=ratio_interval(sums[:, 1] - random, counts),
        kl={name: float(values.sum() / counts.sum()) for name, values in apart.items()},
        kl_interval={name: ratio_interval(values, counts) for name, values in apart.items()},
        touched=acted,
        reads_as=kind,
        notes=tuple(notes),
    )


def _bounds(ends: tuple[float, float]) -> str:
    return "" if math.isnan(ends[0]) else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"


def finite(value: Any) -> Any:
    """A JSON value with None in the place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value
