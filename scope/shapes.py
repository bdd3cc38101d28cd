"""Every tensor shape of the project.

batch  sequences           pos    token positions        tok    batch and pos, flattened
d_model  residual stream   d_in   what a dictionary reads        d_sae  its latents
head  query heads          kv     key-value heads               key  positions that can be attended to
"""

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Positions = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]
Roles = UInt8[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
Keys = Float[Tensor, "batch key kv d_head"]
Scores = Float[Tensor, "batch head pos key"]
Logits = Float[Tensor, "batch pos d_vocab"]
Acts = Float[Tensor, "tok d_in"]
Latents = Float[Tensor, "tok d_sae"]
Scalar = Float[Tensor, ""]
PerToken = Float[Tensor, "tok"]
Vector = Float[Tensor, "d_model"]
Pixels = Float[Tensor, "image channel height width"]
PatchRows = Float[Tensor, "image patch d_model"]
Embeddings = Float[Tensor, "_ d_out"]
MultiVectors = Float[Tensor, "text pos d_out"]
