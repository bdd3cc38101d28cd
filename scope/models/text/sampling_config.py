"""Settings for drawing the next token. Nothing here loads torch."""

import difflib
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings for drawing the next token."""

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
    """Random seed for sampling. The same seed gives the same text on the same machine."""

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
        if not (self.temperature == 0 or 1e-4 <= self.temperature < float("inf")):
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0, which always takes the likeliest token, or at least 0.0001."
            )
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


def sampling_of(sampling: SamplingConfig | None, settings: dict[str, Any]) -> SamplingConfig:
    """The settings that are given by name, over a `sampling` or the defaults. `do_sample` False means temperature 0.

    Raises:
        ConfigError: a name that is none.
    """
    settings = dict(settings)
    if not settings.pop("do_sample", True):
        settings["temperature"] = 0.0
    known = [f.name for f in fields(SamplingConfig)]
    strange = next((name for name in settings if name not in known), None)
    if strange is not None:
        close = difflib.get_close_matches(strange, known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"There is no setting {strange!r}.{hint} How texts are drawn is set by {', '.join(known)}.")
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (settings["stop"],)
    return replace(sampling or SamplingConfig(), **settings)
