"""Settings and result of an evaluation, and the definition of each score."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.result import Result
from scope.typed_json import read_json, typed

FORM = 2
"""Version of the report on disk; raised when a printed field is added, removed or changes its meaning. The first had none."""

DEFINITIONS = {
    "l0": "latents above zero on a token, mean over tokens; also the least number that half, and 95 %, of the tokens keep to",
    "fvu": "squared error over all tokens and dimensions / squared distance of the tokens to their mean",
    "fvu_per_token": "mean over tokens of squared error / squared distance to the mean of the counted tokens",
    "fvu_per_dimension": "mean over dimensions of squared error / variance; constant dimensions are left out",
    "cosine": "mean over tokens of the cosine between an activation and its reconstruction",
    "norm_ratio": "mean over tokens of the reconstruction's norm / the activation's; below 1 is shrinkage",
    "length_bias": "<x_hat, x_hat> / <x, x_hat> over all tokens: the factor by which reconstructions are too long",
    "loss": "mean next-token loss in nats with the reconstruction spliced in, at the positions that were replaced",
    "delta_loss": "loss with the splice - loss without, in nats",
    "kl": "mean KL divergence of the next-token distribution with the splice from the one without, in nats",
    "recovered_vs_zero": "(zero-ablated loss - loss) / (zero-ablated loss - loss without splice)",
    "recovered_vs_mean": "the same with the activations' mean in place of zero",
    "interval": "95 %: the units named in `counted` drawn anew with replacement, percentiles",
    "never_fired": "share of latents above zero on no counted token; its interval ends at what is seen here and begins where "
    "much more text would leave it, by Chao's estimate from the latents seen in one and in two units",
    "dense": "share of latents above zero on more than `dense_above` of the counted tokens",
    "nearest_cosine": "greatest cosine of a decoder row with another row of the same dictionary",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much text an SAE is scored on, and beside which baselines."""

    contexts: int = 64
    """Contexts to score, drawn at random from those given."""

    batch_contexts: int = 8
    """Contexts that the model runs at once."""

    dense_above: float = 0.1
    """Share of tokens above which a latent counts as dense."""

    nulls: bool = True
    """Score the baselines too: random dictionary, PCA and ablations. Without them the numbers have no comparison."""

    random_model: bool = True
    """Among the baselines, score the SAE on the same model with random weights. Needs memory for the weights up to the site a
    second time."""

    resamples: int = 1000
    """Bootstrap draws of documents for the 95 % intervals."""

    seed: int = 0
    """Random seed for the contexts drawn, the random dictionary, the random weights, and the bootstrap."""

    def __post_init__(self):
        if self.contexts < 2 or self.batch_contexts < 1 or self.resamples < 1:
            raise ConfigError("contexts must be at least 2, since an interval needs several; the others at least 1.")
        if not 0 < self.dense_above <= 1:
            raise ConfigError(f"dense_above is {self.dense_above:g}; it is a share of the tokens, above 0 and at most 1.")


@dataclass(frozen=True)
class Evaluation(Result):
    """Scores of each condition ("sae" and its baselines; the field is `arms` on disk too), counts, and notes for the reader.

    `positions` are the same scores by position in the context, `training` the log of the dictionary's training.
    """

    bars = ("condition", "fvu")

    arms: dict[str, dict[str, Any]]
    counted: dict[str, Any]
    latents: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    positions: list[dict[str, Any]] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=lambda: dict(DEFINITIONS))

    def __getitem__(self, name: str) -> Any:
        """A score of the SAE itself: evaluation["fvu"]."""
        return self.arms["sae"][name]

    def to_frame(self):
        """A row for each condition: the SAE and its baselines, with their scores, as a pandas table."""
        import pandas as pd

        numbers = {name: {k: v for k, v in scores.items() if isinstance(v, int | float)} for name, scores in self.arms.items()}
        return pd.DataFrame([{"condition": name, **scores} for name, scores in numbers.items()])

    def to_json(self) -> dict[str, Any]:
        return {"form": FORM} | asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "Evaluation":
        """
        Raises:
            ConfigError: no report, or one of another form than this version writes.
        """
        again = "To make it again: scope evaluate DICTIONARY"
        arms = content.get("arms") if isinstance(content, dict) else None
        if not isinstance(arms, dict) or "sae" not in arms:
            raise ConfigError(f"This is no report of an evaluation.\n  {again}")
        form = content.get("form", 1)
        if form != FORM:
            raise ConfigError(f"This report of an evaluation has form {form}; this version reads form {FORM}.\n  {again}")
        return typed(content, cls, "This report of an evaluation", ConfigError, again)

    @classmethod
    def load(cls, file: Path | str) -> "Evaluation":
        """Read a report that `save` wrote.

        Raises:
            ConfigError: a file that cannot be read, is no report, or is one of another form.
        """
        content = read_json(Path(file), ConfigError, "To make it again: scope evaluate DICTIONARY")
        try:
            return cls.from_json(content)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
