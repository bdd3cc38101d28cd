"""Makes dictionaries of arrays read from any format, after checks of their shapes and values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from scope.errors import ConfigError, DictionaryError
from scope.free_memory import free_memory
from scope.progress import size
from scope.sae.base import SAE
from scope.sae.configs.base import SAEConfig
from scope.sae.gated import GatedSAE
from scope.sae.kinds import KINDS


def build(
    kind: str,
    arrays: dict[str, Tensor],
    where: str,
    site: str = "",
    beside: tuple[str, ...] = (),
    **settings: Any,
) -> SAE:
    """A dictionary of `kind` in float32, from arrays by the names of its parameters; `where` names the file in refusals,
    and `beside` arrays that its format carries though they are no parameters.

    Sizes are those of the biases. Where numbers were stored with less than float32's precision, `provenance["stored"]` says so.

    Raises:
        DictionaryError: an array is missing, has another shape than the biases ask for (a transposed matrix is named as such),
            holds NaN or Inf, is turned though square, or most thresholds are negative.
    """
    need(arrays, ("W_enc", "b_enc", "W_dec", "b_dec"), where)
    for name in ("b_enc", "b_dec"):
        if arrays[name].dim() != 1:
            raise DictionaryError(f"{name} in {where} has shape {tuple(arrays[name].shape)}; it must be one row of numbers.")
    if arrays["W_enc"].dim() != 2:
        raise DictionaryError(f"W_enc in {where} has shape {tuple(arrays['W_enc'].shape)}; it must be a matrix.")
    d_sae, d_in = len(arrays["b_enc"]), len(arrays["b_dec"])
    if kind == "transcoder":  # the width of what is read may differ, and only W_enc knows it
        rows, columns = arrays["W_enc"].shape
        settings = {"d_out": d_in, "skip": "W_skip" in arrays, **settings}
        d_in = rows if columns == d_sae else columns
    if kind in ("jumprelu", "gated"):  # not known of a foreign one, and of no use once trained
        settings.setdefault("target_l0", min(32.0, float(d_sae)))
    try:
        config = KINDS[kind].config(d_in=d_in, d_sae=d_sae, **settings)
        return fill(kind, config, site, arrays, where, beside)
    except ConfigError as error:
        raise DictionaryError(f"What is in {where} cannot be a dictionary of kind {kind}: {error}") from None


def fill(
    kind: str,
    config: SAEConfig,
    site: str,
    arrays: dict[str, Tensor],
    where: str,
    beside: tuple[str, ...] = (),
) -> SAE:
    """A dictionary of its arrays, checked as `build` says. An array that its kind does not have is refused: read without it,
    the dictionary would fire on other tokens than it was trained to (P27)."""
    with torch.device("meta"):  # nothing is allocated for sizes that the arrays may not have
        sae: SAE = KINDS[kind].sae(config, site)
    wanted = {name: tuple(p.shape) for name, p in sae.named_parameters()}
    need(arrays, tuple(wanted), where)
    unknown = sorted(set(arrays) - set(wanted) - set(beside))
    if unknown:
        raise DictionaryError(
            f"{where} holds {', '.join(unknown)}, which a dictionary of kind {sae.kind} does not have: it is of another kind "
            "than its description says.\n  Copy or fetch the whole folder again."
        )
    for name, shape in wanted.items():
        actual = tuple(arrays[name].shape)
        if actual != shape:
            turned = " It is transposed: turn it and save it again." if actual == shape[::-1] != shape else ""
            raise DictionaryError(
                f"{name} in {where} has shape {actual}; with {sae.d_sae} latents over width {sae.d_in} it must be {shape}."
                + turned
            )
    memory = free_memory()
    widened = sum(4 * a.numel() for name, a in arrays.items() if name in wanted and a.dtype != torch.float32)
    if memory is not None and widened > memory:
        raise DictionaryError(f"{where} takes {size(widened)} in float32, and {size(memory)} of memory are free.")
    coarse = {name: _name(a.dtype) for name, a in arrays.items() if name in wanted and torch.finfo(a.dtype).bits < 32}
    arrays = {name: arrays[name].to(torch.float32).contiguous() for name in wanted}
    for name, array in arrays.items():
        bad = int((~torch.isfinite(array)).sum())
        if bad:
            raise DictionaryError(f"{name} in {where} holds {bad} values that are NaN or Inf. Fetch or train it anew.")
    if "threshold" in arrays and (arrays["threshold"] < 0).float().mean() > 0.5:  # a few below 0 act as 0 does
        raise DictionaryError(
            f"Most thresholds in {where} are negative (median {arrays['threshold'].median():.2g}): were logarithms stored?\n"
            "  Store exp of them under `threshold`, or the logarithms under `log_threshold`."
        )
    if sae.autoencodes and sae.d_in == sae.d_sae:
        refuse_turned(arrays["W_enc"], arrays["W_dec"], where)
    for name, p in list(sae.named_parameters()):
        # as they lie in the file: another layout in memory rounds single tokens otherwise than SAELens
        sae._parameters[name] = nn.Parameter(arrays[name], p.requires_grad)
    if coarse:
        sae.provenance["stored"] = coarse
    return sae


def refuse_other_sizes(config: Any, arrays: dict[str, Tensor], source: str, where: str) -> None:
    """Compare the sizes of a description (`d_in`, `d_sae`, `d_out`) with those of the arrays, before anything is allocated.

    Raises:
        DictionaryError: they differ.
    """
    need(arrays, ("W_enc", "b_enc", "b_dec"), where)
    sizes = [arrays["b_enc"].shape, arrays["W_enc"].shape, arrays["b_dec"].shape]
    d_out = getattr(config, "d_out", 0) or config.d_in
    known = (config.d_sae,) == sizes[0] and config.d_in in sizes[1] and (d_out,) == sizes[2]
    if not known:
        raise DictionaryError(
            f"{source} says {config.d_sae} latents over width {config.d_in}, and predicting width {d_out}; the arrays have "
            f"the shapes b_enc {tuple(sizes[0])}, W_enc {tuple(sizes[1])} and b_dec {tuple(sizes[2])}.\n"
            "  One of the two is of another dictionary, or was edited. Copy the whole folder again."
        )


@torch.no_grad()
def subtract_b_dec(sae: SAE) -> None:
    """Put into the encoder's biases that b_dec is subtracted before encoding."""
    shift = sae.b_dec @ sae.W_enc
    sae.b_enc.sub_(shift)
    if isinstance(sae, GatedSAE):
        sae.b_mag.sub_(shift * sae.r_mag.exp())


def refuse_not_finite(sae: SAE, where: str) -> None:
    """Raises: DictionaryError: what was folded into the arrays made NaN or Inf of them."""
    for name, p in sae.named_parameters():
        if not torch.isfinite(p).all():
            raise DictionaryError(f"{name} in {where} is NaN or Inf once scales and biases are folded in: one is too large.")


def renamed(stored: Mapping[str, Tensor], names: Mapping[str, str], where: object) -> dict[str, Tensor]:
    """Arrays by our names; `names` maps those of a format that differ.

    Raises:
        DictionaryError: two arrays have names that mean the same, and nothing says which one counts.
    """
    arrays: dict[str, Tensor] = {}
    for theirs, array in stored.items():
        ours = names.get(theirs, theirs)
        if ours in arrays:
            both = ", ".join(name for name in stored if names.get(name, name) == ours)
            raise DictionaryError(
                f"{where} holds {ours} twice ({both}), and nothing says which one counts.\n"
                "  Copy or fetch the whole folder again."
            )
        arrays[ours] = array
    return arrays


def need(arrays: dict[str, Tensor], names: tuple[str, ...], where: str) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DictionaryError(f"{where} lacks {', '.join(missing)}.\n  It holds: {', '.join(sorted(arrays)) or 'nothing'}")
    strange = [name for name in names if not arrays[name].is_floating_point()]
    if strange:
        raise DictionaryError(f"{', '.join(strange)} in {where} are stored as {arrays[strange[0]].dtype}; weights are numbers.")


def refuse_turned(W_enc: Tensor, W_dec: Tensor, where: str) -> None:
    """A square matrix has the right shape either way round, but an encoder's columns lie along the decoder's rows (P28).

    That both are turned cannot be seen in them, only in activations.

    Raises:
        DictionaryError: they lie along the decoder's columns.
    """
    stored = cosine_similarity(W_enc.T, W_dec, dim=1).median().item()
    turned = max(cosine_similarity(a, b, dim=1).median().item() for a, b in ((W_enc.T, W_dec.T), (W_enc, W_dec)))
    if turned > max(0.3, stored + 0.2):
        raise DictionaryError(
            f"{where} is square ({len(W_enc)} latents over as wide activations), and W_enc or W_dec is transposed: the two "
            f"directions of a latent have a median cosine of {stored:.2f} as stored and of {turned:.2f} turned.\n"
            "  Turn the one that is wrong and save it again: W_enc is [d_in d_sae], W_dec is [d_sae d_in]."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
