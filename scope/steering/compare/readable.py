"""Chooses the latent that shows best what steering does, by the texts it makes and not by its effect on the next token alone.

A latent with a large effect may write one word over and over; one with a smaller effect may change what a text is about.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from scope.models.face import LanguageModel
from scope.models.text.sampling_config import SamplingConfig
from scope.sae.base import SAE
from scope.steering.compare.steer import steer
from scope.steering.edits.interventions import Add

PROMPTS = ("The story begins with", "We sat down and", "I would like to")
"""What is steered to choose by. Show the choice on other prompts: on these it was the best of many."""

STRENGTHS = (0.3, 0.45)


@dataclass(frozen=True)
class Readable:
    """A latent and a strength, with the mean score of the texts it makes: concept, relevance and fluency, 0 to 1 (`Judged`)."""

    latent: int
    strength: float
    score: float
    text: str
    """The best of its texts, with the prompt."""


def most_readable(
    model: LanguageModel,
    sae: SAE,
    latents: Iterable[int],
    prompts: Sequence[str] = PROMPTS,
    strengths: Sequence[float] = STRENGTHS,
    sampling: SamplingConfig | None = None,
) -> list[Readable]:
    """Steer with each latent at the first strength, and with the better half at the others; best score first.

    Raises:
        EditError: an unknown latent. DictionaryError: the SAE does not fit the model.
    """
    sampling = sampling or SamplingConfig(max_new_tokens=32, seed=1)

    def of(latent: int, strength: float) -> Readable:
        run = steer(model, sae, [Add(latent, strength)], list(prompts), sampling, ("plain", "steered"))
        scores = [0.0 if judged is None else judged.score for judged in run.judged()["steered"]]
        best = run["steered"].samples[max(range(len(scores)), key=scores.__getitem__)]
        return Readable(latent, strength, fmean(scores), best.prompt + best.text)

    def by_score(found: list[Readable]) -> list[Readable]:
        return sorted(found, key=lambda each: -each.score)

    found = by_score([of(latent, strengths[0]) for latent in latents])
    better = [each.latent for each in found[: -(-len(found) // 2)]]
    return by_score(found + [of(latent, strength) for strength in strengths[1:] for latent in better])
