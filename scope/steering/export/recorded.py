"""Test texts of an intervention: prompts continued greedily without and with the edits, to be written again elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from scope.models.face import LanguageModel
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import Resolved
from scope.steering.compare.text_scorer import as_generation


@dataclass(frozen=True)
class Continuation:
    """New tokens of greedy generation, without the one that ended it. `lead` is the smallest difference between the logit of a
    token that was written and the next best: other arithmetic changes no text whose lead exceeds its rounding."""

    ids: tuple[int, ...]
    text: str
    stopped_by: str
    lead: float


@dataclass(frozen=True)
class RecordedText:
    """One prompt with its continuations."""

    prompt: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    plain: Continuation
    steered: Continuation


@torch.no_grad()
def record_texts(
    model: LanguageModel,
    saes: Mapping[str, SAE],
    edits: Sequence[Resolved],
    prompts: Sequence[str],
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
) -> tuple[RecordedText, ...]:
    """Each prompt alone, so that no padding enters, continued greedily without a repetition penalty."""
    greedy = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.0, repetition_penalty=1.0)
    recorded = []
    for i, prompt in enumerate(prompts):
        both = [_continued(model, prompt, greedy, hooked, saes, edits) for hooked in (False, True)]
        recorded.append(RecordedText(prompt, tuple(model.words.encode(prompt)), max_new_tokens, *both))
        if on_progress:
            on_progress(i + 1, len(prompts), {})
    return tuple(recorded)


def _continued(
    model: LanguageModel, prompt: str, greedy: SamplingConfig, steered: bool, saes: Mapping[str, SAE], edits: Sequence[Resolved]
) -> Continuation:
    def hooks() -> list:
        return Editing(model, saes, edits).hooks() if steered else []

    (made,) = generate(model, prompt, greedy, fwd_hooks=hooks())
    tokens = torch.tensor([[*made.prompt_ids, *made.new_ids]], device=model.device)
    with as_generation(model, len(made.prompt_ids)):
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks())[0, len(made.prompt_ids) - 1 :].float()
    best = logits.topk(2, dim=-1).values[: max(1, len(made.new_ids))]
    return Continuation(made.new_ids, made.text, made.stopped_by, round(float((best[:, 0] - best[:, 1]).min()), 6))
