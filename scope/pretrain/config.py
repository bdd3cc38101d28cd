"""Settings for training a small Gemma from nothing. Nothing here loads torch."""

from dataclasses import dataclass
from typing import Any, Literal

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A training run. The defaults are those of the bundled model."""

    model_type: Literal["gemma", "gemma2", "gemma3_text", "recurrent_gemma"] = "gemma2"
    """Generation: Gemma 1, 2 or 3 (of 3, five local blocks to one global, and the last one global); or a RecurrentGemma, of
    which the bundled one has --d-head 64 --n-kv-heads 1."""

    d_model: int = 256
    """Width of the residual stream."""

    n_layers: int = 4
    """Blocks. In a Gemma 2, even ones are local, odd ones global; in a RecurrentGemma, every third one is local, the others
    recurrent."""

    n_heads: int = 4
    """Query heads."""

    n_kv_heads: int = 2
    """Key-value heads; each serves n_heads / n_kv_heads query heads."""

    d_head: int = 48
    """Size of a head."""

    d_mlp: int = 1024
    """Width of the gated MLP."""

    d_vocab: int = 8192
    """Pieces of the tokenizer."""

    n_ctx: int = 256
    """Tokens of a training sequence, <bos> included."""

    window: int = 128
    """Keys that a local layer sees."""

    steps: int = 4700
    """Optimiser steps."""

    batch: int = 16
    """Sequences a step."""

    matrix_lr: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""

    other_lr: float = 4e-3
    """Peak learning rate of AdamW, for embedding and norms."""

    weight_decay: float = 0.02
    """Decoupled decay of the matrices, times the learning rate."""

    warmup: int = 100
    """Steps of linear warm-up."""

    decay: float = 0.5
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""

    seed: int = 0
    """Random seed for the start weights and for the order of the data."""

    compile: bool = False
    """Compile the step with torch.compile: about a third faster, a minute to start, and it needs a C++ compiler."""

    save_every: int = 250
    """Steps between checkpoints."""

    def __post_init__(self):
        if self.steps < 1 or self.batch < 1 or not 0 <= self.decay <= 1:
            raise ConfigError("steps and batch must be at least 1, and decay between 0 and 1.")
        if self.save_every < 1 or self.warmup < 0:
            raise ConfigError("save_every must be at least 1, and warmup not below 0.")
        if self.d_vocab > 2**16:
            raise ConfigError(f"d_vocab is {self.d_vocab}; tokens are stored in 16 bits, so {2**16} pieces are the most.")

    def model_config(self) -> Any:
        """The `GemmaConfig` or `GriffinConfig` of the model that is trained."""
        from scope.models.gemma.config import GemmaConfig
        from scope.models.griffin.config import GriffinConfig

        kinds = ("local",) * 5 + ("global",)
        recurrent = self.model_type == "recurrent_gemma"
        generation: dict[str, Any] = {
            "gemma": {"attn_cap": None, "final_cap": None},
            "gemma2": {},
            "gemma3_text": {
                "attn_cap": None,
                "final_cap": None,
                "rope_theta": 1_000_000.0,
                "rope_local_theta": 10_000.0,
                "layer_types": (*(kinds * self.n_layers)[: self.n_layers - 1], "global"),
            },
            "recurrent_gemma": {"lru_width": self.d_model, "d_rotary": self.d_head // 2},
        }[self.model_type]
        own = {} if recurrent else {"query_scalar": self.d_head}
        return (GriffinConfig if recurrent else GemmaConfig)(
            model_type=self.model_type,
            **generation,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            d_mlp=self.d_mlp,
            d_vocab=self.d_vocab,
            n_ctx=self.n_ctx,
            window=self.window,
            **own,
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of its peak."""
        decay_steps = max(1, int(self.steps * self.decay))
        return min(1.0, (step + 1) / max(1, self.warmup), (self.steps - step) / decay_steps)
