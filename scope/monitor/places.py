"""Sites by the names that transformers gives its modules, so that a monitor can be read without this project."""

from scope.models.face import LanguageModel
from scope.monitor.monitor import Hook


def sliding_window_of(model: LanguageModel) -> int | None:
    """Keys that a token of this model sees in a local layer, where transformers shows it another number: a RecurrentGemma as
    it was trained sees one more than its window."""
    shifted = getattr(model.cfg, "window_convention", "hf") == "deepmind"
    return model.cfg.window + 1 if shifted else None


_STREAM = {"hook_resid_pre": ("", "input"), "hook_resid_post": ("", "output")}


def hook_of(model: LanguageModel, site: str) -> Hook | None:
    """The module of a transformers decoder whose input or output is the site; None where no module has it."""
    if not site.startswith("blocks."):
        return None
    _, layer, name = site.split(".", 2)
    recurrent, two = "recurrent" in model.cfg.model_type, getattr(model.cfg, "post_norms", False)
    mlp = "mlp_block" if recurrent else "mlp"
    places: dict[str, tuple[str, str]] = {
        **_STREAM,
        "hook_mlp_out": (".post_feedforward_layernorm" if two else f".{mlp}", "output"),
        "hook_resid_mid": (
            ".channel_pre_norm" if recurrent else ".pre_feedforward_layernorm" if two else ".post_attention_layernorm",
            "input",
        ),
        "mlp.hook_post": (f".{mlp}.down_proj", "input"),
    }
    if not recurrent:
        places["hook_attn_out"] = (".post_attention_layernorm" if two else ".self_attn", "output")
        places["attn.hook_z"] = (".self_attn.o_proj", "input")
    if name not in places:
        return None
    module, side = places[name]
    return Hook(f"layers.{layer}{module}", side)
