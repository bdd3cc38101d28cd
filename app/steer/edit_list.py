"""The stack of edits: a row of controls for each, whose numbers live as long as the session does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
from scope.app.kit.plain import number, plain, show_line
from scope.app.steer.strengths import UNITS, lengths, units

from scope.escape import visible_token as glyphs
from scope.features.face import Pack
from scope.steering.edits.interventions import KINDS, Direction, Edit, Edits, When

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
    """Make the stack that of a saved run, each strength in its own unit; `sheet` knows which edits have one."""
    rows(slug).clear()
    for edit, told in zip(edits, sheet, strict=True):
        row = add(slug, edit.latent)
        values = {"operation": edit.kind, "where": edit.positions.kind, "from": edit.positions.start}
        if "strength" in told:
            values |= {"unit": edit.unit, _dose(edit.unit): float(edit.strength)}
        if edit.kind == "scale":
            values["factor"] = float(edit.factor)
        if edit.when:
            values |= {"if": True, "if latent": edit.when.latent, "if above": edit.when.above}
        for name, value in values.items():
            st.session_state[_key(row, name)] = value


def draw(store: Pack, slug: str) -> Edits | None:
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


def _row(store: Pack, slug: str, row: Row) -> Edit | None:
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
    kind = st.selectbox("Operation", list(OPERATIONS), format_func=lambda k: OPERATIONS[k][0], **_kept(row, "operation", "add"))
    rule = st.selectbox("Where", list(RULES), format_func=RULES.get, **_kept(row, "where", "not_bos"))
    given: dict[str, Any] = {}
    if KINDS[kind].has_amount:
        given = _strength(store, row, OPERATIONS[kind][1])
    elif kind == "scale":
        given["factor"] = st.slider("Factor", -8.0, 8.0, step=0.25, help=OPERATIONS[kind][1], **_kept(row, "factor", 2.0))
    else:
        st.caption(OPERATIONS[kind][1])
    if rule == "from":
        start = st.number_input("From position (BOS is 0)", 0, 1_000_000, step=1, **_kept(row, "from", 1))
        rule = f"from:{start}"
    when = _condition(store, row)
    return KINDS[kind](row.target, positions=rule, when=when, **given) if on else None


def _strength(store: Pack, row: Row, meaning: str) -> dict[str, Any]:
    """How much, and in which unit; the other units are told below."""
    there = lengths(store, row.target)
    known = ["norm", "raw", *(["max"] if there["max"] else [])]
    if st.session_state.get(_key(row, "unit")) not in (None, *known):  # of a run whose pack knew more than this one
        st.session_state[_key(row, "unit")] = "norm"
    unit = st.selectbox(
        "Unit",
        known,
        format_func=UNITS.get,
        help="Raw: the latent's own activation, or a direction's length. × largest: multiples of the largest seen in the pack.",
        on_change=_convert,
        args=(row, there, st.session_state.get(_key(row, "unit"), "norm")),
        **_kept(row, "unit", "norm"),
    )
    name = _dose(unit)
    if unit == "norm":
        end = float(max(2, math.ceil(abs(st.session_state.get(_key(row, name), 0.5)))))
        strength = st.slider("Strength / typical norm", -end, end, step=0.05, help=meaning, **_kept(row, name, 0.5))
    else:
        label = "Strength × its largest activation" if unit == "max" else "Strength, raw"
        strength = st.number_input(label, step=0.25, format="%.4g", help=meaning, **_kept(row, name, 1.0))
    st.caption(units(store, row.target, strength, unit))
    return {"strength": strength, "unit": unit}


def _dose(unit: str) -> str:
    """The control of a strength: each unit has its own, as their ranges differ."""
    return "strength" if unit == "norm" else f"strength {unit}"


def _convert(row: Row, there: dict[str, float | None], before: str) -> None:
    """After another unit was chosen: the same edit in that unit."""
    now, said = st.session_state[_key(row, "unit")], st.session_state.get(_key(row, _dose(before)))
    old, new = there[before], there[now]
    if said is not None and old and new:
        st.session_state[_key(row, _dose(now))] = float(f"{said * old / new:.4g}")


def _condition(store: Pack, row: Row) -> When | None:
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


def _name(store: Pack, target: int | Direction) -> str:
    if isinstance(target, Direction):
        return plain(show_line(str(target), 60))
    return f"\\#{target} {plain(show_line(store[target].label, 48))}"


def _what(store: Pack, target: int | Direction) -> str:
    if isinstance(target, Direction):
        return f"a direction, {len(target.vector)} wide, at {plain(target.site)}"
    feature = store[target]
    promoted = " ".join(glyphs(token.strip(" ") or token) for token, _ in feature.promoted[:6])
    return f"promotes {plain(promoted)} · output score {number(feature.row['out_score'], '+.3f')}"
