"""Decomposes the residual stream into what the embedding, sublayers, heads and neurons added to it, and to a token's score.

The methods are TransformerLens', with two differences, both because no weights are folded here. `apply_ln` multiplies by the
norm's gain too, so that what it gives times `W_U` is a logit before the soft cap. And what a head or a neuron writes passes
the norm that follows it, so that parts add up to the whole; `post_norm=False` gives TransformerLens' numbers, before that norm.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from scope.errors import ConfigError

Slice = Any
"""An index, a (start, stop[, step]) or slice, several indices, TransformerLens' own Slice of these, or None for all."""

Labelled = Tensor | tuple[Tensor, list[str]]


def cut(x: Tensor, where: Slice, dim: int) -> Tensor:
    """One index (which drops the dimension), a (start, stop[, step]), or several indices, along `dim`; None takes all."""
    where = where.slice if hasattr(where, "slice") and hasattr(where, "mode") else where  # TransformerLens' Slice
    if where is None:
        return x
    if isinstance(where, int):
        return x.select(dim, where)
    if isinstance(where, tuple):
        where = slice(*where)
    if isinstance(where, slice):
        return x.index_select(dim, torch.arange(x.shape[dim], device=x.device)[where])
    return x.index_select(dim, torch.arange(x.shape[dim], device=x.device)[torch.as_tensor(where)])


class Decomposition:
    """For a mapping from hook names, short ones too, to tensors, with the `model` that answers for the weights."""

    model: Any
    tensors: dict[str, Tensor]
    has_batch_dim: bool

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Labelled:
        """[part ... d_model] the stream before each block, up to `layer`. With `apply_ln` and up to the end, each through the
        final norm by its own scale (the logit lens); up to a block, all by the scale of that block's norm."""
        upto, parts = self._upto(layer), {}
        for n in range(upto + 1):
            if n == self._layers:
                parts["final_post"] = self["resid_post", n - 1]
                continue
            parts[f"{n}_pre"] = self["resid_pre", n]
            if (incl_mid and n < upto) or (mlp_input and n == upto):
                parts[f"{n}_mid"] = self["resid_mid", n]
        stack = torch.stack([cut(x, pos_slice, -2) for x in parts.values()])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, upto, mlp_input, pos_slice, recompute_ln=upto == self._layers)
        return (stack, list(parts)) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Labelled:
        """[part ... d_model] what the embedding and every sublayer before `layer` added to the stream; with mode "all" the
        parts sum to it."""
        upto = self._upto(layer)
        parts = {"embed": self["embed"]} if incl_embeds else {}
        for n in range(upto + (mlp_input and mode != "mlp")):
            if mode != "mlp":
                mixer = "rec_out" if self._recurrent(n) else "attn_out"
                parts[f"{n}_{mixer}"] = self[mixer, n]
            if mode != "attn" and n < upto:
                parts[f"{n}_mlp_out"] = self["mlp_out", n]
        if not parts:
            raise ConfigError(f"Nothing of mode {mode!r} lies before layer {upto}.")
        stack = torch.stack([cut(x, pos_slice, -2) for x in parts.values()])
        stack = self.apply_ln_to_stack(stack, upto, mlp_input, pos_slice) if apply_ln else stack
        return (stack, list(parts)) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice = None,
        apply_ln: bool = False,
        post_norm: bool = True,
    ) -> Labelled:
        """[head ... d_model] what each head of each block before `layer` adds to the stream, layer by layer; the remainder is
        the rest of the stream there."""
        upto, stacks, labels = self._upto(layer), [], []
        for n in filter(lambda n: not self._recurrent(n), range(upto)):
            results = cut(self._head_results(n), pos_slice, -3).movedim(-2, 0)
            stacks.append(self._after_norm(results, n, "ln1_post", pos_slice) if post_norm and self._post_norms else results)
            labels += [f"L{n}H{head}" for head in range(self.model.cfg.n_heads)]
        return self._finish(stacks, labels, upto, return_labels, incl_remainder, pos_slice, apply_ln, None)

    def compute_head_results(self) -> None:
        """Adds `blocks.N.attn.hook_result`, what each head writes [... head d_model], for every block whose z is here."""
        for n in filter(lambda n: not self._recurrent(n), range(self._layers)):
            self.tensors[f"blocks.{n}.attn.hook_result"] = self._head_results(n)

    def _head_results(self, layer: int) -> Tensor:
        if (name := f"blocks.{layer}.attn.hook_result") in self.tensors:
            return self.tensors[name]
        z = self["z", layer]
        return torch.einsum("...hk,hkd->...hd", z, self.model.blocks[layer].attn.W_O.to(z.device))

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice = None,
        pos_slice: Slice = None,
        project_output_onto: Tensor | None = None,
        post_norm: bool = True,
    ) -> Tensor:
        """[... neuron d_model] what each neuron of one block adds to the stream, or, projected onto [d_model] or
        [d_model n], its products with those, at no more memory than they need."""
        onto, w = project_output_onto, self.model.blocks[layer].mlp.W_out
        acts = cut(cut(self["post", layer], pos_slice, -2), neuron_slice, -1)
        w = cut(w.to(acts.device), neuron_slice, 0)
        if post_norm and self._post_norms:
            norm = self.model.blocks[layer].ln2_post
            acts = (acts / cut(self["scale", layer, "ln2_post"], pos_slice, -2)).to(acts.dtype)
            w = w * norm.w.to(w)
        if onto is None:
            return acts[..., None] * w
        projected = w @ onto
        return acts * projected if projected.dim() == 1 else acts[..., None] * projected

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Slice = None,
        neuron_slice: Slice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        post_norm: bool = True,
    ) -> Labelled:
        """[neuron ... d_model] what each neuron before `layer` adds to the stream, or its products with [d_model n]."""
        upto = self._upto(layer)
        neuron_slice = neuron_slice.slice if hasattr(neuron_slice, "mode") else neuron_slice
        neuron_slice = [neuron_slice] if isinstance(neuron_slice, int) else neuron_slice
        chosen = cut(torch.arange(self.model.cfg.d_mlp), neuron_slice, 0).tolist()
        labels = [f"L{n}N{neuron}" for n in range(upto) for neuron in chosen]
        norm = (upto, False) if apply_ln else None
        stacks = self._neurons(upto, pos_slice, neuron_slice, norm, project_output_onto, post_norm)
        return self._finish(stacks, labels, upto, return_labels, incl_remainder, pos_slice, apply_ln, project_output_onto)

    def get_full_resid_decomposition(
        self,
        layer: int | None = -1,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
        post_norm: bool = True,
    ) -> Labelled:
        """[part ... d_model] heads, recurrent blocks, then neurons (or, unexpanded, MLPs), the embedding and the biases of
        heads and neurons (Gemma has none). They sum to the stream before `layer`; TransformerLens' order and labels."""
        upto, onto = self._upto(layer), project_output_onto

        def done(stack: Tensor) -> Tensor:
            stack = self.apply_ln_to_stack(stack, upto, mlp_input, pos_slice) if apply_ln else stack
            return stack if onto is None else stack @ onto

        heads, labels = self.stack_head_results(upto + mlp_input, True, pos_slice=pos_slice, post_norm=post_norm)
        stacks, embed = [done(heads)], cut(self["embed"], pos_slice, -2)[None]
        recurrent = [n for n in range(upto + mlp_input) if self._recurrent(n)]
        if recurrent:
            stacks.append(done(torch.stack([cut(self["rec_out", n], pos_slice, -2) for n in recurrent])))
            labels = [*labels, *(f"L{n}rec" for n in recurrent)]
        if upto and expand_neurons:
            norm = (upto, mlp_input) if apply_ln else None
            neurons = torch.cat(self._neurons(upto, pos_slice, None, norm, onto, post_norm))
            neurons = neurons if onto is not None or not apply_ln else done(neurons)
            named = [f"L{n}N{neuron}" for n in range(upto) for neuron in range(self.model.cfg.d_mlp)]
            stacks, labels = [*stacks, neurons], labels + named
        elif upto:
            mlps, named = self.decompose_resid(upto, False, "mlp", False, pos_slice, False, True)
            stacks, labels = [*stacks, done(mlps)], labels + named
        bias = sum(self.model.blocks[n].attn.b_O for n in range(upto + mlp_input) if n not in recurrent)
        bias = bias + sum(self.model.blocks[n].mlp.b_out for n in range(upto if expand_neurons else 0))
        stacks += [done(embed), done(torch.zeros_like(embed) + bias)]
        stack = torch.cat(stacks)
        return (stack, [*labels, "embed", "bias"]) if return_labels else stack

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice = None,
        batch_slice: Slice = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """The norm before `layer` (the final one by default), gain included, of each part: by the scale that the whole stream
        had there, so that parts still sum; with `recompute_ln` by the scale of each part itself."""
        norm, _ = self._norm(self._upto(layer), mlp_input)
        stack = cut(residual_stack, batch_slice, 1) if has_batch_dim else residual_stack
        if recompute_ln:
            return norm(stack)
        return (stack / self._scale(self._upto(layer), mlp_input, pos_slice, batch_slice) * norm.w.to(stack.device)).to(
            stack.dtype
        )

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: Slice = None,
        batch_slice: Slice = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """[part ...] what each part adds to the score of a token, or to the difference of two, before the final soft cap.

        Raises:
            ConfigError: tokens and incorrect_tokens of different shapes.
        """
        directions = self.model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            others = self.model.tokens_to_residual_directions(incorrect_tokens)
            if others.shape != directions.shape:
                shapes = f"{tuple(directions.shape[:-1])} and {tuple(others.shape[:-1])}"
                raise ConfigError(f"tokens and incorrect_tokens have shapes {shapes}; they must be the same.")
            directions = directions - others
        scaled = self.apply_ln_to_stack(residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim)
        return (scaled * directions.to(scaled.device)).sum(-1)

    # Helpers

    _post_norms = property(lambda self: bool(self.model.cfg.use_normalization_before_and_after))

    def _recurrent(self, layer: int) -> bool:
        """Whether a block has a recurrence in place of attention."""
        return f"blocks.{layer}.rec.hook_rec_out" in self.model.hook_dict

    _layers = property(lambda self: self.model.cfg.n_layers)

    def _upto(self, layer: int | None) -> int:
        layer = self._layers if layer is None or layer == -1 else layer
        if not 0 <= layer <= self._layers:
            raise ConfigError(
                f"layer is {layer}; this model has blocks 0 to {self._layers - 1}, and {self._layers} is its end."
            )
        return layer

    def _norm(self, layer: int, mlp_input: bool = False) -> tuple[Any, str]:
        if layer == self._layers:
            return self.model.ln_final, "ln_final"
        part = "ln2" if mlp_input else "ln1"
        return getattr(self.model.blocks[layer], part), f"blocks.{layer}.{part}"

    def _scale(self, layer: int, mlp_input: bool, pos_slice: Slice, batch_slice: Slice = None) -> Tensor:
        scale = self[f"{self._norm(layer, mlp_input)[1]}.hook_scale"]
        return cut(cut(scale, batch_slice, 0) if self.has_batch_dim else scale, pos_slice, -2)

    def _after_norm(self, raw: Tensor, layer: int, norm: str, pos_slice: Slice) -> Tensor:
        """Parts of a sublayer's raw output, after the norm that follows it."""
        scale = cut(self["scale", layer, norm], pos_slice, -2)
        return (raw / scale * getattr(self.model.blocks[layer], norm).w.to(raw.device)).to(raw.dtype)

    def _neurons(
        self, upto: int, pos_slice, neuron_slice, norm: tuple[int, bool] | None, onto, post_norm: bool
    ) -> list[Tensor]:
        """A stack per block. Projected, they pass `norm` (layer, mlp_input) on the way; else that is left to the caller."""
        if onto is not None and norm is not None:
            gain = self._norm(*norm)[0].w.to(onto)
            onto = onto * (gain if onto.dim() == 1 else gain[:, None])
        dim = -1 if onto is not None and onto.dim() == 1 else -2
        stacks = [self.get_neuron_results(n, neuron_slice, pos_slice, onto, post_norm).movedim(dim, 0) for n in range(upto)]
        if onto is None or norm is None:
            return stacks
        scale = self._scale(*norm, pos_slice)
        return [stack / (scale if onto.dim() == 2 else scale[..., 0]) for stack in stacks]

    def _finish(
        self, stacks: Sequence[Tensor], labels: list[str], upto: int, named: bool, rest: bool, pos_slice, apply_ln, onto
    ) -> Labelled:
        stream = cut(self["resid_post", upto - 1] if upto else self["embed"], pos_slice, -2)[None]
        if onto is not None:
            stream = (self.apply_ln_to_stack(stream, upto, False, pos_slice) if apply_ln else stream) @ onto
        stack = torch.cat(list(stacks)) if stacks else stream[:0]
        if rest:
            stack, labels = torch.cat([stack, stream - stack.sum(0, keepdim=True)]), [*labels, "remainder"]
        if apply_ln and onto is None:
            stack = self.apply_ln_to_stack(stack, upto, False, pos_slice)
        return (stack, labels) if named else stack
