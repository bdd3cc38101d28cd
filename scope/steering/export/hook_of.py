"""Describes edits to the exported hook.py, and refuses those that it cannot carry."""

import re
from collections.abc import Sequence
from typing import Any

from scope.models.face import LanguageModel, VisionModel
from scope.models.text.generate import end_ids
from scope.provenance import ModelId
from scope.steering.apply.resolve import Resolved
from scope.steering.edits.interventions import When
from scope.steering.export.places import place_here
from scope.steering.export.recorded import RecordedText
from scope.steering.export.transformers_hook import FORMULAS, first_rows_sha256

_WHOLE = {"hook_resid_pre": ("", "input"), "hook_resid_post": ("", "output")}
_NORMED = {
    "hook_attn_out": (".post_attention_layernorm", "output"),
    "hook_mlp_out": (".post_feedforward_layernorm", "output"),
}
MODULES: dict[str, dict[str, tuple[str, str]]] = {
    "gemma": {**_WHOLE, "hook_attn_out": (".self_attn", "output"), "hook_mlp_out": (".mlp", "output")},
    "gemma2": {**_WHOLE, **_NORMED},
    "gemma3_text": {**_WHOLE, **_NORMED},
    "recurrent_gemma": {
        **_WHOLE,
        "hook_attn_out": (".temporal_block", "output"),
        "rec.hook_rec_out": (".temporal_block", "output"),
        "hook_mlp_out": (".mlp_block", "output"),
    },
}
"""model_type -> end of a site -> module of a layer in transformers, and whether the site is what goes in or comes out."""


def refusal(model: LanguageModel, edits: Sequence[Resolved], texts: Sequence[RecordedText]) -> str | None:
    """Why hook.py cannot carry the edits; None where it can."""
    known = MODULES.get(getattr(model.cfg, "model_type", ""))
    if known is None or isinstance(model, VisionModel):
        return f"the modules of a {getattr(model.cfg, 'family_name', type(model).__name__)} in transformers are not known here"
    for one in edits:
        if _place(known, one.site) is None:
            return f"{one.site} is no module's input or output in transformers; it can be {', '.join(known)}"
        if one.edit.kind not in FORMULAS or one.edit.positions.kind in ("image", "text"):
            return f"[{one.edit}] acts on a state or on a picture"
    longest, window = max((len(t.prompt_ids) + t.max_new_tokens for t in texts), default=0), getattr(model.cfg, "window", 0)
    if getattr(model.cfg, "window_convention", "hf") == "deepmind" and longest > window:
        return (
            f"the test texts have up to {longest} tokens, beyond the window of {window}, where transformers reads a "
            "RecurrentGemma otherwise: take shorter ones, or export with --window-convention hf"
        )
    return None


def about_hook(model: LanguageModel, edits: Sequence[Resolved]) -> dict[str, Any]:
    """The model by a hash of its embedding, its special tokens, and per edit its module, formula and amount."""
    identity, words = ModelId.of(model.provenance), model.tokenizer
    name, _, adapter = (identity.name or "").partition("+")
    known = MODULES.get(getattr(model.cfg, "model_type", ""), {})
    return {
        "model": place_here(name),
        "adapter": place_here(adapter) or None,
        "revision": identity.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "embedding_sha256": first_rows_sha256(model.embed.weight),
        "bos": model.cfg.bos,
        "eos": model.cfg.eos[0],
        "pad": model.cfg.pad,
        "ends": sorted(i for i in end_ids(model) if i is not None),
        "special": sorted(words.special_ids) if words else [],
        "edits": [_row(known, one) for one in edits],
    }


def _row(known: dict[str, tuple[str, str]], one: Resolved) -> dict[str, Any]:
    module, side = _place(known, one.site) or (None, None)
    edit, when = one.edit, one.edit.when
    reads = "projection" if edit.reads == "activation" and not edit.reads_own_latent else edit.reads
    amount = edit.factor if edit.kind == "scale" else one.amount
    above = when.above if isinstance(when, When) else None
    does = {"module": module, "side": side, "does": edit.kind, "reads": reads, "amount": amount}
    return {"site": one.site, **does, "positions": str(edit.positions), "above": above}


def _place(known: dict[str, tuple[str, str]], site: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
    if match is None or match[2] not in known:
        return None
    module, side = known[match[2]]
    return f"layers.{match[1]}{module}", side
