"""Strengths in their three units: a fraction of the typical norm, the latent's own activation, multiples of its largest."""

import math
from typing import Any

import numpy as np
import streamlit as st

from scope.errors import EditError
from scope.features.face import Pack
from scope.steering.edits.interventions import Direction, Edits

UNITS = {"norm": "Typical norm", "raw": "Raw", "max": "× largest"}
STRONG = 1.0
"""Fractions of the typical norm beyond which texts usually break down."""


def lengths(store: Pack, target: int | Direction) -> dict[str, float | None]:
    """How long an edit of strength 1 is in each unit, as a fraction of the typical norm; None where that is not known."""
    if isinstance(target, Direction):
        here = target.site == store.site
        return {"norm": 1.0, "raw": 1 / store.norm_median if here else None, "max": None}
    figures = store[target].row
    raw = max(float(figures["dec_norm"]), 1e-12) / store.norm_median
    return {"norm": 1.0, "raw": raw, "max": raw * float(figures["max"]) if figures["max"] > 0 else None}


def units(store: Pack, target: int | Direction, strength: float, unit: str = "norm") -> str:
    """A strength in its other two units, and a word where it is likely to break the text."""
    there = lengths(store, target)
    told, norms = [], None if there[unit] is None else strength * there[unit]
    if norms is not None:
        raw = norms / there["raw"] if there["raw"] else None
        if unit != "norm":
            told.append(f"{norms:+.3g} of the typical norm")
        if unit != "raw" and raw is not None:
            told.append(f"{raw:+.3g} long" if isinstance(target, Direction) else f"raw {raw:+.3g}")
        if unit != "max" and there["max"]:
            told.append(f"{norms / there['max']:+.2f} × its largest activation")
    elif unit == "raw":
        told.append("the typical norm there is not known before the model has read the prompt")
    return " · ".join([*told, *(["texts usually break down beyond 1 norm"] if abs(norms or 0) > STRONG else [])])


def gauge(edits: Edits, sae: Any = None, store: Pack | None = None) -> tuple[float, str]:
    """(how long all that is added is together, as a fraction of the typical norm; how that is known).

    Only `Add` is known before a text is: the others depend on what the latents read there. Without the dictionary's rows it
    is the most that it can be. `store` measures strengths that are not fractions of the norm already.
    """
    known = [(e, norms) for e in edits if e.kind == "add" and (norms := _norms(e, store)) is not None]
    others = len(edits) - len(known)
    more = f"; {others} more {'depends' if others == 1 else 'depend'} on the text" if others else ""
    if not known:
        return 0.0, "depends on the text" if others else "nothing"
    if sae is None and len(known) > 1:
        return sum(abs(norms) for _, norms in known), "at most" + more
    if len(known) == 1:
        return abs(known[0][1]), "added" + more
    sites: dict[Any, Any] = {}
    for e, norms in known:
        row = np.asarray(e.latent.vector) if isinstance(e.latent, Direction) else _decoder_row(sae, e.latent)
        site = e.site or sae.site
        sites[site] = sites.get(site, 0.0) + norms * row / np.linalg.norm(row)
    return max(float(np.linalg.norm(total)) for total in sites.values()), "added together" + more


def _norms(edit: Any, store: Pack | None) -> float | None:
    """The strength of an edit as a fraction of the typical norm, None where that is not known."""
    if edit.unit == "norm":
        return edit.strength
    of_one = lengths(store, edit.latent)[edit.unit] if store is not None else None
    return None if of_one is None else edit.strength * of_one


def _decoder_row(sae: Any, latent: int) -> np.ndarray:
    return sae.W_dec[latent].detach().float().cpu().numpy()


def draw_gauge(edits: Edits | None, store: Pack, sae: Any = None) -> None:
    """The total of the stack against the typical norm."""
    if edits is None:
        st.caption("No edit is switched on, so there is nothing to generate with.")
        return
    total, how = gauge(edits, sae, store)
    told = f"{total:.2f} of the typical norm, {how}" if total else f"Length of the edit: {how}"
    st.progress(min(total / 2, 1.0), told)
    if total > STRONG:
        st.caption(":orange[Beyond 1 texts usually break down; half the norm is a good place to start.]")


def parse_strengths(text: str) -> list[float]:
    """Strengths as they are written, "0.25, 0.5 1", rising, each once.

    Raises:
        EditError: one is no number, or there is none.
    """
    found = []
    for part in text.replace(",", " ").replace(";", " ").split():
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise EditError(f"The strength {part!r} is no number. Write numbers, such as: 0.25, 0.5, 0.75, 1")
        found.append(value)
    if not found:
        raise EditError("There is no strength to try. Write some, such as: 0.25, 0.5, 0.75, 1")
    return sorted(set(found))
