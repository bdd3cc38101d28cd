"""Our parameter names -> those of a PaliGemma or ColPali on the hub, and the spellings in which both are saved.

language model     language_model.model.X    model.language_model.X    (released; as transformers 5 saves it)
vision tower       vision_tower.vision_model.X    vision_tower.X
in a ColPali       each behind vlm. (-hf) or model. (colpali-engine), and embedding_proj_layer or custom_text_proj
"""

from scope.models.gemma.weights import tensor_names as gemma_names
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.siglip.weights import vision_names

_HEADS = {"custom_text_proj.": "embedding_proj_layer."}
_HEAD_OF_TOWER = "vision_tower.head."


def tensor_names(c: PaliGemmaConfig) -> dict[str, str]:
    names = gemma_names(c) | vision_names(c.vision, "vision.", "vision_tower.")
    names |= {f"projector.{x}": f"multi_modal_projector.linear.{x}" for x in ("weight", "bias")}
    return names | ({} if c.d_embed is None else {f"proj.{x}": f"embedding_proj_layer.{x}" for x in ("weight", "bias")})


def canonical_name(name: str) -> str | None:
    """The name in `tensor_names` of a tensor, whichever way it was saved; None for what is no weight of ours, such as the
    pooling head of a tower."""
    while name.startswith(("vlm.", "model.")):
        name = name.split(".", 1)[1]
    if name.startswith("vision_tower."):
        name = "vision_tower." + name.removeprefix("vision_tower.").removeprefix("vision_model.")
        return None if name.startswith(_HEAD_OF_TOWER) or name.endswith(".position_ids") else name
    for before, after in _HEADS.items():
        name = name.replace(before, after, 1) if name.startswith(before) else name
    if name.startswith(("multi_modal_projector.", "embedding_proj_layer.")):
        return name
    name = name.removeprefix("language_model.").removeprefix("model.")
    return name if name.startswith("lm_head.") else f"model.{name}"
