"""How a push of the stream reaches the scores of tokens, by the weights alone: through the final norm's gain."""

import torch
from torch import Tensor

from scope.models.hooks import HookedModule


@torch.no_grad()
def through_final_norm(model: HookedModule, rows: Tensor) -> Tensor:
    """`rows` [... d_model] as the unembedding meets them, but for the norm's division: times its gain, and centred where the
    norm centres. Float32.

    A model of another library is asked, not opened: how its norm holds a gain (1 + w, w, folded away) shows in what it does to
    vectors of 1 and -1, whose mean square is 1 already.
    """
    from scope.models.gemma.model import Gemma

    rows = rows.detach().float()
    if isinstance(model, Gemma):
        return (1.0 + model.ln_final.weight.detach().float()).to(rows.device) * rows
    signs = torch.ones(rows.shape[-1], device=model.device, dtype=model.dtype)
    signs[1::2] = -1.0
    normed, negated, shifted = (model.ln_final(x[None, None])[0, 0].float() for x in (signs, -signs, signs + 1.0))
    gain = ((normed - negated) / 2 * signs).to(rows.device)
    if torch.allclose(normed, shifted, rtol=1e-2, atol=1e-2 * float(gain.abs().amax())):
        rows = rows - rows.mean(-1, keepdim=True)
    return gain * rows
