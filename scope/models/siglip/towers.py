"""SigLIP's two towers: a vision transformer with a pooling head, and a text encoder that reads its last position."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from scope.errors import ConfigError, PictureError, TokensError
from scope.models.hooks import HookPoint
from scope.models.siglip.config import TextConfig, TowerConfig, VisionConfig
from scope.models.siglip.parts import MLP, Block, FullAttention, LayerNorm
from scope.shapes import Embeddings, PatchRows, Resid


class Tower(nn.Module):
    """Blocks and the norm after them. `hook_out` sees what the norm gives, which is what everything else reads."""

    def __init__(self, c: TowerConfig):
        super().__init__()
        self.cfg = c

    def add_blocks(self) -> None:
        """The parts that follow the embedding, registered after it so that hook points stand in the order of a run."""
        c = self.cfg
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.ln_final, self.hook_out = LayerNorm(c.d_model, c.eps), HookPoint(c.d_model)

    def run_blocks(self, resid: Resid, stop_at_layer: int | None) -> Resid:
        """The stream before block `stop_at_layer`; None: after all blocks and the norm."""
        n = len(self.blocks)
        stop = n if stop_at_layer is None else stop_at_layer + n if stop_at_layer < 0 else stop_at_layer
        if not 0 <= stop <= n:
            raise ConfigError(f"stop_at_layer is {stop_at_layer}; this tower has blocks 0 to {n - 1}.")
        for block in self.blocks[:stop]:
            resid = block(resid)
        return resid if stop_at_layer is not None else self.hook_out(self.ln_final(resid))


class PoolingAttention(FullAttention):
    """Attention with one query, a learned probe; its three projections are stored as one matrix."""

    def make_projections(self, d_model: int) -> None:
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: PatchRows, probe: Tensor) -> Resid:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (self.heads(linear(t, w, b)) for t, w, b in zip((probe, x, x), weights, biases, strict=True))
        return self.output(self.hook_z(self.attend(self.hook_q(q), self.hook_k(k), self.hook_v(v))))


class PoolingHead(nn.Module):
    """y = attention of the probe over all patches; y + MLP(LN y). The probe itself is not added."""

    def __init__(self, c: VisionConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, c.d_model))
        self.attn, self.hook_attn_out = PoolingAttention(c.d_model, c.n_heads), HookPoint(c.d_model)
        self.ln, self.mlp = LayerNorm(c.d_model, c.eps), MLP(c.d_model, c.d_mlp)
        self.hook_mlp_out = HookPoint(c.d_model)

    def forward(self, patches: PatchRows) -> Embeddings:
        attn_out = self.hook_attn_out(self.attn(patches, self.probe.expand(len(patches), -1, -1)))
        return (attn_out + self.hook_mlp_out(self.mlp(self.ln(attn_out))))[:, 0]


class VisionTower(Tower):
    """Patches of a picture, row by row, then blocks. `hook_patches` sees the embedded patches, `hook_pos` their places'
    vectors, `hook_out` the rows after the last norm, `hook_pooled` the one vector of a picture [image d_model]."""

    def __init__(self, c: VisionConfig):
        super().__init__(c)
        self.patches = nn.Conv2d(c.n_channels, c.d_model, c.patch_size, c.patch_size)
        self.W_pos = nn.Parameter(torch.zeros(c.n_patches, c.d_model))
        self.hook_patches, self.hook_pos = HookPoint(c.d_model), HookPoint(c.d_model)
        self.add_blocks()
        self.head = PoolingHead(c) if c.use_head else None
        self.hook_pooled = HookPoint(c.d_model) if c.use_head else None

    def forward(self, pixel_values: Any, stop_at_layer: int | None = None) -> PatchRows:
        """The rows after the last norm, or the stream before a block.

        Raises:
            PictureError: pixels of another shape or type than this tower takes.
        """
        self.check(pixel_values)
        patches = self.hook_patches(self.patches(pixel_values.to(self.W_pos)).flatten(2).transpose(1, 2))
        return self.run_blocks(patches + self.hook_pos(self.W_pos.expand_as(patches)), stop_at_layer)

    def pool(self, rows: PatchRows) -> Embeddings:
        """One vector for each picture, not normalised.

        Raises:
            ConfigError: this tower has no head.
        """
        if self.head is None:
            raise ConfigError(
                "This vision tower has no pooling head, so there is no one vector of a picture. Read vision.hook_out."
            )
        return self.hook_pooled(self.head(rows))

    def check(self, pixel_values: Any) -> None:
        c = self.cfg
        wanted = (c.n_channels, c.image_size, c.image_size)
        way_out = "\n  model.to_pixels(pictures) prepares pictures, files or arrays as this checkpoint was trained."
        if not isinstance(pixel_values, Tensor):
            raise PictureError(f"pixel_values are a tensor, and this is a {type(pixel_values).__name__}.{way_out}")
        if pixel_values.dim() != 4 or pixel_values.shape[1:] != wanted or not len(pixel_values):
            raise PictureError(
                f"pixel_values are [image, {', '.join(map(str, wanted))}] for this model; these are "
                f"{list(pixel_values.shape)}.{way_out}"
            )
        if not pixel_values.is_floating_point():
            kind = str(pixel_values.dtype).removeprefix("torch.")
            raise PictureError(f"pixel_values are {kind}: grey levels that are not scaled yet.{way_out}")
        if not torch.compiler.is_compiling() and not torch.isfinite(pixel_values).all():
            raise PictureError("pixel_values hold NaN or infinite values.")


class TextTower(Tower):
    """Tokens, then blocks without any mask. `hook_pooled` sees the one vector of a text [text d_out]: the head's of the last
    position, which is padding as a rule."""

    def __init__(self, c: TextConfig):
        super().__init__(c)
        self.embed = nn.Embedding(c.d_vocab, c.d_model)
        self.W_pos = nn.Parameter(torch.zeros(c.n_ctx, c.d_model))
        self.hook_embed, self.hook_pos = HookPoint(c.d_model), HookPoint(c.d_model)
        self.add_blocks()
        self.head = nn.Linear(c.d_model, c.d_out)
        self.hook_pooled = HookPoint(c.d_out)

    def forward(self, tokens: Any, stop_at_layer: int | None = None) -> Resid:
        """The rows after the last norm, or the stream before a block.

        Raises:
            TokensError: no tokens, ids outside the vocabulary, or more tokens than the tower has positions.
        """
        self.check(tokens)
        embedded = self.hook_embed(self.embed(tokens.to(self.W_pos.device)))
        return self.run_blocks(embedded + self.hook_pos(self.W_pos[: tokens.shape[1]].expand_as(embedded)), stop_at_layer)

    def pool(self, rows: Resid) -> Embeddings:
        """One vector for each text, not normalised."""
        return self.hook_pooled(self.head(rows[:, -1]))

    def check(self, tokens: Any) -> None:
        c = self.cfg
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point() or not tokens.numel():
            shape = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TokensError(f"Tokens are whole numbers [text pos]; these are {shape}. model.to_tokens(texts) makes them.")
        if tokens.shape[1] > c.n_ctx:
            raise TokensError(f"{tokens.shape[1]} tokens do not fit: this tower has {c.n_ctx} positions. Cut the text.")
        low, high = torch.aminmax(tokens)
        if low < 0 or high >= c.d_vocab:
            raise TokensError(f"Token ids run from {low} to {high}; this tower's vocabulary ends at {c.d_vocab - 1}.")
