"""The stack of edits: a row of controls for each, whose numbers live as long as the session does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from app.components.figures import show_line
from app.components.plain import number, plain
from scope.errors import EditError
from scope.features.store import FeatureStore
from scope.features.text import show as glyphs
from scope.steering.interventions import KINDS, Direction, Edit, Edits, When

OPERATIONS = {
    "add": ("Add", "push along its direction, whatever it does by itself"),
    "clamp": ("Clamp", "set its activation"),
    "at least": ("At least", "raise its activation where it is lower"),
    "ablate": ("Ablate", "remove its contribution; nothing happens where it is silent"),
    "scale": ("Scale", "multiply its contribution"),
    "project out": ("Project out", "leave nothing along its direction"),
    "cap": ("Cap", "hold what lies along its direction at most so high"),
    "floor": ("Floor", "hold what lies along its direction at least so high"),
}
RULES = {
    "not_bos": "All but BOS",
    "all": "All, BOS too",
    "content": "Without template tokens",
    "prompt": "Prompt",
    "generated": "Generated",
    "last_prompt": "Last prompt token",
    "from": "From token k",
}
STRONG = 1.0
"""Fractions of the typical norm beyond which texts usually break down."""


@dataclass(frozen=True)
class Row:
    """A place in the stack. Its number stays, so that taking one away leaves the controls of the others alone."""

    number: int
    target: int | Direction


def rows(slug: str) -> list[Row]:
    return st.session_state.setdefault(f"steer rows {slug}", [])


def add(slug: str, target: int | Direction) -> Row:
    """One more row, for a latent or a direction."""
    st.session_state["steer rows made"] = st.session_state.get("steer rows made", 0) + 1
    rows(slug).append(Row(st.session_state["steer rows made"], target))
    return rows(slug)[-1]


def remove(slug: str, row_number: int) -> None:
    rows(slug)[:] = [row for row in rows(slug) if row.number != row_number]


def put(slug: str, edits: Edits, sheet: Sequence[dict[str, Any]]) -> None:
    """Make the stack that of a saved run; `sheet` has each strength as a fraction of the norm."""
    rows(slug).clear()
    for edit, told in zip(edits, sheet, strict=True):
        row = add(slug, edit.latent)
        values = {"operation": edit.kind, "where": edit.positions.kind, "from": edit.positions.start}
        if "strength" in told:
            values["strength"] = float(told["strength"])
        if edit.kind == "scale":
            values["factor"] = float(edit.factor)
        if edit.when:
            values |= {"if": True, "if latent": edit.when.latent, "if above": edit.when.above}
        for name, value in values.items():
            st.session_state[_key(row, name)] = value


def draw(store: FeatureStore, slug: str) -> Edits | None:
    """The rows; the edits that are switched on, None while none is."""
    made: list[Edit] = []
    for row in list(rows(slug)):
        with st.container(border=True):
            edit = _row(store, slug, row)
        if edit is not None:
            made.append(edit)
    return Edits(made) if made else None


def _key(row: Row, name: str) -> str:
    return f"steer row {row.number} {name}"


def _kept(row: Row, name: str, usual: Any) -> dict[str, Any]:
    """The key of a control whose value is kept while other pages are looked at, set once to what is usual."""
    key = _key(row, name)
    st.session_state.setdefault(key, usual)
    return {"key": key, "persist_state": "session"}


def _row(store: FeatureStore, slug: str, row: Row) -> Edit | None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{_name(store, row.target)}**", width="stretch")
        on = st.toggle("On", label_visibility="collapsed", help="Whether this edit is made", **_kept(row, "on", True))
        st.button(
            "Remove",
            icon=":material/close:",
            type="tertiary",
            key=_key(row, "remove"),
            on_click=remove,
            args=(slug, row.number),
            help="Take this edit away",
        )
    st.caption(_what(store, row.target))
    left, right = st.columns([2, 3], gap="small")
    with left:
        kind = st.selectbox(
            "Operation", list(OPERATIONS), format_func=lambda k: OPERATIONS[k][0], **_kept(row, "operation", "add")
        )
    with right:
        rule = st.selectbox("Where", list(RULES), format_func=RULES.get, **_kept(row, "where", "not_bos"))
    given: dict[str, Any] = {}
    if KINDS[kind].has_amount:
        usual = st.session_state.get(_key(row, "strength"), 0.5)
        end = float(max(2, math.ceil(abs(usual))))
        given["strength"] = st.slider(
            "Strength / typical norm", -end, end, step=0.05, help=OPERATIONS[kind][1], **_kept(row, "strength", 0.5)
        )
        st.caption(units(store, row.target, given["strength"]))
    elif kind == "scale":
        given["factor"] = st.slider("Factor", -8.0, 8.0, step=0.25, help=OPERATIONS[kind][1], **_kept(row, "factor", 2.0))
    else:
        st.caption(OPERATIONS[kind][1])
    if rule == "from":
        start = st.number_input("From position (BOS is 0)", 0, 1_000_000, step=1, **_kept(row, "from", 1))
        rule = f"from:{start}"
    when = _condition(store, row)
    return KINDS[kind](row.target, positions=rule, when=when, **given) if on else None


def _condition(store: FeatureStore, row: Row) -> When | None:
    if not st.checkbox("Only where another latent fires", **_kept(row, "if", False)):
        return None
    left, right = st.columns(2, gap="small")
    with left:
        latent = st.number_input("Latent", 0, store.d_sae - 1, step=1, **_kept(row, "if latent", 0))
    with right:
        above = st.number_input("is above", step=0.1, format="%.3g", **_kept(row, "if above", 0.0))
    feature = store[latent]
    st.caption(f"{plain(show_line(feature.label, 40))}; largest {number(feature.row['max'])}")
    return When(latent, above)


def _name(store: FeatureStore, target: int | Direction) -> str:
    if isinstance(target, Direction):
        return plain(show_line(str(target), 60))
    return f"\\#{target} {plain(show_line(store[target].label, 48))}"


def _what(store: FeatureStore, target: int | Direction) -> str:
    if isinstance(target, Direction):
        return f"a direction, {len(target.vector)} wide, at {plain(target.site)}"
    feature = store[target]
    promoted = " ".join(glyphs(token.strip(" ") or token) for token, _ in feature.promoted[:6])
    return f"promotes {plain(promoted)} · output score {number(feature.row['out_score'], '+.3f')}"


def units(store: FeatureStore, target: int | Direction, strength: float) -> str:
    """A strength in its other two units, and a word where it is likely to break the text."""
    told = []
    if isinstance(target, Direction):
        if target.site == store.site:
            told.append(f"{strength * store.norm_median:+.3g} long")
    else:
        figures = store[target].row
        raw = strength * store.norm_median / max(float(figures["dec_norm"]), 1e-12)
        told.append(f"raw {raw:+.3g}")
        if figures["max"] > 0:
            told.append(f"{raw / figures['max']:+.2f} × its largest activation")
    return " · ".join([*told, *(["texts usually break down beyond 1"] if abs(strength) > STRONG else [])])


def gauge(edits: Edits, sae: Any = None) -> tuple[float, str]:
    """(how long all that is added is together, as a fraction of the typical norm; how that is known).

    Only `Add` is known before a text is: the others depend on what the latents read there. Without the dictionary's rows it
    is the most that it can be.
    """
    adds = [e for e in edits if e.kind == "add"]
    others = len(edits) - len(adds)
    more = f"; {others} more {'depends' if others == 1 else 'depend'} on the text" if others else ""
    if not adds:
        return 0.0, "depends on the text" if others else "nothing"
    if sae is None and len(adds) > 1:
        return sum(abs(e.strength) for e in adds), "at most" + more
    if len(adds) == 1:
        return abs(adds[0].strength), "added" + more
    sites: dict[Any, Any] = {}
    for e in adds:
        row = np.asarray(e.latent.vector) if isinstance(e.latent, Direction) else _decoder_row(sae, e.latent)
        site = e.site or sae.site
        sites[site] = sites.get(site, 0.0) + e.strength * row / np.linalg.norm(row)
    return max(float(np.linalg.norm(total)) for total in sites.values()), "added together" + more


def _decoder_row(sae: Any, latent: int) -> np.ndarray:
    return sae.W_dec[latent].detach().float().cpu().numpy()


def draw_gauge(edits: Edits | None, sae: Any = None) -> None:
    """The total of the stack against the typical norm."""
    if edits is None:
        st.caption("No edit is switched on, so there is nothing to generate with.")
        return
    total, how = gauge(edits, sae)
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
