"""Settings for recording activations and for training on a running model. Importing them loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from scope.activations.corpus.roles import LEAVES_OUT, RULES
from scope.activations.errors import ActivationsError

STAGING = Path("runs/staging")
"""Folder in which shards are made before they are sent to a store; a sealed shard is removed there once it has arrived."""


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What to record. Each field is also a flag of `scope harvest`, and the line under it is the flag's help."""

    sites: tuple[str, ...] = ()
    """Hook points to record: names such as blocks.3.hook_resid_post, globs such as 'blocks.*.hook_resid_post', or all."""

    tokens: int = 1_000_000
    """Tokens to run, <bos> included, rounded up to whole contexts. Raise it later to extend a recording."""

    context: int = 256
    """Tokens per context: <bos>, then text."""

    batch_contexts: int = 16
    """Contexts run at once."""

    shard_rows: int = 65_536
    """Approximate tokens per shard. A shard is one file."""

    dtype: str = "bfloat16"
    """Dtype of stored activations: bfloat16 or float32."""

    seed: int = 0
    """Random seed for the order of the documents."""

    exclude: tuple[str, ...] = RULES
    """Tokens whose activations are not stored: bos, special (control and turn tokens), pad."""

    outlier_times: float = 10.0
    """Rows whose norm exceeds this multiple of the site's median are outliers: stored, flagged, not trained on. 0: no rule."""

    def __post_init__(self):
        for name in ("tokens", "shard_rows"):
            if getattr(self, name) < 1:
                raise ActivationsError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.seed < 0:
            raise ActivationsError(f"seed is {self.seed}; it must be 0 or more.")
        _check(self)
        in_order = tuple(rule for rule in LEAVES_OUT if rule in self.exclude)  # order has no meaning
        object.__setattr__(self, "exclude", in_order)


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How text becomes activations when training reads a running model."""

    context: int = 256
    """Tokens per context: <bos>, then text."""

    batch_contexts: int = 16
    """Contexts that the model runs at once."""

    dtype: str = "bfloat16"
    """Dtype of activations in the shuffle buffer: bfloat16 or float32."""

    exclude: tuple[str, ...] = RULES
    """Tokens whose activations are left out: bos, special (control and turn tokens), pad."""

    outlier_times: float = 10.0
    """Rows whose norm exceeds this multiple of the site's median (over the first 16 contexts) are left out. 0: none is."""

    def __post_init__(self):
        _check(self)


def _check(config: HarvestConfig | LiveConfig) -> None:
    """Validate the settings that both classes have."""
    if config.batch_contexts < 1:
        raise ActivationsError(f"batch_contexts is {config.batch_contexts}; it must be at least 1.")
    if config.context < 1:
        raise ActivationsError(f"context is {config.context}; it must be at least 1.")
    if config.dtype not in ("bfloat16", "float32"):
        raise ActivationsError(f"dtype is {config.dtype!r}; activations are stored as bfloat16 or float32.")
    check_outlier_times(config.outlier_times)
    unknown = sorted(set(config.exclude) - set(LEAVES_OUT))
    if unknown:
        raise ActivationsError(f"exclude has {', '.join(unknown)}; the rules are {', '.join(LEAVES_OUT)}.")


def check_outlier_times(times: float) -> None:
    """Check a multiple of the median above which a norm counts as an outlier.

    Raises:
        ActivationsError: it would flag half of the rows, or is no number.
    """
    if times != 0 and not 1 < times < float("inf"):
        raise ActivationsError(f"outlier_times is {times:g}; give a number above 1, or 0 for no rule.")
