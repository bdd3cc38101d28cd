"""From five foreign arrays to a JumpReLU dictionary, once their shapes and values have been held against one another."""

import numpy as np
import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def jumprelu_from(arrays: dict[str, Tensor], where: str, site: str = "") -> JumpReLUSAE:
    """A dictionary of `arrays`, converted to float32; `where` names the file in refusals.

    Raises:
        DictionaryError: an array is missing, has another shape than the biases ask for (a transposed matrix is named as such),
            holds NaN or Inf, or the thresholds look like logarithms.
    """
    missing = [name for name in NAMES if name not in arrays]
    if missing:
        raise DictionaryError(f"{where} lacks {', '.join(missing)}.\n  It holds: {', '.join(sorted(arrays)) or 'nothing'}")
    arrays = {name: arrays[name] for name in NAMES}
    for name in ("b_enc", "b_dec", "threshold"):
        if arrays[name].dim() != 1:
            raise DictionaryError(f"{name} in {where} has shape {tuple(arrays[name].shape)}; it must be one row of numbers.")
    d_sae, d_in = len(arrays["b_enc"]), len(arrays["b_dec"])
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "threshold": (d_sae,)}
    for name, shape in shapes.items():
        found = tuple(arrays[name].shape)
        if found != shape:
            turned = " It is transposed: turn it and save it again." if found == shape[::-1] != shape else ""
            raise DictionaryError(
                f"{name} in {where} has shape {found}; with {d_sae} latents over width {d_in} it must be {shape}.{turned}"
            )
    arrays = {name: array.to(torch.float32).contiguous() for name, array in arrays.items()}
    for name, array in arrays.items():
        bad = int((~torch.isfinite(array)).sum())
        if bad:
            raise DictionaryError(f"{name} in {where} holds {bad} values that are NaN or Inf. Fetch or train it anew.")
    if (arrays["threshold"] < 0).float().mean() > 0.5:
        raise DictionaryError(
            f"Most thresholds in {where} are negative (median {arrays['threshold'].median():.2g}): were logarithms stored?\n"
            "  Store exp of them under `threshold`, or the logarithms under `log_threshold`."
        )
    sae = JumpReLUSAE(JumpReLUConfig(d_in=d_in, d_sae=d_sae, target_l0=min(32.0, float(d_sae))), site)
    sae.load_state_dict(arrays)
    return sae


def from_numpy(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
