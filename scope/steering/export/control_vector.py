"""An intervention as a control vector of llama.cpp: GGUF, one vector a layer, added at every token.

llama.cpp adds the tensor direction.N to what block N (counted from 0) gives to the next, at every token, <bos> too. There is no
direction.0: its loader refuses one, so the output of the first block cannot be edited. The file holds one-dimensional float32
tensors under the architecture "controlvector", with controlvector.model_hint (the architecture of the model) and
controlvector.layer_count (how many tensors it holds). Source: llama.cpp, common_control_vector_load_one in common/common.cpp
and llama_adapter_cvec in src/llama-adapter.cpp; the Python package repeng writes the same layout.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.steering.apply.resolve import Resolved
from scope.whole_files import file_aside

HINTS = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
"""model_type in config.json -> general.architecture of the model's own GGUF."""


def refusal(model: LanguageModel, edits: Sequence[Resolved]) -> str | None:
    """Why a control vector cannot carry the edits; None where it can."""
    kind = getattr(model.cfg, "model_type", "")
    if kind not in HINTS:
        return f"llama.cpp has no {getattr(model.cfg, 'family_name', kind or 'such model')} with control vectors"
    for one in edits:
        edit = one.edit
        if edit.kind != "add":
            return f"it adds the same vector at every token, and [{edit}] depends on what is read there"
        if edit.when:
            return f"it adds at every token, and [{edit}] has a condition"
        if edit.positions.kind != "all":
            return f"it adds at every token, <bos> too, and [{edit}] does not; export with --positions all"
        if layer_of(one.site) is None:
            return f"it adds to what a block gives to the next, and {one.site} is another place"
        if layer_of(one.site) < 1:
            return f"llama.cpp adds nothing after the first block, where {one.site} is"
    return None


def layer_of(site: str) -> int | None:
    """N of the tensor direction.N that acts at a site; None for other sites than the stream between blocks."""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", site)
    return int(match[1]) - (match[2] == "pre") if match else None


def vectors(edits: Sequence[Resolved]) -> dict[int, np.ndarray]:
    """Layer -> the float32 vector that is added there."""
    sums: dict[int, torch.Tensor] = {}
    for one in edits:
        layer = layer_of(one.site)
        added = one.row.detach().float().cpu() * one.amount
        sums[layer] = sums[layer] + added if layer in sums else added
    return {layer: vector.numpy() for layer, vector in sorted(sums.items())}


def write(file: Path, model: LanguageModel, edits: Sequence[Resolved]) -> Path:
    """Write the control vector and read it back.

    Raises:
        EditError: the form cannot carry the edits, or what is read back differs in a single bit.
    """
    why = refusal(model, edits)
    if why is not None:
        raise EditError(f"A GGUF control vector cannot carry this: {why}.")
    import gguf

    arch, added = "controlvector", vectors(edits)
    with file_aside(file) as aside:
        writer = gguf.GGUFWriter(str(aside), arch)
        writer.add_string(f"{arch}.model_hint", HINTS[model.cfg.model_type])
        writer.add_uint32(f"{arch}.layer_count", len(added))
        for layer, vector in added.items():
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check(read(aside)[1], added)
    return file


def read(file: Path) -> tuple[dict[str, str | int], dict[int, np.ndarray]]:
    """(model_hint and layer_count, layer -> vector) of a control vector.

    Raises:
        EditError: it is no GGUF, or no control vector.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(str(file))
        facts = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {t.name: np.array(t.data) for t in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EditError(f"{file} cannot be read as GGUF: {error}") from None
    names = {name: re.fullmatch(r"direction\.([1-9]\d*)", name) for name in tensors}
    if facts.get("general.architecture") != "controlvector" or not all(names.values()):
        raise EditError(f"{file} is a GGUF of {facts.get('general.architecture')}, and no control vector.")
    known = {name: facts.get(f"controlvector.{name}") for name in ("model_hint", "layer_count")}
    return known, {int(match[1]): tensors[name] for name, match in names.items()}


def _check(read_back: Mapping[int, np.ndarray], meant: Mapping[int, np.ndarray]) -> None:
    same = read_back.keys() == meant.keys() and all(
        read_back[layer].dtype == np.float32 and read_back[layer].tobytes() == meant[layer].tobytes() for layer in meant
    )
    if not same:
        raise EditError("The control vector that was written is read back with other numbers, so it was not kept.")
