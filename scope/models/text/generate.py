"""Generating text: cached, batched, streamed and seeded, with hooks that act on every step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from scope.activations.corpus.infill import MARKS
from scope.errors import EditError, TokensError
from scope.models.face import LanguageModel
from scope.models.parts.mask import as_mask
from scope.models.text.encodings import read_encoding
from scope.models.text.sampling import Sampler
from scope.models.text.sampling_config import SamplingConfig, sampling_of

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Tensor | Mapping[str, Any]
OnToken = Callable[[int, list[int | None]], bool | None]
Beside = Callable[[Tensor, int], Mapping[str, Any]]
OnText = Callable[[int, str], bool | None]


@dataclass(frozen=True)
class Generation:
    """One text. `stopped_by` is "eos", "stop", "length", "context" or "cancelled"; `new_ids` holds no end token."""

    prompt_ids: tuple[int, ...]
    new_ids: tuple[int, ...]
    text: str
    stopped_by: str


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Prompts,
    sampling: SamplingConfig | None = None,
    *,
    n: int = 1,
    fwd_hooks: Sequence = (),
    on_token: OnToken | None = None,
    on_text: OnText | None = None,
    noise_rows: int | None = None,
    use_cache: bool = True,
    ends: Sequence[int] | None = None,
    seeded: bool = True,
    beside: Beside | None = None,
    **settings: Any,
) -> list[Generation]:
    """Continue each prompt (text, or ids with <bos>), `n` times; `settings` are those of `SamplingConfig`, as
    `generate(model, "Hello", max_new_tokens=20, temperature=0)`. `model.generate` and `lab.generate` take the same and call it.

    Hooks act on prompt and new tokens, positions in `hook.run` are absolute.
    Row i draws its noise from (seed, i % noise_rows): with noise_rows=n, a batch of several conditions of n prompts gives every
    condition the same noise. `on_token(step, ids)` is called at each step (None where a row has ended), `on_text(row, piece)`
    with the text as it grows, in whole characters; either stops all by returning True. `ends` are ids that end a text, in
    place of the model's. With `seeded` False the noise is that of torch's global generator, as `torch.manual_seed` leaves it.
    `beside(tokens, step)` gives what the model takes beside the tokens of a step, such as pictures.

    Raises:
        TokensError: an empty prompt, or one that leaves no room in the context.
        ConfigError: a setting that does not exist or cannot be.
        EditError: the logits are not finite, as after a far too strong edit.
    """
    sampling = sampling_of(sampling, settings)
    rows = [row for row in prompt_ids(model, prompts) for _ in range(n)]
    longest = max(map(len, rows))
    if longest >= model.cfg.n_ctx:
        raise TokensError(
            f"The prompt has {longest} tokens; this model takes {model.cfg.n_ctx - 1} and adds at least one. Cut it."
        )
    pad = [longest - len(row) for row in rows]
    tokens = torch.tensor([[model.cfg.pad] * n + row for n, row in zip(pad, rows, strict=True)], device=model.device)
    real = torch.tensor([[False] * n + [True] * len(row) for n, row in zip(pad, rows, strict=True)], device=model.device)
    model.check(tokens)
    writers = [_Writer(model, row, sampling, ends) for row in rows]
    sampler = Sampler(rows, model.cfg.d_vocab, sampling, (noise_rows or len(rows)) if seeded else None)
    cache = model.new_cache() if use_cache else None
    model.run.prompt_lengths = real.sum(1)
    try:
        with model.hooks(fwd_hooks):
            new, new_real = tokens, real
            for step in range(min(sampling.max_new_tokens, model.cfg.n_ctx - longest)):
                fed, fed_real = (new, new_real) if use_cache else (tokens, real)
                more = beside(fed, step) if beside else {}
                logits = _last_logits(model, fed, fed_real if any(pad) else None, cache, more)
                if not torch.isfinite(logits).all():
                    raise EditError(f"The logits of step {step} are not finite: {_why_not_finite(model, bool(fwd_hooks))}")
                drawn = sampler.draw(logits.cpu())
                new_ids = [None if w.stopped_by else w.take(token) for w, token in zip(writers, drawn, strict=True)]
                cancelled = bool(on_token and on_token(step, new_ids))
                if on_text:
                    pieces = [(row, w.piece()) for row, w in enumerate(writers)]
                    answers = [on_text(row, piece) for row, piece in pieces if piece]
                    cancelled |= any(answers)
                if cancelled or all(w.stopped_by for w in writers):
                    break
                new = torch.tensor([[model.cfg.eos[0] if i is None else i] for i in new_ids], device=model.device)
                new_real = torch.ones_like(new, dtype=torch.bool)
                if any(pad) or not use_cache:
                    tokens, real = torch.cat([tokens, new], 1), torch.cat([real, new_real], 1)
            if on_text:  # what waited for the rest of a character
                for row, w in enumerate(writers):
                    if rest := w.piece(last=True):
                        on_text(row, rest)
    finally:
        model.run.prompt_lengths = None
    room = sampling.max_new_tokens <= model.cfg.n_ctx - longest
    return [w.finish("cancelled" if cancelled else "length" if room else "context") for w in writers]


def _why_not_finite(model: LanguageModel, edited: bool) -> str:
    """Weights are checked when they are loaded, so numbers overflow: by an edit, or by the range of float16."""
    edited = edited or any(point.has_hooks() for point in model.hook_dict.values())
    if model.dtype == torch.float16:
        cause = "an edit is far too strong, or numbers" if edited else "numbers"
        return f"{cause} exceed 65504, the largest of float16.\n  Load the model in bfloat16 or float32."
    if edited:
        return "an edit is far too strong. Lower its strength."
    return "the weights hold or make numbers beyond the range of their type.\n  Load the checkpoint anew, in float32."


def _last_logits(model: LanguageModel, tokens: Tensor, real: Tensor | None, cache, more: Mapping[str, Any]) -> Tensor:
    """Logits of the last position only: the unembedding of all the others would be thrown away."""
    stream = model(tokens, attention_mask=real, cache=cache, stop_at_layer=model.cfg.n_layers, **more)
    return model.logits_of(stream[:, -1:])[:, 0].float()


def prompt_ids(model: LanguageModel, prompts: Prompts) -> list[list[int]]:
    if (encoding := read_encoding(prompts, model.cfg.pad)) is not None:
        ids, mask = encoding
        prompt_ids(model, ids)  # whole numbers
        prompts = ids.tolist() if mask is None else [row[keep].tolist() for row, keep in zip(ids, as_mask(mask), strict=True)]
    if isinstance(prompts, Tensor):
        if prompts.is_floating_point() or prompts.dtype == torch.bool or prompts.dim() not in (1, 2):
            kind = str(prompts.dtype).removeprefix("torch.")
            raise TokensError(f"Tokens are whole numbers [batch pos]; these are {kind} of shape {tuple(prompts.shape)}.")
        prompts = (prompts[None] if prompts.dim() == 1 else prompts).tolist()
    if isinstance(prompts, str):
        prompts = [prompts]
    try:
        rows = [model.words.encode(p) if isinstance(p, str) else [index(i) for i in p] for p in prompts]
        torch.tensor([max(row, key=abs) for row in rows if row], dtype=torch.long)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TokensError(f"A prompt is text, or a row of token ids; this is {str(prompts)[:60]!r}.") from None
    if isinstance(prompts, bytes):
        raise TokensError("A prompt is text, and these are bytes. Decode them first.")
    if not rows or not all(rows):
        raise TokensError("A prompt is empty. Give at least a <bos>, or some text.")
    return rows


def end_ids(model: LanguageModel) -> set[int | None]:
    """The tokens that end a text, where no others are named: <eos>, and the end of a turn or of the middle of a file in a model
    that has these marks."""
    words, marks = model.tokenizer, ("<end_of_turn>", *MARKS.values())
    return {*model.cfg.eos, *({words.backend.token_to_id(mark) for mark in marks} if words else set())}


class _Writer:
    """One row of the batch: its prompt, its text so far, and why it ended."""

    def __init__(self, model: LanguageModel, prompt: list[int], sampling: SamplingConfig, ends: Sequence[int] | None = None):
        self.prompt, self.stop, self.ids, self.stopped_by = prompt, sampling.stop, [], ""
        self.words = model.tokenizer
        usual = end_ids(model) if ends is None else set(ends)
        self.ends = usual if sampling.stop_at_eos else set()
        self.tail = 8 + 4 * max(map(len, sampling.stop), default=0)  # tokens: a character may be four of them
        self.n_streamed = 0  # characters that on_text was given
        self.settled, self.settled_ids = "", 0  # text that no later token changes, and how many tokens it took

    def take(self, token: int) -> int | None:
        """Keep a drawn token; None when it ends the text."""
        if token in self.ends:
            self.stopped_by = "eos"
            return None
        self.ids.append(token)
        if self.stop and self.words:
            end = self.words.decode(self.ids[-self.tail :])
            if any(stop in end for stop in self.stop):
                self.stopped_by = "stop"
        return token

    def piece(self, last: bool = False) -> str:
        """The text since the last call; what is spelled in bytes waits until they end, unless this is the `last` call: as long
        as more may come, they may still become other characters."""
        if self.words is None or not self.ids or (not last and self._ends_in_bytes()):
            return ""
        text = self.settled + self.words.decode(self.ids[self.settled_ids :])
        if len(self.ids) - self.settled_ids > 64:  # decode only what is new, or a long text would cost its square
            self.settled, self.settled_ids = text, len(self.ids)
        piece, self.n_streamed = text[self.n_streamed :], max(self.n_streamed, len(text))
        return piece

    def _ends_in_bytes(self) -> bool:
        """Whether the text's end is spelled in bytes: control tokens after them are left out of the text, and end no bytes."""
        written = next((i for i in reversed(self.ids) if i not in self.words.special_ids), None)
        return written is not None and self.words.pieces([written])[0].startswith("<0x")

    def finish(self, otherwise: str) -> Generation:
        text = self.words.decode(self.ids) if self.words else ""
        return Generation(tuple(self.prompt), tuple(self.ids), text, self.stopped_by or otherwise)
