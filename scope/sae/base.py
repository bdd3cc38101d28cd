"""A dictionary: what encodes an activation into latents and decodes latents into an activation.

`pre = x @ W_enc + b_enc`, `x_hat = latents @ W_dec + b_dec`. Nothing is subtracted from x before encoding and nothing is
scaled outside, so a dictionary means the same to everyone who reads its arrays. How it is trained is in `objectives/`.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.claims import claims_of
from scope.sae.configs.base import SAEConfig
from scope.sae.hub.neuronpedia import neuronpedia_id
from scope.shapes import Latents

_NO_LENGTH = 1e-12
_CACHED = 2 * 2**20


class ZeroRowsWarning(UserWarning):
    """Latents without a direction: their decoder rows are zero, and cannot be given norm 1."""


class SaeLensNames:
    """SAELens' names for what an SAE holds, so that code written for its SAEs reads ours."""

    loaded_from: str | None = None
    """The folder, file or hub id that it was read from."""

    device = property(lambda self: self.W_enc.device)
    dtype = property(lambda self: self.W_enc.dtype)

    @property
    def cfg(self) -> SimpleNamespace:
        """A view of the settings, made on each call: to write into it changes nothing."""
        (site_out, d_out), model = next(iter(self.writes.items())), self.provenance.get("model") or {}
        recording = self.provenance.get("recording") or {}
        metadata = SimpleNamespace(
            hook_name=self.site,
            hook_name_out=None if site_out == self.site else site_out,
            model_name=model.get("model") or "",
            context_size=(recording.get("config") or {}).get("context"),
            prepend_bos=True,
            neuronpedia_id=neuronpedia_id(self.provenance),
        )
        return SimpleNamespace(
            d_in=self.d_in,
            d_sae=self.d_sae,
            d_out=d_out,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            apply_b_dec_to_input=False,
            normalize_activations="none",
            architecture=lambda: self.kind,
            metadata=metadata,
        )

    def get_name(self) -> str:
        return f"sae_{self.cfg.metadata.model_name}_{self.site}_{self.d_sae}"

    def fold_W_dec_norm(self) -> None:
        """SAELens' name of `unit_decoder`."""
        self.unit_decoder()

    @property
    def use_error_term(self) -> bool:
        return False

    @use_error_term.setter
    def use_error_term(self, value: bool) -> None:
        """Raises ConfigError where it is switched on: calling an SAE of ours gives its reconstruction, and nothing else."""
        if value:
            raise ConfigError(
                "use_error_term adds what an SAE misses where it stands in for a model's activations; calling this SAE gives "
                "its reconstruction.\n  As in SAELens: scope.hooked_sae_transformer(model).add_sae(sae, use_error_term=True). "
                "Steering here (model.hooks, scope steer) always keeps what the SAE misses."
            )

    def __repr__(self) -> str:
        claims, model = claims_of(self.provenance), self.provenance.get("model") or {}
        l0 = claims.get("l0")
        ends = l0 if isinstance(l0, list | tuple) else [l0]
        says = f"L0 {' to '.join(f'{end:.4g}' for end in ends)} by {claims['from']}" if l0 is not None else "L0 not stated"
        place = " -> ".join(dict.fromkeys((self.site or "no site", *filter(None, self.writes))))
        source = self.loaded_from or self.provenance.get("source") or "memory"
        sizes = f"{self.d_sae:,} latents on {self.d_in:,} numbers at {place}"
        return f"{type(self).__name__}({sizes}, {says}, of {model.get('model') or 'no stated model'}, from {source})"


class SAE(SaeLensNames, nn.Module, ABC):
    """W_enc [d_in d_sae], b_enc [d_sae], W_dec [d_sae d_in], b_dec [d_in]; a kind adds the rest."""

    kind: str
    autoencodes = True
    """Whether it reconstructs what it reads. A transcoder predicts another site, so it can stand in for nothing at its own."""

    latent_dims: ClassVar[dict[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    """Parameter -> its dimension over the latents, for those that have one."""

    def __init__(self, config: SAEConfig, site: str = ""):
        if config.d_in < 1:
            raise ConfigError("d_in is 0; a dictionary needs the width of the activations that it reads.")
        super().__init__()
        self.config, self.site = config, site
        self.provenance: dict[str, Any] = {}
        self.W_enc = nn.Parameter(torch.empty(config.d_sae, config.d_in).T)  # a latent's weights lie side by side in memory
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.empty(config.d_sae, config.d_in))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def reads(self) -> dict[str, int]:
        """Site -> width of the activations that `encode` takes."""
        return {self.site: self.d_in}

    @property
    def writes(self) -> dict[str, int]:
        """Site -> width of the activations that `decode` gives."""
        return self.reads

    def part(self, latents: slice) -> "SAE":
        """A dictionary of some of the latents. What has no dimension over the latents is copied whole."""
        part = copy.copy(self)
        part._parameters = {}
        for name, p in self.named_parameters():
            dim = self.latent_dims.get(name)
            data = p.data if dim is None else p.data.narrow(dim, latents.start, latents.stop - latents.start)
            part._parameters[name] = nn.Parameter(data.clone(), p.requires_grad)
        part.config = copy.copy(self.config)
        # not `replace`, which would check settings that are meant for all latents, as target_l0
        object.__setattr__(part.config, "d_sae", latents.stop - latents.start)
        return part

    def pre_activations(self, x: Tensor) -> Tensor:
        """[... d_in] -> [... d_sae], before the threshold."""
        return x @ self.W_enc + self.b_enc

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """[... d_in] -> latents [... d_sae], zero where a latent does not fire."""

    def decode(self, latents: Tensor) -> Tensor:
        """[... d_sae] -> x_hat [... d_in]."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        """Make a dictionary of (x - mean) / scale into the same dictionary of x. Latents keep their meaning, in units of x.

        A kind with thresholds multiplies them by `scale` too.
        """
        self.b_enc.mul_(scale).sub_(mean @ self.W_enc)
        self.b_dec.mul_(scale).add_(mean)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        """Give every decoder row norm 1 without changing what is reconstructed; a kind with thresholds scales them too.

        Rows of zeros have no direction and stay so, with a ZeroRowsWarning.
        """
        norms = self.W_dec.norm(dim=1)
        lost = int((norms < _NO_LENGTH).sum())
        if lost:
            warnings.warn(
                f"{lost:,} of {self.d_sae:,} latents have decoder rows of zeros: whatever they fire on, they add nothing.",
                ZeroRowsWarning,
                stacklevel=2,
            )
        norms = norms.clamp_min(_NO_LENGTH)
        self.W_dec.div_(norms[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)


def rows_at_once(matrix: Float[Tensor, "rows width"]) -> int:
    """Rows of a matrix for which what is computed from them still lies in the processor's cache when it is read again.

    Each operation on so many is work for several threads that is worth their waiting for each other.
    """
    return max(256, _CACHED // (matrix.shape[1] * matrix.element_size()))


def firing(latents: Latents) -> tuple[Tensor, Tensor]:
    """(L0 of each token, number of tokens on which each latent fired)."""
    fired = latents > 0
    return fired.sum(1), fired.sum(0)
