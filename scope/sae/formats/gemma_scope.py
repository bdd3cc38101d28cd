"""Gemma Scope's releases: one params.npz per dictionary, and a path that says what it is.

    layer_12/width_16k/average_l0_82/params.npz      in google/gemma-scope-2b-pt-res, -mlp, -att

Encoding is x @ W_enc + b_enc: their scale and pre-encoder bias are folded in already (arXiv:2408.05147, appendix B).
"""

import re
import zipfile
from pathlib import Path

import numpy as np

from scope.errors import DictionaryError
from scope.sae.formats.arrays import from_numpy, jumprelu_from
from scope.sae.jumprelu import JumpReLUSAE

SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_KEYS = {"w_enc": "W_enc", "w_dec": "W_dec"}


def read(file: Path, named: str | None = None) -> JumpReLUSAE:
    """The dictionary in a params.npz. The site is read from the path (`named`, where it is known better than `file`).

    Raises:
        DictionaryError: not an npz, one that holds pickles, or arrays that do not fit together.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {_KEYS.get(name, name): from_numpy(archive[name]) for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise DictionaryError(f"{file} holds pickled objects, which could run code when read. They are refused.") from None
        raise DictionaryError(f"{file} cannot be read as an npz archive: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, AttributeError) as error:
        raise DictionaryError(f"{file} is damaged or not an npz archive ({error}). Fetch it again.") from None
    path = named or str(file)
    sae = jumprelu_from(arrays, str(file), site_of(path))
    sae.provenance = {"model": {"model": model_of(path)}, "site": sae.site, "format": "gemma_scope", "source": path}
    return sae


def site_of(path: str) -> str:
    """blocks.12.hook_resid_post, from a path of Gemma Scope's form; empty where the path says too little."""
    layer = re.search(r"layer_(\d+)", path)
    part = re.search(r"gemma-scope-[^/]*?-(res|mlp|att)\b", path)
    return f"blocks.{layer[1]}.{SITES[part[1]]}" if layer and part else ""


def model_of(path: str) -> str:
    """google/gemma-2-2b, from a path of Gemma Scope's form; empty where the path says too little."""
    found = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)", path)
    return f"google/gemma-2-{found[1]}{'-it' if found[2] == 'it' else ''}" if found else ""
