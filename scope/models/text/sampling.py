"""How the next token is drawn: greedily or by chance, among the likely ones, against repetition, with noise of its own."""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from scope.errors import ConfigError

_OFTEN_ENOUGH = 1024  # tokens that nearly always hold top_p of the probability: finding them is cheaper than sorting all


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn."""

    max_new_tokens: int = 64
    """Tokens to add at most; the end of the context may come first."""

    temperature: float = 0.7
    """0 takes the likeliest token; 1 draws from the model's own distribution."""

    top_k: int | None = None
    """Draw among this many likeliest tokens only."""

    top_p: float | None = 0.95
    """Draw among the likeliest tokens that together hold this share of the probability."""

    repetition_penalty: float = 1.1
    """Divides the score of tokens that were already said; 1 leaves them alone."""

    freq_penalty: float = 0.0
    """Taken from a token's score for each time that it stands in the prompt or was said, after division by the temperature."""

    seed: int = 0
    """Of the noise. The same seed gives the same text on the same machine."""

    stop: tuple[str, ...] = ()
    """Strings that end a text as soon as they appear in it."""

    stop_at_eos: bool = True
    """Whether an end token, or the end of a turn, ends the text; if not, it is written like any other."""

    def __post_init__(self):
        for name in ("max_new_tokens", "top_k", "seed"):
            if not isinstance(getattr(self, name), Integral) and not (name == "top_k" and self.top_k is None):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be a whole number.")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; ask for at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 or more.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; it must be at least 1, or None.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must lie above 0 and at most at 1, or be None.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0, and 1 turns it off.")
        if not abs(self.freq_penalty) < float("inf"):
            raise ConfigError(f"freq_penalty is {self.freq_penalty}; it must be a finite number, and 0 turns it off.")
        if isinstance(self.stop, str):  # its letters would be stop strings, one by one
            raise ConfigError(f"stop is {self.stop!r}; give stop strings as a tuple, such as ({self.stop!r},).")
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise ConfigError(f"stop is {self.stop!r}; an empty string, or what is none, cannot end a text.")


class Sampler:
    """Draws one token a row. Row i has its own noise, so a text does not depend on what else is in the batch."""

    def __init__(self, prompts: list[list[int]], d_vocab: int, sampling: SamplingConfig, noise_rows: int):
        self.sampling = sampling
        self.noise = [torch.Generator() for _ in prompts]
        for i, generator in enumerate(self.noise):
            generator.manual_seed((int(sampling.seed) * 1_000_003 + i % noise_rows) % 2**63)
        self.said = torch.zeros(len(prompts), d_vocab, dtype=torch.bool)
        for row, prompt in zip(self.said, prompts, strict=True):
            row[prompt] = True
        # How often each token stands there, only where that is asked for.
        self.times = torch.zeros(len(prompts), d_vocab) if sampling.freq_penalty else None
        for i, prompt in enumerate(prompts if self.times is not None else ()):
            self.times[i] = torch.bincount(torch.tensor(prompt), minlength=d_vocab)

    def draw(self, logits: Tensor) -> list[int]:
        """Tokens for logits [batch vocab], by adding Gumbel noise (minus the log of an exponential): arms with one noise
        differ only where their scores do."""
        s = self.sampling
        if s.repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = torch.where(self.said, penalised, logits)
        logits = logits / s.temperature if s.temperature > 0 else logits
        if self.times is not None:
            logits = logits - s.freq_penalty * self.times
        if s.temperature > 0:
            logits = _keep_likely(logits, s.top_k, s.top_p)
            noise = [torch.empty(logits.shape[1]).exponential_(generator=g) for g in self.noise]
            logits = logits - torch.stack(noise).log_()
        tokens = logits.argmax(1)
        if s.repetition_penalty != 1:
            self.said[torch.arange(len(tokens)), tokens] = True
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
