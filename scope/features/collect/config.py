"""Settings of collecting a pack: the flags of `scope features`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from scope.errors import ConfigError

NEUTRAL = (
    "I think that",
    "The most important thing is",
    "When they came back, the",
    "Here is the",
    "It was",
    "After that, she",
    "The next one is",
    "This means that",
)
"""Beginnings after which nothing in particular must follow: where output scores are measured."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of examples and relations stored for each latent."""

    top: int = 16
    """Strongest contexts."""
    bands: int = 5
    """Strength bands between the weakest and the strongest firing."""
    per_band: int = 5
    """Uniformly drawn firings in each band."""
    random: int = 12
    """Uniformly drawn firings."""
    near: int = 6
    """Silent positions on tokens on which the latent often fires."""
    window: int = 32
    """Tokens on either side of a peak whose activations are stored."""
    twin_radius: int = 6
    """Two strongest contexts are near-duplicates if this many tokens on either side of their peaks are equal."""
    tokens: int = 32
    """Most frequent tokens."""
    cofiring: int = 10
    """Latents that fire together with it."""
    controls: int = 256
    """Windows of text, the same for all latents, stored with the latents that fire in them; labels are tested on them."""
    cofiring_sample: int = 64
    """Uniformly drawn firings on which co-firing is counted; the standard error of a share p is sqrt(p (1 - p) / sample)."""
    firings: int = 1024
    """Uniformly drawn firings whose positions alone are stored, fewer of more than 16,384 latents: rules for labels are
    searched on half of them and tested on the other, and texts are searched among them."""

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 1 if name in ("bands", "tokens") else 0
            if value < least:
                raise ConfigError(f"sizes.{name} is {value}; it must be at least {least}.")

    @property
    def control_half(self) -> int:
        """Tokens on either side of a control window's middle."""
        return min(16, self.window)

    def firings_of(self, d_sae: int) -> int:
        """Firings of each latent whose positions are stored: together at most 2^24, but 64 a latent."""
        return min(self.firings, max(64, (1 << 24) // max(d_sae, 1)))

    def uniform(self, d_sae: int) -> int:
        """Uniformly drawn firings of each latent that the first pass keeps."""
        return max(self.random, self.cofiring_sample, self.firings_of(d_sae))

    @property
    def places(self) -> int:
        return self.top + self.bands * self.per_band + self.random + self.near

    def start(self, group: int) -> int:
        """First place of a group among a latent's examples."""
        return (0, self.top, self.top + self.bands * self.per_band, self.places - self.near)[group - 1]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Thresholds from which a latent is flagged, stored in the manifest of the pack."""

    dense: float = 0.1
    """Density from which a latent is dense."""

    rare: int = 10
    """Fewer firings than this are too few to tell what a latent means."""

    single_token: float = 0.8
    """Share of firings on one token from which a latent is a single-token latent."""

    duplicate: float = 0.9
    """Decoder cosine from which two latents are duplicates."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Settings of collecting. The defaults are what the pages of the app show."""

    tokens: int | None = None
    """Read at most about this many tokens (whole contexts); none for all."""

    score_prompts: int = 8
    """Neutral prompts, at most 8, on which each latent's effect on the next token is measured; 0 leaves it out."""

    score_strength: float = 0.5
    """Length of the added direction, as a fraction of the site's median activation norm."""

    score_latents: int | None = None
    """Measure only this many latents, the most frequent below the dense ones; none for all."""

    score_null: int = 64
    """Random directions measured in the same way: output scores below theirs mean nothing."""

    map: Literal["pca", "umap", "none"] = "pca"
    """How decoder directions are laid out on a flat map: by their two axes of most variance, by UMAP (pip install
    'scope-workbench[umap]'), or not. `scope map PACK` makes one later."""

    chunk_tokens: int = 8192
    """Tokens of a chunk, whose firings are stored as one file. Wide dictionaries encode it in stretches."""

    seed: int = 0
    """Random seed for the order of a corpus, examples, near misses and random directions."""

    sizes: Sizes = field(default_factory=Sizes)
    """Numbers of examples and relations stored for each latent."""

    flags: Flags = field(default_factory=Flags)
    """Thresholds from which a latent is flagged."""

    def __post_init__(self):
        if not 0 <= self.score_prompts <= len(NEUTRAL):
            raise ConfigError(f"score_prompts is {self.score_prompts}; there are {len(NEUTRAL)} neutral prompts.")
        if self.chunk_tokens < 1 or (self.tokens is not None and self.tokens < 1):
            raise ConfigError("tokens and chunk_tokens must be at least 1.")
        if self.score_null < 0 or (self.score_latents is not None and self.score_latents < 1):
            raise ConfigError("score_null must not be below 0, and score_latents at least 1 or none.")
        if not 0 < self.score_strength < math.inf:
            raise ConfigError(f"score_strength is {self.score_strength}; it must be above 0.")
