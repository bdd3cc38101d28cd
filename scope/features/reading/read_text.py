"""Latents on a text of one's own: the one thing about a pack that needs the model and the dictionary."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scope.errors import PackError, TokensError
from scope.escape import escape, visible_token
from scope.features.pack.text import strip_html, strip_text
from scope.features.reading.ranking import ranked
from scope.sae.files import parameters_sha256

if TYPE_CHECKING:
    from scope.features.pack.store import FeatureStore


@dataclass(frozen=True, eq=False)
class TokenView:
    """Which latents fire where in a text. Control tokens such as <bos> count as silent, as everywhere in the pack."""

    store: "FeatureStore"
    ids: list[int]
    pieces: list[str]
    latents: np.ndarray
    """float32 [pos d_sae]."""
    fvu: float
    """Squared error of the reconstruction over the squared distance from b_dec, both summed over this text's tokens."""
    counted: np.ndarray
    """[pos] False at control tokens."""
    fvu_at: np.ndarray
    """[pos] the same ratio token by token, NaN at control tokens."""
    tuning: str = ""
    """What is another tuning of the same model here, as a base model's dictionary read with the instruction-tuned one; "" if
    nothing is."""

    _quantiles: dict[tuple[int, float], float] = field(default_factory=dict, repr=False)

    def quantile(self, latent: int, value: float) -> float:
        """Share of a latent's firings in the pack that are weaker; looked up once a value, since pages ask again and again."""
        if (latent, value) not in self._quantiles:
            self._quantiles[latent, value] = self.store[latent].quantile(value)
        return self._quantiles[latent, value]

    def values(self, latent: int) -> np.ndarray:
        """A latent's activation at every token."""
        return self.latents[:, self.store[latent].id]

    def top(self, k: int = 10, by: str = "surprise", position: int | None = None) -> pd.DataFrame:
        """The k foremost latents at a position, or anywhere in the text.

        surprise  -log10 of the share of all tokens on which this latent fires at least so strongly (default)
        value     activation
        share     activation / the latent's maximum in the pack
        """
        return ranked(self, position, by, k, dense=True)

    def strip(self, latent: int) -> str:
        """The text as HTML, coloured by one latent."""
        values = self.values(latent)
        return strip_html(self.pieces, values, max(float(self.store.table["max"].iloc[latent]), float(values.max())))

    def __repr__(self) -> str:
        rows = [f"  #{i} {r.label}  {r.value:.3g} on «{visible_token(r.token)}»" for i, r in self.top(8).iterrows()]
        told = self.tuned() or f"reconstruction error on this text (FVU): {self.fvu:.3f}"
        return "\n".join([strip_text(self.pieces), *rows, f"  {told}"])

    def tuned(self) -> str:
        """`tuning` with what it costs on this text, measured; "" where there is no other tuning."""
        return self.tuning and f"{self.tuning} It leaves {self.fvu:.1%} of this text unexplained (FVU, measured)."

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<div style="border-top:1px solid rgba(128,128,128,.3);padding:2px 0"><b>#{i}</b> {escape(r.label)} '
            f'<span style="opacity:.65;font-size:12px">{r.value:.3g} on '
            f"<bdi>{escape(visible_token(r.token, True))}</bdi></span>"
            f"<div>{self.strip(int(i))}</div></div>"
            for i, r in self.top(8).iterrows()
        )
        told = escape(self.tuned()) or f"reconstruction error on this text (FVU): {self.fvu:.3f}"
        return f'<div style="font-family:sans-serif;line-height:1.5;max-width:900px">{rows}<div>{told}</div></div>'


_TUNINGS = re.compile(r"[-_](it|pt|base|chat|instruct)$")


def other_tuning(store: "FeatureStore", model, sae) -> str:
    """Whether the pack or the dictionary is of another tuning of this model, by their names, in a sentence; "" if of none."""
    trained = sae.provenance.get("model")
    trained = trained.get("model") if isinstance(trained, dict) else trained
    given = str(model.provenance.get("model") or "")
    for what, name in (("The pack was made with", store.model_name), ("The dictionary was trained on", str(trained or ""))):
        a, b = (each.rstrip("/").rsplit("/", 1)[-1].lower() for each in (name, given))
        if a != b and _TUNINGS.sub("", a) == _TUNINGS.sub("", b):
            return f"{what} {name}, and the text was read by {given}, another tuning of it."
    return ""


def check_same(store: "FeatureStore", model, sae, tuning: bool = False) -> None:
    """Refuse a model or a dictionary other than the pack's; with `tuning`, not another tuning of the model with its tokenizer.

    Raises:
        PackError: with what is expected and what was found.
    """
    pairs = [
        ("model weights", store.manifest["model"].get("weights_sha256"), model.provenance.get("weights_sha256")),
        ("tokenizer", store.manifest["model"].get("tokenizer_sha256"), model.provenance.get("tokenizer_sha256")),
        ("site", store.site, sae.site),
        ("dictionary parameters", store.manifest["dictionary"].get("parameters_sha256"), parameters_sha256(sae)),
    ]
    wrong = [
        f"  {what}: this pack's {str(want)[:20]}, given {str(have)[:20]}" for what, want, have in pairs if want and want != have
    ]
    if tuning and len(wrong) == 1 and wrong[0].startswith("  model weights") and other_tuning(store, model, sae):
        return
    if wrong:
        raise PackError("\n".join(["The pack was made with something else:", *wrong, f"  Give {store.title}."]))


@torch.no_grad()
def read(store: "FeatureStore", text: str, model, sae) -> TokenView:
    """Encode a text as the pack's text was encoded.

    Another tuning of the pack's model is read with, and told in `TokenView.tuning`.

    Raises:
        PackError: model or dictionary are not the pack's.
        TokensError: no text, or more than the context holds.
    """
    if not text:
        raise TokensError("There is no text to read. Give at least a word.")
    check_same(store, model, sae, tuning=True)
    return _view(store, model.to_tokens(text), model, sae)


@torch.no_grad()
def read_context(store: "FeatureStore", context: int, model, sae) -> TokenView:
    """One of the pack's own contexts read again: who fires on each of its tokens. The values are those in the pack but for the
    rounding of a recording.

    Raises:
        PackError: no such context, or model or dictionary are not the pack's.
    """
    if not 0 <= context < len(store.contexts):
        raise PackError(f"There is no context {context}; this pack has contexts 0 to {len(store.contexts) - 1}.")
    check_same(store, model, sae)
    ids = np.asarray(store.contexts[context]).astype(np.int64)
    pads = np.flatnonzero(ids == store.pad)
    return _view(store, torch.from_numpy(ids[: pads[0] if len(pads) else None])[None].to(model.device), model, sae)


def _view(store: "FeatureStore", tokens: torch.Tensor, model, sae) -> TokenView:
    acts = model.record(tokens, [store.site])[store.site][0].float()
    latents = sae.encode(acts)
    special = set(model.tokenizer.special_ids)
    counted = torch.tensor([int(i) not in special for i in tokens[0]], device=latents.device)
    x, x_hat = acts[counted], sae.decode(latents[counted])
    spread, error = (x - sae.b_dec).square().sum(-1), (x - x_hat).square().sum(-1)
    fvu = float(error.sum() / spread.sum()) if len(x) and spread.sum() > 0 else float("nan")
    fvu_at = torch.full(counted.shape, float("nan"), device=x.device)
    fvu_at[counted] = error / spread.clamp_min(1e-30)
    latents = torch.where(counted[:, None], latents, 0.0)
    return TokenView(
        store,
        tokens[0].tolist(),
        model.to_str_tokens(tokens[0]),
        latents.float().cpu().numpy(),
        fvu,
        counted.cpu().numpy(),
        fvu_at.cpu().numpy(),
        other_tuning(store, model, sae),
    )
