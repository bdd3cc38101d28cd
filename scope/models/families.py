"""model_type of a config.json -> the family of models that computes it. Only the family that is asked for is imported."""

from importlib import import_module
from typing import Any

from scope.errors import CheckpointError

FAMILIES = {
    "gemma": "scope.models.gemma.model.Gemma",
    "gemma2": "scope.models.gemma.model.Gemma",
    "gemma3_text": "scope.models.gemma.model.Gemma",
    "gemma3": "scope.models.gemma.model.Gemma",  # its language part
    "colpali": "scope.models.paligemma.colpali.ColPali",
    "paligemma": "scope.models.paligemma.model.PaliGemma",
    "siglip": "scope.models.siglip.model.Siglip",
    "siglip_vision_model": "scope.models.siglip.model.Siglip",
    "siglip_text_model": "scope.models.siglip.model.Siglip",
    "recurrent_gemma": "scope.models.griffin.model.Griffin",
}
"""A family is a Decoder with `config_from_hf`; see scope/models/parts/decoder.py."""


def family_of(raw: dict[str, Any], where: str) -> Any:
    """The class for a config.json; `where` names the checkpoint in refusals.

    Raises:
        CheckpointError: a model_type that is not computed here.
    """
    kind, classes = raw.get("model_type"), raw.get("architectures")
    kind = "colpali" if isinstance(classes, list) and "ColPali" in classes else kind  # a PaliGemma in colpali-engine's layout
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{where} holds a model of type {kind!r}; scope computes {', '.join(FAMILIES)}.\n"
            "  Give a Gemma checkpoint, --model bundled, or --model lens:NAME for a model that TransformerLens loads."
        )
    module, name = FAMILIES[kind].rsplit(".", 1)
    return getattr(import_module(module), name)
