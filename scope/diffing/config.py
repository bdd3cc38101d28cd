"""Settings of a comparison of two models."""

from dataclasses import dataclass

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """On how much text two models are compared, where, and beside which nulls."""

    contexts: int = 128
    """Contexts of text that both models read."""

    context: int = 128
    """Tokens per context, <bos> included."""

    sites: tuple[str, ...] = ("blocks.*.hook_attn_out", "blocks.*.hook_mlp_out", "blocks.*.hook_resid_post")
    """Where activations are compared: names or globs, with commas between."""

    loss_contexts: int = 64
    """Of these contexts, so many are also read with the SAE's reconstruction spliced in, to give its delta loss."""

    redraws: int = 1000
    """How often the text is drawn anew for the null of the latents."""

    level: float = 0.05
    """Chance that any latent at all counts as moved when only the text was drawn anew (family-wise error)."""

    batch_contexts: int = 8
    """Contexts that the models run at once."""

    seed: int = 0
    """Random seed for the order of the text and for the nulls."""

    def __post_init__(self):
        if min(self.contexts, self.context) < 2 or min(self.redraws, self.batch_contexts) < 1 or self.loss_contexts < 0:
            raise ConfigError("contexts and context must be at least 2, redraws and batch_contexts 1, loss_contexts 0.")
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level:g}; it is a probability between 0 and 1.")
