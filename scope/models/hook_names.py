"""Names of hook points: TransformerLens' shorthand spelled out, and the names most like one that does not exist."""

import difflib
import re
from collections.abc import Sequence

_IN_ATTENTION = {"q", "k", "v", "z", "rot_q", "rot_k", "attn_scores", "pattern", "result"}
_IN_MLP = {"pre", "pre_linear", "post"}
_ALIASES = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
_ALIASES |= {"mlp_pre": "pre", "mlp_post": "post"}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp"}


def short_name(name: str, layer: int | None = None, part: str | None = None) -> str:
    """TransformerLens' shorthand, spelled out: ("resid_post", 3), or "resid_post3", is blocks.3.hook_resid_post."""
    if layer is None and ("." in name or name.startswith("hook_")):
        return name
    glued = re.fullmatch(r"([a-z_]+?)(\d+)([a-z]?.*)", name)
    if layer is None and glued:
        name, layer, part = glued[1], int(glued[2]), glued[3] or part
    name, part = _ALIASES.get(name, name), _PARTS.get(part, part)
    if layer is None:
        return f"ln_final.hook_{name}" if name in ("scale", "normalized") else f"hook_{name}"
    if name in ("scale", "normalized"):
        return f"blocks.{layer}.{part or 'ln1'}.hook_{name}"
    part = "attn" if name in _IN_ATTENTION else "mlp" if name in _IN_MLP else part
    return f"blocks.{layer}.{part}.hook_{name}" if part else f"blocks.{layer}.hook_{name}"


def nearest(name: str, known: Sequence[str], n: int = 4) -> str:
    """The end of a refusal: the known names most like `name`."""
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4) or list(known)[:n]
    return f"\n  Nearest: {', '.join(close)}" if close else ""
