"""Texts as a monitor reads them: token ids cut to the context, the tokens that count, and their activations at a site."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from scope.activations.corpus.inputs import counted_tokens
from scope.models.face import LanguageModel
from scope.progress import OnProgress
from scope.shapes import Acts

_TOKENS = 4096
"""Tokens of a batch, padding included."""


@dataclass(frozen=True)
class Read:
    """The tokens of a text that run through the model."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    """Positions of those that count: neither <bos> nor another special one."""
    cut: int = 0
    """Tokens at its end that the context has no room for."""

    def counted(self) -> list[int]:
        """Ids of the tokens that count."""
        return [self.ids[i] for i in self.places]


def read_text(model: LanguageModel, text: str, chat: bool = False, context: int | None = None) -> Read:
    """The tokens of a text after <bos>; with `chat` as the user's turn, ending where the model would answer. What exceeds the
    context is cut off at the end.

    Raises:
        TokensError: no text, or a chat without a template.
    """
    if chat:
        text = model.words.chat([{"role": "user", "content": text}])
    ids, most = model.words.encode(text), min(context or model.cfg.n_ctx, model.cfg.n_ctx)
    places = counted_tokens(torch.tensor([ids[:most]]), model.special_ids)[0].nonzero()[:, 0].tolist()
    return Read(tuple(ids[:most]), tuple(places), max(0, len(ids) - most))


def activations(
    model: LanguageModel, site: str, reads: Sequence[Read], on_progress: OnProgress | None = None
) -> Iterator[tuple[int, Acts]]:
    """(index, activations of the tokens that count, float32) of each text, in order of length. Texts run in batches, padded at
    the end, where no earlier token sees it; no layer above the site runs."""
    order = sorted(range(len(reads)), key=lambda i: len(reads[i].ids))
    done, total = 0, sum(len(read.ids) for read in reads)
    while order:
        batch = [order.pop()]
        width = len(reads[batch[0]].ids)
        while order and (len(batch) + 1) * width <= _TOKENS:
            batch.append(order.pop())
        tokens = torch.full((len(batch), width), model.cfg.pad)
        for row, i in enumerate(batch):
            tokens[row, : len(reads[i].ids)] = torch.tensor(reads[i].ids)
        recorded = model.record(tokens.to(model.device), [site])[site]
        for row, i in enumerate(batch):
            yield i, recorded[row, list(reads[i].places)].float()
        done += sum(len(reads[i].ids) for i in batch)
        if on_progress:
            on_progress(done, total, {})
