"""Hook points on request for what the sublayers of a block read, so that one head's or the MLP's can be changed alone."""

import torch
from torch import nn

from scope.errors import ConfigError
from scope.models.hooks import HookPoint
from scope.models.parts.attention import Attention, HeadInputs
from scope.models.parts.layers import RMSNorm
from scope.shapes import Resid


class SublayerInputs(nn.Module):
    """For a block with the norms `ln1` and `ln2`."""

    attn: Attention
    ln1: RMSNorm

    def add_input_points(self, n_heads: int, n_kv_heads: int, d_model: int) -> None:
        """Copies of the stream; none for heads where there are no heads."""
        if n_heads:
            self.hook_attn_in, self.hook_q_input = (HookPoint(n_heads * d_model, on_request=True) for _ in range(2))
            self.hook_k_input, self.hook_v_input = (HookPoint(n_kv_heads * d_model, on_request=True) for _ in range(2))
        self.hook_mlp_in = HookPoint(d_model, on_request=True)

    def mlp_input(self, resid: Resid) -> Resid:
        """The stream; where hooks may change what the MLP reads, a copy."""
        return self.hook_mlp_in(resid.clone()) if self.hook_mlp_in.has_hooks() else resid

    def attn_input(self, resid: Resid) -> Resid | HeadInputs:
        """The stream, normalised. Where hooks change what single heads read, or want its gradient, each head has its own,
        which is normalised on its own too; those that only read it change nothing."""
        points = (self.hook_attn_in, self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not any(point.has_hooks() for point in points):
            return self.ln1(resid)
        heads, kv = self.attn.n_heads, self.attn.n_kv_heads
        every, unchanged = self.hook_attn_in.run_hooks(resid.unsqueeze(2).repeat(1, 1, heads, 1))
        grouped = every.unflatten(2, (kv, -1))
        if not unchanged and not torch.equal(grouped, grouped[:, :, :, :1].expand_as(grouped)):
            raise ConfigError(
                f"A hook on {self.hook_attn_in.name} gave query heads that share a key-value head different inputs, so the "
                "keys have none.\n  Change hook_q_input, hook_k_input and hook_v_input instead."
            )
        shared = grouped.mean(3) if every.requires_grad else grouped[:, :, :, 0]
        parts = []
        for point, x in zip(points[1:], (every, shared, shared), strict=True):
            part, unchanged_too = point.run_hooks(x.clone())  # its own: writing into one, or its gradient, is not the others'
            parts.append(part)
            unchanged = unchanged and unchanged_too
        if unchanged and not every.requires_grad:
            return self.ln1(resid)
        return tuple(self.ln1(part) for part in parts)
