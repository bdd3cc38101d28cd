"""Text from a model: cached, batched, streamed, seeded, with whatever hooks are asked for at work on every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scope.errors import ConfigError, EditError, TokensError
from scope.models.gemma.model import Gemma

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Tensor
_OFTEN_ENOUGH = 1024  # tokens that nearly always hold top_p of the probability: finding them is cheaper than sorting all
OnToken = Callable[[int, list[int | None]], bool | None]


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

    seed: int = 0
    """Of the noise. The same seed gives the same text on the same machine."""

    stop: tuple[str, ...] = ()
    """Strings that end a text as soon as they appear in it."""

    def __post_init__(self):
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


@dataclass(frozen=True)
class Generation:
    """One text. `stopped_by` is "eos", "stop", "length", "context" or "cancelled"; `new_ids` holds no end token."""

    prompt_ids: tuple[int, ...]
    new_ids: tuple[int, ...]
    text: str
    stopped_by: str


@torch.no_grad()
def generate(
    model: Gemma,
    prompts: Prompts,
    sampling: SamplingConfig | None = None,
    *,
    fwd_hooks: Sequence = (),
    on_token: OnToken | None = None,
    noise_rows: int | None = None,
    use_cache: bool = True,
) -> list[Generation]:
    """Continue each prompt (text, or ids with <bos>); hooks act on prompt and new tokens, positions in `hook.run` are absolute.

    Row i draws its noise from (seed, i % noise_rows): with noise_rows=n, a batch of several arms of n prompts gives every
    arm the same noise. `on_token(step, ids)` sees each step (None where a row has ended) and stops all by returning True.

    Raises:
        TokensError: an empty prompt, or one that leaves no room in the context.
        EditError: the logits are not finite, as after a far too strong edit.
    """
    sampling = sampling or SamplingConfig()
    rows = _prompt_ids(model, prompts)
    longest = max(map(len, rows))
    if longest >= model.cfg.n_ctx:
        raise TokensError(
            f"The prompt has {longest} tokens; this model takes {model.cfg.n_ctx - 1} and adds at least one. Cut it."
        )
    pad = [longest - len(row) for row in rows]
    tokens = torch.tensor([[model.cfg.pad] * n + row for n, row in zip(pad, rows, strict=True)], device=model.device)
    real = torch.tensor([[False] * n + [True] * len(row) for n, row in zip(pad, rows, strict=True)], device=model.device)
    writers = [_Writer(model, row, sampling.stop) for row in rows]
    sampler = _Sampler(rows, model.cfg.d_vocab, sampling, noise_rows or len(rows))
    cache = model.new_cache() if use_cache else None
    model.run.prompt_lengths = real.sum(1)
    try:
        with model.hooks(fwd_hooks):
            new, new_real = tokens, real
            for step in range(min(sampling.max_new_tokens, model.cfg.n_ctx - longest)):
                fed, fed_real = (new, new_real) if use_cache else (tokens, real)
                logits = _last_logits(model, fed, fed_real, cache)
                if not torch.isfinite(logits).all():
                    raise EditError(
                        f"The logits of step {step} are not finite"
                        + (": an edit is far too strong. Lower its strength." if fwd_hooks else "; the weights may be damaged.")
                    )
                drawn = sampler.draw(logits.cpu())
                said = [None if w.stopped_by else w.take(token) for w, token in zip(writers, drawn, strict=True)]
                cancelled = bool(on_token and on_token(step, said))
                if cancelled or all(w.stopped_by for w in writers):
                    break
                new = torch.tensor([[model.cfg.eos[0] if i is None else i] for i in said], device=model.device)
                new_real = torch.ones_like(new, dtype=torch.bool)
                tokens, real = torch.cat([tokens, new], 1), torch.cat([real, new_real], 1)
    finally:
        model.run.prompt_lengths = None
    room = sampling.max_new_tokens <= model.cfg.n_ctx - longest
    return [w.finish("cancelled" if cancelled else "length" if room else "context") for w in writers]


def _last_logits(model: Gemma, tokens: Tensor, real: Tensor, cache) -> Tensor:
    """Logits of the last position only: the unembedding of all the others would be thrown away."""
    stream = model(tokens, attention_mask=real, cache=cache, stop_at_layer=model.cfg.n_layers)
    return model.unembed(stream[:, -1:])[:, 0].float()


def _prompt_ids(model: Gemma, prompts: Prompts) -> list[list[int]]:
    if isinstance(prompts, Tensor):
        prompts = prompts.reshape(-1, prompts.shape[-1]).tolist()
    if isinstance(prompts, str):
        prompts = [prompts]
    rows = [model.words.encode(p) if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    if not rows or not all(rows):
        raise TokensError("A prompt is empty. Give at least a <bos>, or some text.")
    return rows


class _Sampler:
    """Draws one token a row. Row i has its own noise, so a text does not depend on what else is in the batch."""

    def __init__(self, prompts: list[list[int]], d_vocab: int, sampling: SamplingConfig, noise_rows: int):
        self.sampling = sampling
        self.noise = [torch.Generator() for _ in prompts]
        for i, generator in enumerate(self.noise):
            generator.manual_seed((sampling.seed * 1_000_003 + i % noise_rows) % 2**63)
        self.said = torch.zeros(len(prompts), d_vocab, dtype=torch.bool)
        for row, prompt in zip(self.said, prompts, strict=True):
            row[prompt] = True

    def draw(self, logits: Tensor) -> list[int]:
        """Tokens for logits [batch vocab], by adding Gumbel noise (minus the log of an exponential): arms with one noise
        differ only where their scores do."""
        s = self.sampling
        if s.repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = torch.where(self.said, penalised, logits)
        if s.temperature > 0:
            logits = _keep_likely(logits / s.temperature, s.top_k, s.top_p)
            noise = [torch.empty(logits.shape[1]).exponential_(generator=g) for g in self.noise]
            logits = logits - torch.stack(noise).log_()
        tokens = logits.argmax(1)
        self.said[torch.arange(len(tokens)), tokens] = True
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


class _Writer:
    """One row of the batch: its prompt, its text so far, and why it ended."""

    def __init__(self, model: Gemma, prompt: list[int], stop: tuple[str, ...]):
        self.prompt, self.stop, self.ids, self.stopped_by = prompt, stop, [], ""
        self.words = model.tokenizer
        end_of_turn = self.words.backend.token_to_id("<end_of_turn>") if self.words else None
        self.ends = {*model.cfg.eos, end_of_turn}

    def take(self, token: int) -> int | None:
        """Keep a drawn token; None when it ends the text."""
        if token in self.ends:
            self.stopped_by = "eos"
            return None
        self.ids.append(token)
        if self.stop and self.words and any(end in self.words.decode(self.ids) for end in self.stop):
            self.stopped_by = "stop"
        return token

    def finish(self, otherwise: str) -> Generation:
        text = self.words.decode(self.ids) if self.words else ""
        return Generation(tuple(self.prompt), tuple(self.ids), text, self.stopped_by or otherwise)
