"""TransformerLens' further names for what a config says, and where the weights are."""

import torch

SETTABLE = ("default_prepend_bos", "use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
"""What code written for TransformerLens sets on a config; all else describes the checkpoint and stays as it is."""


def with_switches(config: type) -> type:
    """Above @dataclass(frozen=True): makes `SETTABLE` assignable, as they are in TransformerLens."""
    refuse = config.__setattr__

    def assign(self, name: str, value: object) -> None:
        (object.__setattr__ if name in SETTABLE else refuse)(self, name, value)

    config.__setattr__ = assign
    return config


class ConfigNames:
    """For the frozen config of a Gemma."""

    def note_place(self, dtype: torch.dtype, device: torch.device) -> None:
        """The model that owns this config says where its weights are, for readers of cfg.dtype and cfg.device. These are no
        fields, for a checkpoint cannot be compared by them."""
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "device", device)

    n_key_value_heads = property(lambda self: self.n_kv_heads)
    window_size = property(lambda self: self.window)
    attn_scores_soft_cap = property(lambda self: -1.0 if self.attn_cap is None else self.attn_cap)
    output_logits_soft_cap = property(lambda self: -1.0 if self.final_cap is None else self.final_cap)
    d_vocab_out = property(lambda self: self.d_vocab)
    act_fn = property(lambda self: "gelu_pytorch_tanh")
    normalization_type = property(lambda self: "RMS")
    positional_embedding_type = property(lambda self: "rotary")
    default_prepend_bos = True
    tokenizer_prepends_bos = property(lambda self: False)
    tokenizer_name = property(lambda self: self.model_name)
    attn_types = property(lambda self: list(self.layer_types))
    attn_scale = property(lambda self: self.query_scalar**0.5)
    use_local_attn = property(lambda self: "local" in self.layer_types)
    use_normalization_before_and_after = property(lambda self: self.post_norms)
    use_attn_scale = property(lambda self: True)
    gated_mlp = final_rms = tie_word_embeddings = uses_rms_norm = property(lambda self: True)
    attn_only = parallel_attn_mlp = rotary_adjacent_pairs = property(lambda self: False)
    use_attn_result = use_split_qkv_input = use_attn_in = use_hook_mlp_in = False  # what model.set_use_...() changes
    ungroup_grouped_query_attention = post_embedding_ln = scale_attn_by_inverse_layer_idx = from_checkpoint = False
    num_experts = None
    rotary_dim = property(lambda self: self.d_head)
    rotary_base = property(lambda self: self.rope_theta)
    attention_dir = property(lambda self: "causal")
    n_devices = property(lambda self: 1)
