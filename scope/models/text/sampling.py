"""Drawing the next token: greedy or random, from the top k or top p, with penalties on repetition and noise for each row."""

import torch
from torch import Tensor

from scope.models.text.sampling_config import SamplingConfig

_OFTEN_ENOUGH = 1024  # tokens that nearly always hold top_p of the probability: finding them is cheaper than sorting all


class Sampler:
    """Draws one token a row. Row i has its own noise, so a text does not depend on what else is in the batch; with
    `noise_rows` None all draw from torch's global generator, and what TransformerLens draws from it."""

    def __init__(self, prompts: list[list[int]], d_vocab: int, sampling: SamplingConfig, noise_rows: int | None):
        self.sampling, self.seeded = sampling, noise_rows is not None
        self.noise = [torch.Generator() for _ in prompts if self.seeded]
        for i, generator in enumerate(self.noise):
            generator.manual_seed((int(sampling.seed) * 1_000_003 + i % noise_rows) % 2**63)
        self.seen = torch.zeros(len(prompts), d_vocab, dtype=torch.bool)
        for row, prompt in zip(self.seen, prompts, strict=True):
            row[prompt] = True
        # How often each token stands there, only where that is asked for.
        self.times = torch.zeros(len(prompts), d_vocab) if sampling.freq_penalty else None
        for i, prompt in enumerate(prompts if self.times is not None else ()):
            self.times[i] = torch.bincount(torch.tensor(prompt), minlength=d_vocab)

    def draw(self, logits: Tensor) -> list[int]:
        """Tokens for logits [batch vocab], by adding Gumbel noise (minus the log of an exponential): conditions with one noise
        differ only where their scores do."""
        s = self.sampling
        if s.repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = torch.where(self.seen, penalised, logits)
        logits = logits / s.temperature if s.temperature > 0 else logits
        if self.times is not None:
            logits = logits - s.freq_penalty * self.times
        if s.temperature > 0:
            logits = _keep_likely(logits, s.top_k, s.top_p)
            if not self.seeded:
                return self._noted(torch.multinomial(logits.softmax(1), 1)[:, 0])
            noise = [torch.empty(logits.shape[1]).exponential_(generator=g) for g in self.noise]
            logits = logits - torch.stack(noise).log_()
        return self._noted(logits.argmax(1))

    def _noted(self, tokens: Tensor) -> list[int]:
        """The tokens, counted for the penalties of the next step."""
        if self.sampling.repetition_penalty != 1:
            self.seen[torch.arange(len(tokens)), tokens] = True
        if self.times is not None:
            self.times[torch.arange(len(tokens)), tokens] += 1
        return tokens.tolist()


def _keep_likely(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """-inf outside a row's top_k likeliest tokens and outside the likeliest that together hold top_p of the probability."""
    if top_k is not None and top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        p = logits.softmax(1)
        likely, order = p.topk(min(_OFTEN_ENOUGH, p.shape[1]), dim=1)
        if (likely.sum(1) < top_p).any():  # a flat distribution: then all of it must be sorted
            likely, order = p.sort(dim=1, descending=True)
        keep = likely.cumsum(1) - likely < top_p
        logits = logits.masked_fill(~torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, keep), -torch.inf)
    return logits
