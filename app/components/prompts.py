"""What the Prompt page draws: tables of latents that can be picked, and an attribution whose rows add up."""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from scope.app.components.figures import show_line
from scope.app.components.plain import plain

from scope.errors import PackError
from scope.escape import visible_token

LONGEST = 1500
"""Characters of a text that stand in an address."""

METHODS = ("gradient", "integrated", "ablation")

_FORMS = {"value": "%.3g", "share": "percent", "quantile": "percent", "surprise": "%.1f"}
_FORMS |= {"first": "percent", "second": "percent", "change": "%+.2f", "effect": "%+.3f", "null": "%.3f", "direct": "%+.3f"}
_HELP = {
    "direct": "What it adds to the logit of the likeliest next token by the direct path, before the soft cap.",
    "share": "Of its maximum in this pack.",
    "quantile": "Share of its own firings that are weaker.",
    "surprise": "-log10 of the share of all tokens on which it fires at least so strongly.",
    "null": "One standard deviation of what random directions of its length come to.",
}


def piece(token: str) -> str:
    """A token in a list, its spaces marked."""
    return show_line(visible_token(token, mark_space=True), 18)


def table(rows: pd.DataFrame, figures: tuple[str, ...], key: str) -> int | None:
    """A table of latents, of which one can be picked: its place among the rows.

    Args:
        rows: latents by their index or by a column "latent"; with a column "dictionary" where there are several.
    """
    shown = pd.DataFrame({"latent": rows.get("latent", rows.index)})
    shown = shown.assign(**{name: rows[name].to_numpy() for name in figures})
    if "token" in rows:
        shown.insert(1, "token", [piece(token) for token in rows["token"]])
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
        height=min(36 * len(shown) + 40, 420),
        alt=f"{len(shown)} latents; choose a row",
    )
    return int(picked.selection.rows[0]) if picked.selection.rows else None


def dictionaries(rows: pd.DataFrame, key: str) -> None:
    """What each dictionary makes of the text, a row each."""
    shown = rows.assign(dictionary=[show_line(name, 40) for name in rows["dictionary"]])
    config = {
        "fires": st.column_config.NumberColumn("fire", format="%.1f", help="Latents that fire on a token; mean over the text."),
        "fvu": st.column_config.NumberColumn(
            "unexplained (FVU)", format="percent", help="0 % is perfect; 100 % is what the decoder's bias alone would leave."
        ),
        "latents": st.column_config.NumberColumn("of", format="localized"),
    }
    st.dataframe(shown, hide_index=True, column_config=config, key=key, alt=f"{len(rows)} dictionaries on this text")


def following(tokens: pd.DataFrame, key: str) -> None:
    """What the model says next, with probabilities."""
    shown = pd.DataFrame({"token": [piece(token) for token in tokens["token"]], "p": tokens["p"].to_numpy()})
    config = {"p": st.column_config.ProgressColumn("p", format="percent", min_value=0.0, max_value=1.0)}
    st.dataframe(shown, hide_index=True, column_config=config, key=key, alt="The likeliest next tokens")


def ablated(found: Any) -> None:
    """What the next token would be without a latent: probabilities before and after, beside the null."""
    shown = pd.DataFrame(
        [{"token": piece(t["token"]), **{k: t[k] for k in ("plain", "edited", "change")}} for t in found.tokens]
    )
    percent = {k: st.column_config.NumberColumn(k, format="percent") for k in ("plain", "edited")}
    config = {**percent, "change": st.column_config.NumberColumn("change", format="%+.4f")}
    st.dataframe(shown, hide_index=True, column_config=config, key="ablated", alt="Next token with and without the latent")
    null = sorted(found.null_kl)
    told = f"KL to the plain run {found.kl:.4f} nats"
    if null:
        told += f"; ablating {len(null)} others that are as strong here: median {null[len(null) // 2]:.4f}, most {null[-1]:.4f}"
    st.caption(plain(told + "."))
    for note in found.notes:
        st.info(plain(note))


def save(folder: Path, texts: list[str], settings: dict[str, Any], made_with: dict[str, Any]) -> str:
    """Keep a reading's texts and settings beside the pack; its name is the hash of what it holds."""
    held = {"texts": texts, "settings": settings, "made_with": made_with}
    name = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:12]
    place = runs(folder)
    place.mkdir(exist_ok=True)
    aside = place / f".{name}.writing"
    aside.write_text(json.dumps(held, indent=1))
    aside.rename(place / f"{name}.json")
    return name


def load(folder: Path, name: str) -> dict[str, Any]:
    """A run that was kept.

    Raises:
        PackError: no such run lies beside this pack, or it cannot be read.
    """
    file = runs(folder) / f"{name}.json"
    if not re.fullmatch(r"[0-9a-f]{12}", name) or not file.exists():
        raise PackError(f"No saved reading {name!r} lies beside this pack.\n  Readings are kept in {runs(folder)}")
    try:
        held = json.loads(file.read_text())
        return {"texts": [str(t) for t in held["texts"]][:2], "settings": dict(held["settings"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise PackError(f"{file} is damaged. Remove it.") from None


def saved(folder: Path, most: int = 20) -> list[tuple[str, str]]:
    """(name, beginning of the text) of the runs that were kept, newest first."""
    files = sorted(runs(folder).glob("*.json"), key=lambda f: -f.stat().st_mtime)[:most] if runs(folder).is_dir() else []
    found = []
    for file in files:
        with suppress(PackError):
            found.append((file.stem, show_line(" / ".join(load(folder, file.stem)["texts"]))))
    return found


def runs(folder: Path) -> Path:
    """Where readings are kept: beside the pack, which holds nothing that is not its own."""
    return folder.with_name(folder.name + ".prompts")


def attribution(found: Any, most: int = 12) -> None:
    """An attribution: the foremost latents, the rest as one row, the parts that are no latent, and their sum."""
    rows = found.sorted()
    latents = [row for row in rows if row.latent is not None]
    shown = [{"part": f"#{r.latent} {show_line(r.label, 40)}", "effect": r.value, "null": r.null} for r in latents[:most]]
    if len(latents) > most:
        shown.append(
            {"part": f"{len(latents) - most} further latents", "effect": sum(r.value for r in latents[most:]), "null": None}
        )
    shown += [{"part": r.name, "effect": r.value, "null": None} for r in rows if r.latent is None]
    shown.append({"part": "sum", "effect": sum(r.value for r in rows), "null": None})
    st.dataframe(
        pd.DataFrame(shown),
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(name, format=_FORMS[name], help=_HELP.get(name)) for name in ("effect", "null")
        },
        key="attributed",
        alt="What each part adds to the logit difference",
    )
    st.caption(
        plain(
            f"{visible_token(found.token)!r} (p {found.p_token:.3f}) rather than {visible_token(found.other)!r} "
            f"(p {found.p_other:.3f}); logit "
            f"difference {found.logit_difference:+.3f}. The sum is {found.whole_is}."
        )
    )


def attribution_code(text: str) -> str:
    """The lines that give the same attribution."""
    return f"import scope\n\nlab = scope.open(str(pack.folder.parent))\nlab.attribute({text!r})\n"
