"""A model of ours, with hooks, as a language model of lm-evaluation-harness.

What it scores is what the harness's own HFLM scores on the same weights: texts begin with <bos>, a context that is too long is
cut on the left, a continuation is scored after its context in one run, and a rolling log-likelihood reads windows that begin
after a <bos> of their own (of which HFLM writes a second one before a Gemma's text, and so does this).

For rules of positions the context of a request counts as the prompt and its continuation as generated; what is scored without a
context counts as `texts_count_as` says.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from scope.errors import ConfigError
from scope.models.face import LanguageModel
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig

OnRequest = Callable[[int], None]
"""Called with the number of requests that were just answered."""


def harness_model(
    model: LanguageModel,
    fwd_hooks: Sequence = (),
    *,
    batch_size: int = 8,
    texts_count_as: str = "prompt",
    on_request: OnRequest | None = None,
) -> Any:
    """An `lm_eval.api.model.LM` that runs `model` with the hooks.

    Raises:
        ConfigError: lm-evaluation-harness is not installed.
    """
    return _class()(model, list(fwd_hooks), batch_size, texts_count_as, on_request or (lambda n: None))


def require_harness() -> None:
    """
    Raises:
        ConfigError: lm-evaluation-harness is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Tasks are run by lm-evaluation-harness, which is not installed: pip install 'scope-workbench[lm-eval]'"
        ) from None


@cache
def _class() -> type:
    """The class, made where the harness is first used: importing it takes seconds."""
    require_harness()
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class HookedLM(TemplateLM):
        def __init__(self, model: Any, hooks: list, batch_size: int, texts_count_as: str, on_request: OnRequest):
            super().__init__()
            self.model, self.hooks, self.batch_size, self.on_request = model, hooks, batch_size, on_request
            self.texts_count_as = texts_count_as
            self.tokenizer = model.words
            self._device = model.device

        @property
        def eot_token_id(self) -> int:
            return self.model.cfg.eos[0]

        @property
        def prefix_token_id(self) -> int:
            return self.model.cfg.bos

        @property
        def max_length(self) -> int:
            return self.model.cfg.n_ctx

        @property
        def max_gen_toks(self) -> int:
            return 256

        @property
        def tokenizer_name(self) -> str:
            return self.model.words.sha256

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return (self.model.words.chat_template or "") if chat_template else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return self.model.words.chat(chat_history, add_generation_prompt)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return self.model.words.encode(string, bos=add_special_tokens is not False)

        @torch.no_grad()
        def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
            answers: list[Any] = [None] * len(requests)
            order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                for i, answer in zip(part, self._scored([requests[i] for i in part]), strict=True):
                    answers[i] = answer
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                self.on_request(len(part))
            return answers

        def _scored(self, requests: list) -> list[tuple[float, bool]]:
            """(log-probability of the continuation, whether each of its tokens is the likeliest) of a few requests at once."""
            model = self.model
            for _, _, continuation in requests:
                if not 0 < len(continuation) <= self.max_length:
                    raise ConfigError(f"A continuation has {len(continuation)} tokens; it can have 1 to {self.max_length}.")
            read = [(context + rest)[-(self.max_length + 1) :][:-1] for _, context, rest in requests]
            width = max(map(len, read))
            tokens = torch.full((len(read), width), model.cfg.pad, dtype=torch.long, device=model.device)
            real = torch.zeros_like(tokens, dtype=torch.bool)
            for row, mask, ids in zip(tokens, real, read, strict=True):
                row[: len(ids)], mask[: len(ids)] = torch.tensor(ids, device=model.device), True
            rolling = self.texts_count_as == "prompt"
            lengths = [
                len(ids) if key is None and rolling else len(ids) - len(rest) + 1
                for ids, (key, _, rest) in zip(read, requests, strict=True)
            ]
            model.run.prompt_lengths = torch.tensor(lengths, device=model.device)
            try:
                with model.hooks(self.hooks):
                    mask = None if bool(real.all()) else real
                    stream = model(tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers)
            finally:
                model.run.prompt_lengths = None
            scores = []
            for row, ids, (_, _, rest) in zip(stream, read, requests, strict=True):
                log_p = model.logits_of(row[None, len(ids) - len(rest) : len(ids)])[0].float().log_softmax(-1)
                wanted = torch.tensor(rest, device=log_p.device)
                greedy = bool((log_p.argmax(-1) == wanted).all())
                scores.append((float(log_p.gather(1, wanted[:, None]).sum()), greedy))
            return scores

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
            sums = []
            for request in requests:
                (string,) = request.args
                settings = {"prefix_token": self.prefix_token_id, "max_seq_len": self.max_length, "context_len": 1}
                windows = get_rolling_token_windows(token_list=self.tok_encode(string), **settings)
                rows = [(None, *make_disjoint_window(window)) for window in windows]
                counted, self.on_request = self.on_request, lambda n: None
                try:
                    total = sum(score for score, _ in self._loglikelihood_tokens(rows))
                finally:
                    self.on_request = counted
                self.on_request(1)
                self.cache_hook.add_partial("loglikelihood_rolling", (string,), total)
                sums.append(total)
            return sums

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            answers: list[Any] = [None] * len(requests)
            groups: dict[str, list[int]] = {}
            for i, request in enumerate(requests):
                groups.setdefault(repr(request.args[1]), []).append(i)
            for places in groups.values():
                places.sort(key=lambda i: -len(self.tok_encode(requests[i].args[0])))
                for start in range(0, len(places), self.batch_size):
                    part = places[start : start + self.batch_size]
                    contexts = [requests[i].args[0] for i in part]
                    for i, text in zip(part, self._written(contexts, requests[part[0]].args[1]), strict=True):
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    self.on_request(len(part))
            return answers

        def _written(self, contexts: list[str], gen_kwargs: dict[str, Any]) -> list[str]:
            model, settings = self.model, dict(normalize_gen_kwargs(dict(gen_kwargs), self.max_gen_toks))
            eos = model.words.decode([self.eot_token_id], skip_special=False)
            stop = handle_stop_sequences(settings.pop("until", None), eos=eos)
            most = settings.pop("max_gen_toks")
            room = self.max_length - most
            if room < 1:
                raise ConfigError(
                    f"The task asks for up to {most} new tokens, and this model's context holds {self.max_length}.\n"
                    "  Give the task fewer: generation_kwargs: max_gen_toks: 64 in its YAML."
                )
            drawn = {name: settings[name] for name in ("top_k", "top_p") if settings.get("do_sample") and name in settings}
            sampling = SamplingConfig(
                max_new_tokens=most,
                temperature=float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0,
                repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
                stop=tuple(s for s in stop if s and s != eos),
                **({"top_p": None} | drawn),
            )
            rows = [self.tok_encode(context)[-room:] for context in contexts]
            texts = [g.text for g in generate(model, rows, sampling, fwd_hooks=self.hooks)]
            return [postprocess_generated_text(text, stop, None) for text in texts]

    return HookedLM
