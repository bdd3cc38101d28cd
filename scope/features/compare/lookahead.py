"""Latents that fire in the middle only because of the suffix, found by exchanging suffixes.

A piece of a document becomes an infilling example: prefix, suffix, middle. Its middle is read with its own suffix and with
those of other documents, cut to equal length, so that every token of the middle stands at the same place after the same prefix.
A latent that looks ahead fires more with the own suffix.

Null: where a latent takes no notice of which suffix it is, own and others' are exchangeable, example by example. Permuting them
gives how large the difference gets by chance, over all latents at once: a latent is beyond chance if its difference, divided by
its standard deviation under permutation, exceeds the largest of any latent in 95 % of the permutations (Westfall and Young's
maximum, family-wise error 5 %). Chosen on half of the documents, latents are reported on the others. The same count with
another document's suffix in the place of the own one says what the procedure gives where there is nothing to find.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int

from scope.activations.corpus.infill import FORMS, MARKS, ORDERS, mark_ids
from scope.activations.errors import CorpusError
from scope.errors import ConfigError, TokensError
from scope.evaluation.metrics import fvu
from scope.features.pack.lookahead import Beyond, LatentLookahead, Lookahead, Place
from scope.fit import check_fit
from scope.models.face import LanguageModel, TextTokenizer
from scope.null_seeds import null_seed
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256

Donors = Literal["documents", "elsewhere"]
Means = Float[np.ndarray, "example suffix latent"]
Statistic = Float[np.ndarray, " latent"]

FEWEST_EXAMPLES = 10
"""Examples in which a latent must fire to be tested."""
_LEVEL = 0.05
_PLACES = 40  # latents for which the example with the largest gain is kept
_TRIES = 8


@dataclass(frozen=True)
class Example:
    """Token ids of an infilling example; `document` is the number of the document that it was cut from."""

    document: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    middle: tuple[int, ...]
    elsewhere: tuple[tuple[int, ...], ...] = ()
    """Suffixes from other places of the same document."""


def lookahead(
    model: LanguageModel,
    sae: SAE,
    texts: Iterable[str],
    n: int = 240,
    *,
    form: str = "psm",
    suffixes: int = 3,
    donors: Donors = "documents",
    middle: int = 32,
    context: int = 256,
    floor: LanguageModel | None = None,
    permutations: int = 999,
    corpus: str = "",
    seed: int = 0,
    any_model: bool = False,
    on_progress: OnProgress | None = None,
) -> Lookahead:
    """Test every latent of an SAE on `n` examples cut from some texts, with `suffixes` of other documents each, or, with
    `donors` "elsewhere", of other places in the same one: what a latent then gains, it does not gain from the document's topic.
    `floor` is the model without its adapter: it reads the same token ids through the same SAE. `any_model` allows an SAE
    that was trained on other weights than the model's.

    Raises:
        ConfigError: a setting that cannot be, or a floor that cannot read the model's tokens.
        TokensError: the model was not made for infilling, too little text, or no latent that fires in enough middles.
        DictionaryError: the SAE does not fit the model.
    """
    if donors not in get_args(Donors):
        raise ConfigError(f"donors is {donors!r}; it is documents or elsewhere.")
    if form not in FORMS or suffixes < 2 or n < 4 * FEWEST_EXAMPLES or permutations < 99 or middle < 2:
        raise ConfigError(
            f"form is one of {', '.join(FORMS)}; suffixes is 2 or more, n {4 * FEWEST_EXAMPLES} or more, permutations 99 or "
            "more, middle 2 or more."
        )
    check_fit(model, sae, any_model, reconstructs=True)
    if floor is not None:
        check_fit(floor, sae, any_model=True)
        if floor.cfg.d_vocab < model.cfg.d_vocab:
            raise ConfigError(
                f"The floor has {floor.cfg.d_vocab:,} tokens, too few to read the ids of the model's {model.cfg.d_vocab:,}.\n"
                "  Give the model without its adapter, or none: --floor none"
            )
    try:
        marks = mark_ids(model.words)
    except CorpusError as error:
        raise TokensError(str(error)) from None
    within = suffixes if donors == "elsewhere" else 0
    examples = draw_examples(model.words, texts, n, min(context, model.cfg.n_ctx), middle, seed, within)
    halves = [np.array([i for i, e in enumerate(examples) if e.document % 2 == h]) for h in (0, 1)]
    documents = [{examples[i].document for i in half} for half in halves]
    if min(map(len, halves)) < FEWEST_EXAMPLES or min(map(len, documents)) <= suffixes:
        raise TokensError(
            f"The text gives {len(examples)} examples of {sum(map(len, documents))} documents, too few to choose on one half "
            "and report on the other.\n  Give longer and more documents, or a smaller context."
        )
    exchanged = [e.elsewhere for e in examples] if within else _of_others(examples, halves, suffixes, seed)
    rows = [_prompts(model.cfg.bos, marks, form, e, others) for e, others in zip(examples, exchanged, strict=True)]
    total = len(rows) * (2 if floor else 1)

    def read(by: LanguageModel, begun: int) -> tuple[Means, Means, float]:
        return _read(by, sae, rows, examples, lambda done: on_progress(begun + done, total, {}) if on_progress else None)

    acts, fires, unexplained = read(model, 0)
    tested = np.flatnonzero((fires.max(1) > 0).sum(0) >= FEWEST_EXAMPLES)
    if not len(tested):
        raise TokensError(f"No latent fires in {FEWEST_EXAMPLES} of {len(rows)} middles. Give more text.")
    acts, fires = acts[:, :, tested], fires[:, :, tested]

    def test(x: Means, unexplained: float | None = None) -> tuple[Beyond, tuple[Statistic, Statistic], Statistic]:
        return _test([x[half] for half in halves], permutations, seed, unexplained)

    own, z, p = test(acts, unexplained)
    floored = more = None
    if floor is not None:
        in_floor, _, unexplained = read(floor, len(rows))
        floored, more = test(in_floor[:, :, tested], unexplained), test(acts - in_floor[:, :, tested])
    null = _mean([test(np.roll(acts[:, 1:], -k, 1))[0] for k in range(suffixes)])
    held_out = [x[halves[1]].mean(0) for x in (acts, fires)]
    order = np.argsort(-z[1], kind="stable")
    best = [k for k in order if z[0][k] > own.threshold and p[k] < _LEVEL][:_PLACES]
    places = _places(model, sae, rows, examples, acts, halves[1], {int(tested[k]): int(k) for k in best})
    latents = tuple(
        LatentLookahead(
            latent=int(tested[k]),
            examples=int((fires[:, :, k].max(1) > 0).sum()),
            z=float(z[0][k]),
            z_held_out=float(z[1][k]),
            p_held_out=float(p[k]),
            own=float(held_out[0][0, k]),
            others=float(held_out[0][1:, k].mean()),
            own_density=float(held_out[1][0, k]),
            others_density=float(held_out[1][1:, k].mean()),
            floor_z=None if floored is None else float(floored[1][1][k]),
            more_z=None if more is None else float(more[1][1][k]),
            place=places.get(int(tested[k])),
        )
        for k in order
    )
    return Lookahead(
        model=str(model.provenance.get("model")),
        site=sae.site,
        dictionary=parameters_sha256(sae),
        corpus=corpus,
        form=form,
        examples=len(examples),
        documents=sum(map(len, documents)),
        suffixes=suffixes,
        donors=donors,
        permutations=permutations,
        seed=seed,
        tested=len(tested),
        own=own,
        null=null,
        floor=None if floored is None else floored[0],
        more=None if more is None else more[0],
        floor_model="" if floor is None else str(floor.provenance.get("model")),
        latents=latents,
    )


def draw_examples(
    tokenizer: TextTokenizer, texts: Iterable[str], n: int, context: int, middle: int, seed: int = 0, elsewhere: int = 0
) -> list[Example]:
    """Up to `n` examples, documents in turn: a middle of at most `middle` tokens somewhere in the document, what stands before
    it, and a suffix that fills its half of the context. All suffixes are equally long; short documents are passed over."""
    room = (context - 4 - middle) // 2
    if room < 4:
        raise ConfigError(f"A context of {context} tokens has no room for a prefix, a suffix and a middle of {middle}.")
    rng = np.random.default_rng((seed, n, context))
    kept: list[str] = []
    for text in texts:
        for mark in MARKS.values():
            text = text.replace(mark, "")
        if len(text) > 2 * room:
            kept.append(text)
        if len(kept) >= 2 * n:
            break
    examples: list[Example] = []
    for _ in range(-(-n // max(1, len(kept))) * 2):
        for number, text in enumerate(kept):
            example = _cut(tokenizer, text, number, room, middle, elsewhere, rng)
            examples += [example] if example else []
            if len(examples) == n:
                return examples
    return examples


def _cut(tokenizer: TextTokenizer, text: str, number: int, room: int, middle: int, elsewhere: int, rng: Any) -> Example | None:
    """An example with so many suffixes from elsewhere; None where some tries find no room."""
    far = 8 * room
    for _ in range(_TRIES):
        start, length = int(rng.integers(1, len(text))), int(rng.integers(4, 4 * middle))
        end = start + length
        between = tokenizer.encode(text[start:end], bos=False)
        while len(between) > middle and length > 1:
            length = max(1, length * middle // len(between))
            end = start + length
            between = tokenizer.encode(text[start:end], bos=False)
        before = tokenizer.encode(text[max(0, start - far) : start], bos=False)[-room:]
        after = tokenizer.encode(text[end : end + far], bos=False)[:room]
        places = [i for i in rng.integers(0, len(text), 8 * elsewhere) if i > end + far or i < start - far]
        others = [tuple(ids) for i in places if len(ids := tokenizer.encode(text[i : i + far], bos=False)[:room]) == room]
        if before and len(between) >= 2 and len(after) == room and len(others) >= elsewhere:
            return Example(number, tuple(before), tuple(after), tuple(between), tuple(others[:elsewhere]))
    return None


def _of_others(examples: Sequence[Example], halves: Sequence[Any], n: int, seed: int) -> list[tuple[tuple[int, ...], ...]]:
    """For each example the suffixes of others of its half, each of another document."""
    rng = np.random.default_rng(null_seed("suffixes of other documents", seed))
    exchanged: list[tuple[tuple[int, ...], ...]] = [()] * len(examples)
    for half in halves:
        for i in half:
            other = [int(j) for j in rng.permutation(half) if examples[j].document != examples[i].document]
            of = {examples[j].document: examples[j].suffix for j in other}  # one of each document
            exchanged[i] = tuple(of.values())[:n]
    return exchanged


def _prompts(
    bos: int, marks: dict[str, int], form: str, example: Example, others: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """The example with its own suffix, then with others: token ids of equal length, the middle at the end."""
    rows = []
    for suffix in (example.suffix, *others):
        pieces = {f"<{name}>": (mark,) for name, mark in marks.items()} | {"prefix": example.prefix, "suffix": suffix}
        rows.append([bos, *(i for name in ORDERS[form] for i in pieces[name]), *example.middle])  # type: ignore[index]
    return rows


@torch.no_grad()
def _latents(model: LanguageModel, sae: SAE, rows: Sequence[list[int]], middle: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(activations [row token width], latents [row token latent]) at the last `middle` tokens of rows of equal length."""
    x = model.record(torch.tensor(rows, device=model.device), [sae.site])[sae.site][:, -middle:].to(sae.W_enc)
    return x, sae.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@torch.no_grad()
def _read(
    model: LanguageModel, sae: SAE, rows: Sequence[list[list[int]]], examples: Sequence[Example], on_done: Callable[[int], Any]
) -> tuple[Means, Means, float]:
    """Per example, suffix and latent the mean activation over the middle and the share of its tokens on which it fires; and the
    share of the variance that the SAE leaves unexplained there with the own suffixes."""
    shape = (len(rows), len(rows[0]), sae.W_dec.shape[0])
    acts, fires, own = np.zeros(shape, np.float32), np.zeros(shape, np.float32), []
    for i, (several, example) in enumerate(zip(rows, examples, strict=True)):
        x, latents = _latents(model, sae, several, len(example.middle))
        acts[i], fires[i] = latents.mean(1).cpu().numpy(), (latents > 0).float().mean(1).cpu().numpy()
        own.append((x[0].float(), sae.decode(latents[0]).float()))
        on_done(i + 1)
    return acts, fires, float(fvu(*(torch.cat(part) for part in zip(*own, strict=True))))


def _test(
    halves: Sequence[Means], permutations: int, seed: int, unexplained: float | None = None
) -> tuple[Beyond, tuple[Statistic, Statistic], Statistic]:
    """(the counts, z on either half, p on the second) for "the first suffix gives more than the others"."""
    (z0, chance), (z1, again) = (_permuted(half, permutations, seed + h) for h, half in enumerate(halves))
    threshold = float(np.quantile(np.append(chance.max(1), z0.max()), 1 - _LEVEL, method="higher"))
    p = (1 + (again >= z1).sum(0)) / (len(again) + 1)
    beyond = z0 > threshold
    counts = Beyond(
        threshold=threshold,
        found=float(beyond.sum()),
        confirmed=float((beyond & (p < _LEVEL)).sum()),
        nominal=float((p < _LEVEL).mean()),
        fvu=unexplained,
    )
    return counts, (z0, z1), p


def _permuted(x: Means, permutations: int, seed: int) -> tuple[Statistic, Float[np.ndarray, "permutation latent"]]:
    """(z of the first suffix against the others, the same under permutations of the suffixes within each example)."""
    n, n_suffixes, d = x.shape
    centred = (x - x.mean(1, keepdims=True)).astype(np.float64)
    spread = np.sqrt((centred**2).mean(1).sum(0))
    scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    rng = np.random.default_rng(null_seed("exchanged suffixes", seed))
    chosen: Int[np.ndarray, "permutation example"] = rng.integers(0, n_suffixes, (permutations, n))
    choice = np.zeros((permutations, n, n_suffixes), np.float32)
    np.put_along_axis(choice, chosen[:, :, None], 1, 2)
    return scaled[:, 0].sum(0), choice.reshape(permutations, -1) @ scaled.astype(np.float32).reshape(-1, d)


def _mean(tests: Sequence[Beyond]) -> Beyond:
    names = ("threshold", "found", "confirmed", "nominal")
    return Beyond(**{name: float(np.mean([getattr(t, name) for t in tests])) for name in names})


def _places(
    model: LanguageModel,
    sae: SAE,
    rows: Sequence[list[list[int]]],
    examples: Sequence[Example],
    acts: Means,
    held_out: Any,
    latents: dict[int, int],
) -> dict[int, Place]:
    """For each of some latents (with their place in `acts`) the held-out example in which it gains most."""
    gain, places, words = acts[:, 0] - acts[:, 1:].mean(1), {}, model.words
    for latent, k in latents.items():
        i = int(held_out[gain[held_out, k].argmax()])
        values = _latents(model, sae, rows[i], len(examples[i].middle))[1][:, :, latent].float().cpu()
        places[latent] = Place(
            before=words.decode(examples[i].prefix)[-60:],
            tokens=tuple(words.pieces(list(examples[i].middle))),
            after=words.decode(examples[i].suffix)[:60],
            own=tuple(values[0].tolist()),
            others=tuple(values[1:].mean(0).tolist()),
        )
    return places
