"""`model.generate(...)` under TransformerLens' name and arguments, with what that one lacks: chat turns, streaming, seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from scope.errors import ConfigError, TokensError
from scope.models.face import LanguageModel
from scope.models.text.generate import Beside, Generation, OnText, OnToken, Prompts, generate, prompt_ids
from scope.models.text.prompts import Side
from scope.models.text.sampling_config import SamplingConfig

Turns = list[dict[str, str]]


class GenerateApi:
    """For a language model of ours."""

    def generate(
        self,
        input: Prompts | Sequence[int] | Turns | list[Turns] = "",
        max_new_tokens: int = 10,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        freq_penalty: float = 0.0,
        do_sample: bool = True,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        prepend_bos: bool | None = True,
        padding_side: Side | None = None,
        use_past_kv_cache: bool = True,
        return_type: str = "input",
        on_text: OnText | None = None,
        on_token: OnToken | None = None,
        fwd_hooks: Sequence = (),
        verbose: bool = False,
        beside: Beside | None = None,
    ) -> str | list[str] | list[int] | list[list[int]] | Tensor | list[Generation]:
        """Continue text, texts or tokens (rows of unequal length too), or answer chat turns laid out by the model's template.

        What comes back looks like what went in, prompt included: text for text, ids for ids, a tensor for what a tokenizer
        returns; a tensor is filled with the end token after a row's end. Turns [{"role": "user", "content": ...}] are answered
        with the reply alone. `return_type` "str", "tokens" or "generations" (ids, new text, why it ended) asks for one of these
        whatever went in. do_sample=False, like temperature 0, takes the likeliest token. Without a `seed` the noise is torch's,
        as in TransformerLens: every call draws another text, and `torch.manual_seed` repeats it; a `seed` gives its text again
        whatever was drawn before. Hooks that are installed, or given here, act on prompt and new tokens. `on_text(row, piece)`
        streams; returning True ends the generation. `eos_token_id`, one or several, end a text in place of the model's own.
        `verbose` and `padding_side` are taken for TransformerLens' sake: nothing is drawn, and on which side rows are padded
        changes no text.

        Raises:
            TokensError: an empty prompt, one that fills the context, or turns for a model without a chat template.
            ConfigError: a sampling setting or return_type that cannot be.
            EditError: the logits are not finite.
        """
        kinds = ("input", "str", "tokens", "generations")
        if return_type not in kinds:
            raise ConfigError(f"return_type is {return_type!r}; it can be {', '.join(kinds)}.")
        if padding_side not in ("left", "right", None):
            raise ConfigError(f'padding_side is {padding_side!r}; it can be "left" or "right".')
        ends = (eos_token_id,) if isinstance(eos_token_id, int) else eos_token_id
        if ends is not None and (not ends or not all(0 <= end < self.cfg.d_vocab for end in ends)):
            raise ConfigError(f"eos_token_id is {eos_token_id!r}; give ids from 0 to {self.cfg.d_vocab - 1}, or None.")
        sampling = SamplingConfig(
            max_new_tokens=max_new_tokens,
            temperature=float(temperature) if do_sample else 0.0,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            freq_penalty=float(freq_penalty),
            seed=seed or 0,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_at_eos=stop_at_eos,
        )
        one, rows, kind = _read_input(self, input, self.begins(prepend_bos))
        options = {
            "beside": beside,
            "fwd_hooks": fwd_hooks,
            "on_token": on_token,
            "on_text": on_text,
            "use_cache": use_past_kv_cache,
        }
        generations = generate(self, rows, sampling, **options, ends=ends, seeded=seed is not None)
        kind = kind if return_type == "input" else return_type
        if kind == "generations":
            return generations
        if kind == "tokens":
            whole = [[*g.prompt_ids, *g.new_ids] for g in generations]
            longest = max(map(len, whole))
            end = ends[0] if ends else self.cfg.eos[0]
            return torch.tensor([row + [end] * (longest - len(row)) for row in whole], device=self.device)
        if kind == "ids":
            outputs = [[*g.prompt_ids, *g.new_ids] for g in generations]
        elif kind == "reply":
            outputs = [g.text for g in generations]
        else:
            outputs = [self.words.decode([*g.prompt_ids, *g.new_ids]) for g in generations]
        return outputs[0] if one else outputs


def _read_input(
    model: LanguageModel, input: Prompts | Sequence[int] | Turns | list[Turns], prepend_bos: bool
) -> tuple[bool, list, str]:
    """(whether one thing went in rather than a list, the rows of ids, what should come back)."""
    if isinstance(input, np.ndarray):
        input = torch.as_tensor(input)
    if isinstance(input, Tensor | Mapping):
        return False, prompt_ids(model, input), "tokens"
    several = isinstance(input, list | tuple)
    if not isinstance(input, str) and not (several and all(isinstance(x, str | dict | int | Sequence | Tensor) for x in input)):
        raise TokensError(f"A prompt is text, chat turns, or a row of token ids; this is {str(input)[:60]!r}.")
    one = isinstance(input, str) or (len(input) > 0 and isinstance(input[0], dict | int))
    items = [input] if one else list(input)
    if items and isinstance(items[0], str):
        rows = [model.words.encode(text, bos=prepend_bos) for text in items]
        return one, prompt_ids(model, rows), "str"
    if items and len(items[0]) and isinstance(items[0][0], dict):
        return one, prompt_ids(model, [model.words.chat(turns) for turns in items]), "reply"
    return one, prompt_ids(model, items), "ids"
