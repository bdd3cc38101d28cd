"""The kinds of dictionary there are: a name, the config that describes one, the module, and what computes its gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scope.errors import ConfigError, DictionaryError
from scope.sae.base import SAE
from scope.sae.batch_topk import BatchTopKConfig, BatchTopKSAE
from scope.sae.config import SAEConfig
from scope.sae.engine import Autograd, Engine, JumpReLUEngine
from scope.sae.gated import GatedConfig, GatedSAE
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.topk import TopKConfig, TopKSAE
from scope.sae.transcoder import Transcoder, TranscoderConfig


def _jumprelu_engine(sae: SAE) -> Engine:
    """By hand, but for nested widths, whose gradients only autograd knows."""
    return Autograd(sae) if sae.config.nested else JumpReLUEngine(sae)


@dataclass(frozen=True)
class Kind:
    """`engine(sae)` makes the fastest engine whose gradients equal those of `sae.losses`."""

    config: type[SAEConfig]
    sae: type[SAE]
    engine: Callable[[SAE], Engine]
    trainable: bool = True


KINDS: dict[str, Kind] = {
    "jumprelu": Kind(JumpReLUConfig, JumpReLUSAE, _jumprelu_engine),
    "topk": Kind(TopKConfig, TopKSAE, Autograd),
    "batch_topk": Kind(BatchTopKConfig, BatchTopKSAE, Autograd),
    "gated": Kind(GatedConfig, GatedSAE, Autograd),
    "transcoder": Kind(TranscoderConfig, Transcoder, Autograd, trainable=False),
}


def kind_of(config: SAEConfig) -> Kind:
    """The row that a config belongs to."""
    for kind in KINDS.values():
        if type(config) is kind.config:
            return kind
    raise ConfigError(f"No kind of dictionary is configured by {type(config).__name__}; there are {', '.join(KINDS)}.")


def make_sae(config: SAEConfig, site: str = "") -> SAE:
    """An untrained dictionary of the kind that the config describes."""
    return kind_of(config).sae(config, site)


@torch.no_grad()
def as_jumprelu(sae: SAE) -> JumpReLUSAE:
    """The same dictionary as five JumpReLU arrays: a BatchTopK by its threshold; a Gated exactly, since its gate opens where
    its magnitude exceeds b_mag - exp(r_mag) b_enc.

    Raises:
        DictionaryError: a TopK, whose latents compete, so that no threshold stands for them; a transcoder.
    """
    if isinstance(sae, JumpReLUSAE):
        return sae
    if not isinstance(sae, BatchTopKSAE | GatedSAE):
        raise DictionaryError(
            f"A dictionary of kind {sae.kind} cannot be said with thresholds: it would fire on other tokens.\n"
            "  Write it as SAELens' folder (--to sae_lens), or train a batch_topk, which has a threshold."
        )
    c = sae.config
    config = JumpReLUConfig(d_in=c.d_in, d_sae=c.d_sae, nested=c.nested, target_l0=getattr(c, "target_l0", None) or c.k)
    made = JumpReLUSAE(config, sae.site).to(sae.W_enc.device)
    made.provenance = dict(sae.provenance)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(made, name).copy_(getattr(sae, name))
    if isinstance(sae, BatchTopKSAE):
        made.threshold.copy_(sae.threshold)
    else:
        gain = sae.r_mag.exp()
        made.W_enc.copy_(sae.W_enc * gain)
        made.b_enc.copy_(sae.b_mag)
        made.threshold.copy_((sae.b_mag - gain * sae.b_enc).clamp_min(0.0))
    return made.eval()
