"""The list of edits on the Steer page: a row of controls for each, remembered for the session."""

import math
from dataclasses import dataclass
from typing import Any

import streamlit as st
from scope.app.kit.plain import number, plain, show_line
from scope.app.steer.state import remembered
from scope.app.steer.strengths import SAFE, UNITS, draw_scale, in_other_units, unit_sizes

from scope.escape import visible_token as glyphs
from scope.features.face import Pack
from scope.steering.edits.interventions import KINDS, Direction, Edit, Edits, Forget, Span, When

OPERATIONS = {
    "add": ("Add", "add its direction, whatever its activation"),
    "clamp": ("Clamp", "set its activation"),
    "at least": ("At least", "raise its activation where it is lower"),
    "ablate": ("Ablate", "remove its contribution; no effect where it does not fire"),
    "scale": ("Scale", "multiply its contribution"),
    "project out": ("Project out", "remove the component along its direction"),
    "cap": ("Cap", "limit the component along its direction from above"),
    "floor": ("Floor", "limit the component along its direction from below"),
}
HOLD = {"hold": ("Hold", "keep the part of the state that it stands for from decaying; 1 prevents all decay")}
"""For latents and directions of a recurrent state."""
FORGET = "take what these tokens left out of the states of the recurrent layers; 1 takes all of it"
RULES = {
    "not_bos": "All but BOS",
    "all": "All, BOS too",
    "content": "Without template tokens",
    "prompt": "Prompt",
    "generated": "Generated",
    "last_prompt": "Last prompt token",
    "from": "From token k",
}
OF_PICTURES = {"image": "Patches of the picture", "text": "Text, not the picture"}
"""Further rules for packs of a model that is asked about a picture."""


LAST_POSITION = 1_000_000


@dataclass(frozen=True)
class Row:
    """A row of the list. Its number never changes, so that removing a row leaves the controls of the others alone."""

    number: int
    target: int | Direction | Span
    site: str | None = None
    """Of tokens: the state from which they are taken; None means those of all recurrent layers."""


def rows(slug: str) -> list[Row]:
    return st.session_state.setdefault(f"steer rows {slug}", [])


def add(slug: str, target: int | Direction | Span, site: str | None = None) -> Row:
    """Add a row for a latent, a direction, or tokens to forget."""
    st.session_state["steer rows made"] = st.session_state.get("steer rows made", 0) + 1
    rows(slug).append(Row(st.session_state["steer rows made"], target, site))
    return rows(slug)[-1]


def remove(slug: str, row_number: int) -> None:
    rows(slug)[:] = [row for row in rows(slug) if row.number != row_number]
    for key in [key for key in st.session_state if str(key).startswith(f"steer row {row_number} ")]:
        del st.session_state[key]  # a number is never given again, and each run of the page looks at every key


def clear(slug: str) -> None:
    """Remove every row."""
    for row in list(rows(slug)):
        remove(slug, row.number)


def set_rows(slug: str, edits: Edits) -> None:
    """Set the rows to the edits of a saved run, each strength in its own unit."""
    clear(slug)
    for edit in edits:
        row = add(slug, edit.latent, edit.site if edit.on_tokens else None)
        values = {"operation": edit.kind, "where": edit.positions.kind, "from": min(edit.positions.start, LAST_POSITION)}
        if edit.has_amount:
            values[_strength_key(edit.unit)] = float(edit.strength)
            values |= {} if edit.unit == "part" else {"unit": edit.unit}
        if edit.kind == "scale":
            values["factor"] = float(edit.factor)
        if edit.when:
            values |= {"if": True, "if latent": edit.when.latent, "if above": edit.when.above}
        for name, value in values.items():
            st.session_state[_key(row, name)] = value


def draw(store: Pack, slug: str, instrument: Any) -> Edits | None:
    """Draw the rows; returns the edits that are switched on, None if there are none.

    Args:
        instrument: the container for the amount of the first row, which stands outside the list.
    """
    edits: list[Edit] = []
    for row in list(rows(slug)):
        with st.container(border=True):
            edit = _row(store, slug, row, instrument if row is rows(slug)[0] else st.container())
        if edit is not None:
            edits.append(edit)
    return Edits(edits) if edits else None


def _key(row: Row, name: str) -> str:
    return f"steer row {row.number} {name}"


def _remembered(row: Row, name: str, default: Any) -> dict[str, Any]:
    return remembered(f"row {row.number} {name}", default)


def _row(store: Pack, slug: str, row: Row, place: Any) -> Edit | None:
    """The controls of a row; `place` is the container for its amount."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{_name(store, row.target)}**", width="stretch")
        on = st.toggle("On", label_visibility="collapsed", help="Whether this edit is applied", **_remembered(row, "on", True))
        st.button(
            "Remove",
            icon=":material/close:",
            type="tertiary",
            key=_key(row, "remove"),
            on_click=remove,
            args=(slug, row.number),
            help="Remove this edit",
        )
    st.caption(_description(store, row.target) + (f" At {plain(row.site)}." if row.site else ""))
    if isinstance(row.target, Span):
        return _forget(row, on, place)
    operations = OPERATIONS | (HOLD if store.site.endswith(".rec.hook_state") else {})
    if st.session_state.get(_key(row, "operation")) not in (None, *operations):
        st.session_state[_key(row, "operation")] = "add"
    kind = st.selectbox(
        "Operation", list(operations), format_func=lambda k: operations[k][0], **_remembered(row, "operation", "add")
    )
    rules = RULES | (OF_PICTURES if store.pictures is not None else {})
    if st.session_state.get(_key(row, "where")) not in (None, *rules):
        st.session_state[_key(row, "where")] = "not_bos"
    rule = st.selectbox("Where", list(rules), format_func=rules.get, **_remembered(row, "where", "not_bos"))
    given: dict[str, Any] = {}
    meaning = operations[kind][1]
    if kind != "hold" and KINDS[kind].has_amount:
        given = _strength(store, row, meaning, place)
    with place:
        if kind == "hold":
            given["strength"] = st.slider("Part", 0.0, 1.0, step=0.05, help=meaning, **_remembered(row, "strength part", 1.0))
        elif kind == "scale":
            end = float(max(8, math.ceil(abs(st.session_state.get(_key(row, "factor"), 2.0)))))
            given["factor"] = st.slider("Factor", -end, end, step=0.25, help=meaning, **_remembered(row, "factor", 2.0))
        elif not given:
            st.caption(f"{operations[kind][0]} has no strength: {meaning}.")
    rule = _rule(row, rule)
    when = None if kind == "hold" else _condition(store, row)
    return KINDS[kind](row.target, positions=rule, when=when, **given) if on else None


def _rule(row: Row, rule: str) -> str:
    """A rule of positions; "from" with its position."""
    if rule != "from":
        return rule
    return f"from:{st.number_input('From position (BOS is 0)', 0, LAST_POSITION, step=1, **_remembered(row, 'from', 1))}"


def _forget(row: Row, on: bool, place: Any) -> Edit | None:
    """The controls of tokens that are forgotten."""
    rule = st.selectbox("Forgotten at", list(RULES), format_func=RULES.get, **_remembered(row, "where", "last_prompt"))
    end = float(max(2, math.ceil(abs(st.session_state.get(_key(row, "strength part"), 1.0)))))
    part = place.slider("Part", -end, end, step=0.05, help=FORGET, **_remembered(row, "strength part", 1.0))
    rule = _rule(row, rule)
    return Forget(row.target, part, positions=rule, site=row.site) if on else None


def _strength(store: Pack, row: Row, meaning: str, place: Any) -> dict[str, Any]:
    """The controls of a strength: its unit, and in `place` its value with the safe range and the value in the other units."""
    sizes = unit_sizes(store, row.target)
    known = ["norm", "raw", *(["max"] if sizes["max"] else [])]
    if st.session_state.get(_key(row, "unit")) not in (None, *known):  # from a run whose pack had more units
        st.session_state[_key(row, "unit")] = "norm"
    unit = st.selectbox(
        "Unit of strength",
        known,
        format_func=UNITS.get,
        help="Raw: the latent's activation, or a direction's length. × largest: multiples of the pack's largest activation.",
        on_change=_convert,
        args=(row, sizes, st.session_state.get(_key(row, "unit"), "norm")),
        **_remembered(row, "unit", "norm"),
    )
    name = _strength_key(unit)
    meaning = f"{meaning[0].upper()}{meaning[1:]}. 1 is the length of a typical activation of the model here."
    with place:
        if unit == "norm":
            end = float(max(2, math.ceil(abs(st.session_state.get(_key(row, name), SAFE)))))
            strength = st.slider("Strength", -end, end, step=0.05, help=meaning, **_remembered(row, name, SAFE))
            draw_scale(end)
        else:
            label = "Strength × its largest activation" if unit == "max" else "Strength, raw"
            strength = st.number_input(label, step=0.25, format="%.4g", help=meaning, **_remembered(row, name, 1.0))
        safe = f"Safe to ±{SAFE:g} (thick line) · " if unit == "norm" else ""
        st.caption(safe + in_other_units(store, row.target, strength, unit))
    return {"strength": strength, "unit": unit}


def _strength_key(unit: str) -> str:
    """The key of a strength's control; each unit has its own, as their ranges differ."""
    return "strength" if unit == "norm" else f"strength {unit}"


def _convert(row: Row, sizes: dict[str, float | None], before: str) -> None:
    """Convert the strength after another unit was chosen."""
    now, value = st.session_state[_key(row, "unit")], st.session_state.get(_key(row, _strength_key(before)))
    old, new = sizes[before], sizes[now]
    if value is not None and old and new:
        st.session_state[_key(row, _strength_key(now))] = float(f"{value * old / new:.4g}")


def _condition(store: Pack, row: Row) -> When | None:
    if not st.checkbox("Only where another latent fires", **_remembered(row, "if", False)):
        return None
    left, right = st.columns(2, gap="small")
    if st.session_state.get(_key(row, "if latent"), 0) >= store.d_sae:  # from a run of another dictionary
        st.session_state[_key(row, "if latent")] = 0
    with left:
        latent = st.number_input("Latent", 0, store.d_sae - 1, step=1, **_remembered(row, "if latent", 0))
    with right:
        above = st.number_input("is above", step=0.1, format="%.3g", **_remembered(row, "if above", 0.0))
    feature = store[latent]
    st.caption(f"{plain(show_line(feature.label, 40))}; largest {number(feature.row['max'])}")
    return When(latent, above)


def title(store: Pack, slug: str) -> str:
    """What the page steers with, for its heading: the first edit, and how many more there are."""
    listed = rows(slug)
    if not listed:
        return "Steer"
    more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    return f"Steer with {_name(store, listed[0].target)}{more}"


def _name(store: Pack, target: int | Direction | Span) -> str:
    if isinstance(target, Direction | Span):
        return plain(show_line(str(target), 60))
    return f"\\#{target} {plain(show_line(store[target].label, 48))}"


def _description(store: Pack, target: int | Direction | Span) -> str:
    if isinstance(target, Direction):
        return f"a direction, {len(target.vector)} wide, at {plain(target.site)}"
    if isinstance(target, Span):
        return FORGET
    feature = store[target]
    promoted = " ".join(glyphs(token.strip(" ") or token) for token, _ in feature.promoted[:6])
    return f"promotes {plain(promoted)} · output score {number(feature.row['out_score'], '+.3f')}"
