"""Tables that several pages share: latents of which one can be picked, and an attribution whose rows add up."""

from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit.plain import plain, show_line, whole

from scope.escape import visible_token

METHODS = ("integrated", "gradient", "ablation")

_FORMS = {"value": "%.3g", "share": "percent", "quantile": "percent", "surprise": "%.1f"}
_FORMS |= {"first": "percent", "second": "percent", "change": "%+.2f", "effect": "%+.3f", "null": "%.3f", "direct": "%+.3f"}
_HELP = {
    "direct": "Direct effect on the logit of the likeliest next token, before the soft cap.",
    "share": "Its activation as a share of its maximum in this pack.",
    "quantile": "Share of its firings that are weaker.",
    "surprise": "-log10 of the share of all tokens on which it fires at least this strongly.",
    "null": (NULL := "Standard deviation of the effects of random directions of the same length."),
}


def piece(token: str) -> str:
    """A token as one line with visible spaces, cut to 18 glyphs."""
    return show_line(visible_token(token, mark_space=True), 18)


def table(rows: pd.DataFrame, figures: tuple[str, ...], key: str, where: str = "token") -> int | None:
    """Draw a table of latents; returns the index of the picked row, None without one.

    Args:
        rows: latents by their index or by a column "latent"; with a column "dictionary" where there are several.
        where: the column of the rows on which they fire, if there is one.
    """
    shown = pd.DataFrame({"latent": rows.get("latent", rows.index)})
    shares = [name for name in figures if _FORMS.get(name) == "percent"]
    shown = shown.assign(**{name: rows[name].to_numpy() for name in figures}).round(dict.fromkeys(shares, 3))
    if where in rows:
        shown.insert(1, where, [piece(token) for token in rows[where]])
    if "dictionary" in rows:
        shown.insert(0, "dictionary", [show_line(name, 30) for name in rows["dictionary"]])
    shown.insert(shown.columns.get_loc(figures[0]) + 1, "label", [show_line(text, 40) for text in rows["label"]])
    config = {
        name: st.column_config.NumberColumn(name, format=_FORMS[name], help=_HELP.get(name))
        for name in figures
        if name in _FORMS
    }
    picked = st.dataframe(
        shown,
        hide_index=True,
        column_config={"latent": st.column_config.NumberColumn(format="%d", width=70), **config},
        on_select="rerun",
        selection_mode="single-row",
        key=key,
        height=whole(shown, 11),
        alt=f"{len(shown)} latents; choose a row",
    )
    return int(picked.selection.rows[0]) if picked.selection.rows else None


def attribution(parts: Any, most: int = 12) -> None:
    """Table of an attribution: the top latents, the rest as one row, the parts that are not latents, and the sum."""
    rows = parts.sorted()
    latents = [row for row in rows if row.latent is not None]
    shown = [{"part": f"#{r.latent} {show_line(r.label, 40)}", "effect": r.value, "null": r.null} for r in latents[:most]]
    if len(latents) > most:
        shown.append(
            {"part": f"{len(latents) - most} further latents", "effect": sum(r.value for r in latents[most:]), "null": None}
        )
    shown += [{"part": r.name, "effect": r.value, "null": None} for r in rows if r.latent is None]
    if abs(parts.gap) > 5e-5:
        shown.append({"part": "error of the integral", "effect": parts.gap, "null": None})
    shown.append({"part": "sum", "effect": parts.whole, "null": None})
    for caution in parts.cautions():
        st.warning(plain(caution))
    st.dataframe(
        pd.DataFrame(shown),
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(name, format=_FORMS[name], help=_HELP.get(name)) for name in ("effect", "null")
        },
        key="attributed",
        alt="What each part adds to the logit difference",
    )
    than = f" rather than {visible_token(parts.other)!r} (p {parts.p_other:.3f})" if parts.other else ""
    what = f"logit{' difference' if parts.other else ''} {parts.logit_difference:+.3f}"
    st.caption(plain(f"{visible_token(parts.token)!r} (p {parts.p_token:.3f}){than}; {what}. The sum is {parts.whole_is}."))


def attribution_code(text: str, token: str = "", other: str = "", method: str = METHODS[0]) -> str:
    """Python lines that give the same attribution; tokens that are not given are the likeliest, as on the page."""
    given = {"token": token, "other": other, "method": "" if method == METHODS[0] else method}
    arguments = "".join(f", {name}={value!r}" for name, value in given.items() if value)
    return f"import scope\n\nlab = scope.open(str(pack.folder.parent))\nlab.attribute({text!r}{arguments})\n"
