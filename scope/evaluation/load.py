"""`scope.load_sae`: read a dictionary and, given its model, check that it fits there."""

import warnings
from pathlib import Path
from typing import Any

from scope.evaluation.certificate.certify import certify as certificate_for
from scope.sae.base import SAE
from scope.sae.files import read_sae
from scope.shapes import Tokens


class UncheckedWarning(UserWarning):
    """A dictionary was loaded for a model without the check that it fits, as the caller wished."""


def load_sae(
    folder_or_id: Path | str,
    device: str = "cpu",
    *,
    site: str | None = None,
    model: Any = None,
    certify: bool = True,
    any_model: bool = False,
    tokens: Tokens | None = None,
) -> SAE:
    """A dictionary from whatever `scope.sae.files.read_sae` reads: a folder, a file of weights, or the name of a published SAE
    (gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical, a hub id with the folder in it, or Neuronpedia's
    gemma-2-2b/12-gemmascope-res-16k). `site` is where it reads, for a file that does not say.

    With a `model` it is certified for it on about 2,000 tokens (`tokens`, by default bundled text), once: the result is kept
    beside the dictionary. `certify=False` skips that, with an UncheckedWarning; `any_model` allows other weights than it was
    made for, as a fine-tune of the same base.

    Raises:
        DictionaryError: nothing that can be read; or it does not fit the model, with the reading that explains it.
        ConfigError: a device that this machine does not have, or a model without a tokenizer and no tokens.
    """
    sae = read_sae(folder_or_id, device, site)
    if model is None:
        return sae
    if certify:
        certificate_for(model, sae, folder_or_id, tokens, any_model=any_model)
    else:
        warnings.warn(f"{folder_or_id} was not checked against the model: certify=False.", UncheckedWarning, stacklevel=2)
    return sae
