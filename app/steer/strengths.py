"""Strengths in three units: fractions of the typical norm, the latent's activation, multiples of its largest activation."""

import math
from typing import Any

import numpy as np
import streamlit as st

from scope.errors import EditError
from scope.features.face import Pack
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.interventions import Direction, Edits

UNITS = {"norm": "Typical norm", "raw": "Raw", "max": "× largest"}
STRONG = 1.0
"""Fraction of the typical norm beyond which texts usually become incoherent."""
SAFE = 0.3
"""Fraction of the typical norm up to which they usually stay readable; a new edit begins there."""


def unit_sizes(store: Pack, target: int | Direction) -> dict[str, float | None]:
    """The length of an edit of strength 1 in each unit, as a fraction of the typical norm; None where unknown."""
    if isinstance(target, Direction):
        known = target.site == store.site
        return {"norm": 1.0, "raw": 1 / store.norm_median if known else None, "max": None}
    numbers = store[target].row
    return StrengthUnits(store.norm_median, "feature pack").sizes(float(numbers["dec_norm"]), float(numbers["max"]))


def in_other_units(store: Pack, target: int | Direction, strength: float, unit: str = "norm") -> str:
    """A strength in the other two units, and a warning where texts usually become incoherent."""
    sizes = unit_sizes(store, target)
    parts, norms = [], None if sizes[unit] is None else strength * sizes[unit]
    if norms is not None:
        raw = norms / sizes["raw"] if sizes["raw"] else None
        if unit != "norm":
            parts.append(f"{norms:+.3g} of the typical norm")
        if unit != "raw" and raw is not None:
            parts.append(f"{raw:+.3g} long" if isinstance(target, Direction) else f"raw {raw:+.3g}")
        if unit != "max" and sizes["max"]:
            parts.append(f"{norms / sizes['max']:+.2f} × its largest activation")
    elif unit == "raw":
        parts.append("the typical norm at its site is unknown until the model has read the prompt")
    return " · ".join([*parts, *(["texts usually become incoherent beyond 1 norm"] if abs(norms or 0) > STRONG else [])])


def draw_scale(end: float) -> None:
    """The safe range under a slider from -end to end: colours, and the same in words."""
    stops = ((-STRONG, "break"), (-SAFE, "strong"), (SAFE, "safe"), (STRONG, "strong"), (end, "break"))
    parts, before = [], -end
    for stop, kind in stops:
        parts.append(f'<span class="{kind}" style="flex: {max(0.0, min(stop, end) - before):.3f}"></span>')
        before = max(before, min(stop, end))
    st.html(f'<div class="steer-scale" aria-hidden="true">{"".join(parts)}</div>')


def total_length(edits: Edits, sae: Any = None, store: Pack | None = None) -> tuple[float, str]:
    """(length of the sum of all added vectors as a fraction of the typical norm, how exact that is).

    Only `Add` is known in advance; other edits depend on activations in the text. Without the SAE's rows it is an upper
    bound. `store` converts strengths in other units than the typical norm.
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
    """The strength of an edit as a fraction of the typical norm; None where unknown."""
    if edit.unit == "norm":
        return edit.strength
    of_one = unit_sizes(store, edit.latent)[edit.unit] if store is not None else None
    return None if of_one is None else edit.strength * of_one


def _decoder_row(sae: Any, latent: int) -> np.ndarray:
    return sae.W_dec[latent].detach().float().cpu().numpy()


def draw_total(edits: Edits | None, store: Pack, sae: Any = None) -> None:
    """Progress bar of the total length of all edits, in typical norms."""
    if edits is None:
        st.caption("No edit is switched on.")
        return
    total, exactness = total_length(edits, sae, store)
    summary = f"{total:.2f} of the typical norm, {exactness}" if total else f"Length of the edit: {exactness}"
    st.progress(min(total / 2, 1.0), summary)
    if total > STRONG:
        st.caption(":orange[Beyond 1, texts usually become incoherent; 0.3 is a good start.]")


def parse_strengths(text: str) -> list[float]:
    """Strengths from a text such as "0.25, 0.5 1", ascending, each once.

    Raises:
        EditError: one is not a number, or there are none.
    """
    strengths = []
    for part in text.replace(",", " ").replace(";", " ").split():
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise EditError(f"The strength {part!r} is not a number. Write numbers, such as: 0.25, 0.5, 0.75, 1")
        strengths.append(value)
    if not strengths:
        raise EditError("There are no strengths. Write some, such as: 0.25, 0.5, 0.75, 1")
    return sorted(set(strengths))
