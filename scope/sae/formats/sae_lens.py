"""SAELens' folder: cfg.json beside sae_weights.safetensors. It is also the form in which dictionaries are written here.

What is written says `apply_b_dec_to_input: false` and the SAELens version: without that version SAELens takes older
defaults and subtracts b_dec before encoding. What is read becomes x @ W_enc + b_enc, whatever its own convention was.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.provenance import DictionaryId
from scope.sae.base import SAE
from scope.sae.formats.arrays import build, need, refuse_not_finite, renamed, subtract_b_dec
from scope.sae.formats.files import read_config, read_safetensors, write_safetensors
from scope.sae.gated import GatedSAE
from scope.sae.hub.releases import hub_model
from scope.sae.topk import BatchTopKSAE, TopKSAE
from scope.sae.transcoder import Transcoder
from scope.whole_files import write_json

CONFIG, WEIGHTS, SPARSITY, SCALER = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""The SAELens whose layout this is."""

_RELU = ("standard", "transcoder", "skip_transcoder")
_JUMP = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_NAMES = {"log_threshold": "threshold", "b_gate": "b_enc", "finetuning_scaling_factor": "scaling_factor"}
READ = (*_RELU, *_JUMP, *_BATCH, "topk", "gated")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a dictionary reads: `metadata` of cfg.json, or before 6.0 cfg.json itself."""

    hook_name: str | None = None
    hook_point: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None
    hook_head_index: int | None = None
    hook_point_head_index: int | None = None

    def where(self) -> str:
        return self.hook_name or self.hook_point or ""


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """activation_fn_kwargs."""

    k: int | float | None = None


@dataclass(frozen=True, kw_only=True)
class Config(Place):
    """cfg.json of any version. None is what a version before a setting existed, or one that has no use for it, wrote."""

    architecture: str = "standard"
    metadata: Place | None = None
    d_in: int | None = None
    d_sae: int | None = None
    d_out: int | None = None
    k: int | float | None = None
    activation_fn: str | None = None
    activation_fn_str: str | None = None
    activation_fn_kwargs: ActivationSettings | None = None
    matryoshka_widths: tuple[int, ...] | None = None
    apply_b_dec_to_input: bool | None = None
    """SAELens subtracts b_dec before encoding unless told otherwise."""

    rescale_acts_by_decoder_norm: bool | None = None
    normalize_activations: str | bool | None = None
    norm_scaling_factor: float | None = None

    def where(self) -> str:
        return (self.metadata or Place()).where() or super().where()


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """activation_scaler.json."""

    scaling_factor: float | None = None
    has_whitening: bool | None = None


def write(sae: SAE, folder: Path) -> list[str]:
    """Write both files aside, then into place; what SAELens will not know of the dictionary is returned.

    Raises:
        DictionaryError: a TopK transcoder, which SAELens has no architecture for.
    """
    config_of(sae)  # refuses before anything is written
    write_arrays(sae, folder)
    lost = ["how it was trained, and the hashes of model and weights"] if sae.provenance.get("training") else []
    if isinstance(sae, BatchTopKSAE):
        lost.append("that it was trained as batch_topk; for SAELens it is a jumprelu with the threshold that stands for it")
    if sae.config.nested:
        lost.append(f"the nested widths {', '.join(map(str, sae.config.nested))}")
    return lost


def write_arrays(sae: SAE, folder: Path) -> None:
    """Write both files; of a TopK transcoder, which SAELens cannot read, the arrays alone."""
    (folder / CONFIG).unlink(missing_ok=True)
    write_safetensors(folder / WEIGHTS, arrays_of(sae))
    if not (isinstance(sae, Transcoder) and sae.config.k):
        write_json(folder / CONFIG, config_of(sae))


def architecture_of(sae: SAE) -> str:
    if isinstance(sae, Transcoder):
        return "jumprelu_skip_transcoder" if sae.config.skip else "jumprelu_transcoder"
    return "jumprelu" if isinstance(sae, BatchTopKSAE) else sae.kind


def arrays_of(sae: SAE) -> dict[str, Tensor]:
    """What is stored, by SAELens' names: a Gated's b_enc is its b_gate."""
    arrays = {name: p.detach().to("cpu", torch.float32).contiguous() for name, p in sae.named_parameters()}
    if isinstance(sae, GatedSAE):
        arrays["b_gate"] = arrays.pop("b_enc")
    return arrays


def config_of(sae: SAE) -> dict[str, Any]:
    made_from = DictionaryId.of(sae.provenance)
    metadata = {
        "sae_lens_version": VERSION,
        "model_name": made_from.model.name or "",
        "hook_name": sae.site,
        "context_size": made_from.recording.config.get("context"),
        "prepend_bos": True,
    }
    config: dict[str, Any] = {
        "architecture": architecture_of(sae),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.site.endswith("attn.hook_z") else "none",
        "metadata": metadata,
    }
    if isinstance(sae, BatchTopKSAE):
        pass
    elif isinstance(sae, TopKSAE):
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(sae, Transcoder):
        if sae.config.k:
            raise DictionaryError(
                f"This transcoder fires its {sae.config.k} greatest latents on each token; SAELens' go by thresholds or ReLU.\n"
                "  Keep it as --to scope."
            )
        config |= {"d_out": sae.d_out, "reshape_activations": "none"}
        metadata["hook_name_out"] = sae.site_out
    return config


def stored(folder: Path) -> dict[str, Tensor]:
    """The arrays of the folder by our names, as they are stored."""
    stored = read_safetensors(folder / WEIGHTS)
    arrays = renamed(stored, _NAMES, folder / WEIGHTS)
    if "log_threshold" in stored:
        arrays["threshold"] = arrays["threshold"].exp()
    return arrays


def read(folder: Path) -> SAE:
    """The dictionary in a SAELens folder, of any architecture in READ.

    Raises:
        DictionaryError: files missing or damaged, or a form that cannot be turned into this one without loss.
    """
    config = read_config(folder / CONFIG, Config)
    arrays, where = stored(folder), str(folder)
    site, places = config.where(), (config.metadata or config, config)
    need(arrays, ("W_enc", "b_enc", "W_dec", "b_dec"), where)
    architecture = _architecture(config)
    _refuse_head(config, where)
    settings: dict[str, Any] = {}
    kind = "transcoder" if "transcoder" in architecture else {"topk": "topk", "gated": "gated"}.get(architecture, "jumprelu")
    if architecture in _RELU and "threshold" in arrays and arrays["threshold"].any():
        raise DictionaryError(
            f"{folder / CONFIG} says architecture {architecture}, a ReLU, and the weights beside it hold thresholds,\n"
            "  which belong to a jumprelu: one of the two is of another dictionary. Copy or fetch the whole folder."
        )
    sites = {(config.metadata or Place()).where(), config.hook_name or config.hook_point or ""} - {""}
    if len(sites) > 1:
        raise DictionaryError(
            f"{folder / CONFIG} names two hook points, {' and '.join(sorted(sites))}, and nothing says which one counts.\n"
            "  Correct hook_name in it, or in its metadata."
        )
    if architecture in _RELU:  # a ReLU is a JumpReLU whose thresholds are 0
        arrays["threshold"] = torch.zeros(arrays["b_enc"].shape)
    if architecture in _BATCH and ("topk_threshold" in arrays) == ("threshold" in arrays):
        if "threshold" in arrays:
            raise DictionaryError(f"{folder} holds threshold and topk_threshold, and nothing says which one counts.")
        raise DictionaryError(
            f"{folder} is a BatchTopK without the threshold that stands for its k after training (P27).\n"
            "  Save it in SAELens with save_inference_model."
        )
    if architecture in _BATCH:
        nested = tuple(width for width in config.matryoshka_widths or () if width < arrays["b_enc"].numel())
        kind, settings = "batch_topk", {"k": float(_k(config, where)), "nested": nested}
        if "topk_threshold" in arrays:
            if arrays["topk_threshold"].numel() != 1:
                raise DictionaryError(f"topk_threshold in {where} holds {arrays['topk_threshold'].numel()} numbers, not one.")
            threshold = arrays.pop("topk_threshold").item()
            if not 0 <= threshold < math.inf:
                raise DictionaryError(f"topk_threshold in {where} is {threshold}; it must be 0 or more. Fetch it again.")
            arrays["threshold"] = torch.full(arrays["b_enc"].shape, threshold)
    if kind == "topk":
        k = _k(config, where)
        if k != int(k):
            raise DictionaryError(f"{folder / CONFIG} says k = {k}; a topk fires a whole number of latents. Fetch it again.")
        settings = {"k": int(k)}
    if kind == "transcoder":
        settings = {"site_out": next((p.hook_name_out for p in places if p.hook_name_out), "")}
    factor = _finetuning(arrays, folder)
    scale = _input_scale(config, folder)
    sae = build(kind, arrays, where, site, **settings)
    _refuse_sizes(sae, config, folder)
    _fold(sae, factor, scale, config.apply_b_dec_to_input is not False, bool(config.rescale_acts_by_decoder_norm))
    refuse_not_finite(sae, where)
    sae.provenance |= {
        "model": {"model": hub_model(next((p.model_name for p in places if p.model_name), ""))},
        "site": sae.site,
        "format": "sae_lens",
        "source": where,
    }
    declared = _declared(folder, settings.get("k"))
    if declared:
        sae.provenance["declared"] = declared
    return sae


@torch.no_grad()
def _fold(sae: SAE, factor: Tensor | None, scale: float | None, subtracts: bool, by_norm: bool) -> None:
    """Put into the arrays what SAELens does beside them, in the order in which it does it."""
    if subtracts and sae.autoencodes:
        subtract_b_dec(sae)
    if by_norm and isinstance(sae, TopKSAE):  # latents are chosen, and a threshold is given, as if decoder rows had norm 1
        SAE.unit_decoder(sae)
    if scale is not None:
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale)
        sae.b_dec.div_(scale)
    if factor is not None:
        sae.W_dec.mul_(factor[:, None])


def _architecture(config: Config) -> str:
    """The architecture's name; before 6.0, a standard one whose activation function was TopK is a TopK.

    Raises:
        DictionaryError: one that is not read.
    """
    found = config.architecture
    function = config.activation_fn or config.activation_fn_str or "relu"
    if function == "topk" and found in ("standard", "topk"):
        return "topk"
    if found not in READ or function != "relu":
        named = repr(found) if found not in READ else f"{found!r} with activation function {function!r}"
        raise DictionaryError(
            f"This folder holds a dictionary of architecture {named}; {', '.join(READ)} can be read.\n"
            "  Read as one of these, it would fire on other tokens than it was trained to."
        )
    return found


def _refuse_head(config: Config, where: str) -> None:
    places = (config.metadata or config, config)
    heads = [head for place in places for head in (place.hook_head_index, place.hook_point_head_index) if head is not None]
    if heads:
        raise DictionaryError(f"{where} reads head {heads[0]} alone of {config.where()}, which is no site here.")


def _refuse_sizes(sae: SAE, config: Config, folder: Path) -> None:
    """Raises: DictionaryError: cfg.json gives other sizes than the arrays have."""
    have = {"d_in": sae.d_in, "d_sae": sae.d_sae} | ({} if sae.autoencodes else {"d_out": len(sae.b_dec)})
    for name, size in have.items():
        if getattr(config, name) not in (None, size):
            raise DictionaryError(
                f"{folder / CONFIG} says {name} = {getattr(config, name)!r}; the arrays beside it say {size}.\n"
                "  One of the two is of another dictionary. Copy or fetch the whole folder."
            )


def _k(config: Config, where: str) -> float:
    k = config.k or (config.activation_fn_kwargs.k if config.activation_fn_kwargs else None)
    if not k:
        raise DictionaryError(f"{where} is a topk that does not say k: read as a ReLU, far more latents would fire (P27).")
    if not math.isfinite(k):
        raise DictionaryError(f"{where} says k = {k!r}, which is no number of latents. Fetch {CONFIG} again.")
    return k


def _finetuning(arrays: dict[str, Tensor], folder: Path) -> Tensor | None:
    """The factor on the latents that fine-tuning left; None where there is none, or all are 1."""
    factor = arrays.pop("scaling_factor", None)
    if factor is None or torch.equal(factor, torch.ones_like(factor)):
        return None
    if factor.dim() != 1 or len(factor) != len(arrays.get("b_enc", ())) or not torch.isfinite(factor).all():
        raise DictionaryError(f"The fine-tuning factor in {folder} has shape {tuple(factor.shape)}; it must be one per latent.")
    return factor.float()


def _input_scale(config: Config, folder: Path) -> float | None:
    """What activations are multiplied with before encoding, where it was not folded in yet.

    Raises:
        DictionaryError: it is needed and not there, or differs from token to token (P23).
    """
    how = config.normalize_activations or "none"
    if how == "none":
        return None
    if how in (True, "expected_average_only_in"):
        found = config.norm_scaling_factor
        if (folder / SCALER).exists():
            scaler = read_config(folder / SCALER, Scaler)
            found = found if scaler.scaling_factor is None else scaler.scaling_factor
            if scaler.has_whitening:
                raise DictionaryError(f"{folder} wants its activations whitened by a matrix, which is not folded into weights.")
        if found is not None and 0 < found < math.inf:
            return float(found)
        raise DictionaryError(
            f"{folder} wants its activations normalised (to a mean norm of sqrt(d_in)) by a number that is not in the "
            f"folder{'' if found is None else f', which has {found!r}'}.\n"
            f"  Copy {SCALER} beside it, or fold it in SAELens (fold_activation_norm_scaling_factor) and save again."
        )
    raise DictionaryError(
        f"{folder} wants its activations normalised ({how}), token by token or by a matrix; neither can be folded into weights."
    )


def _declared(folder: Path, k: float | None) -> dict[str, Any] | None:
    """L0 by the sparsity file (log10 of how often each latent fired), or by k."""
    if (folder / SPARSITY).exists():
        sparsity = read_safetensors(folder / SPARSITY).get("sparsity")
        if sparsity is not None:
            l0 = (10.0 ** sparsity.double()).sum().item()
            if not 0 <= l0 <= sparsity.numel():
                raise DictionaryError(
                    f"{folder / SPARSITY} gives an L0 of {l0:g} for {sparsity.numel()} latents: it holds no logarithms of "
                    "frequencies. Fetch it again, or delete it."
                )
            return {"l0": l0, "from": SPARSITY}
    return {"l0": float(k), "from": "its k"} if k else None
