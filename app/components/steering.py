"""The parts of the steering page: the stack of edits, the arms side by side, saved runs."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.components.plain import number, plain
from app.components.tokens import row, strips
from scope.errors import EditError
from scope.features.store import FeatureStore
from scope.features.text import show as glyphs
from scope.steering import show
from scope.steering.interventions import KINDS, POSITION_KINDS, Edit, Edits
from scope.steering.run import SteeringRun

OPERATIONS = {
    "add": ("Add", "push along its direction, whatever it does by itself"),
    "clamp": ("Clamp", "set its activation"),
    "at least": ("At least", "raise its activation where it is lower"),
    "ablate": ("Ablate", "remove its contribution; nothing happens where it is silent"),
    "scale": ("Scale", "multiply its contribution"),
    "project out": ("Project out", "leave nothing along its direction"),
}
RULES = [kind for kind in POSITION_KINDS if kind != "from"]


def stack(store: FeatureStore, latents: Sequence[int]) -> Edits | None:
    """A row of controls an edit; None while none is switched on.

    Args:
        latents: what the rows edit, in order; a latent may stand there twice.
    """
    made: list[Edit] = []
    for place, latent in enumerate(latents):
        with st.container(border=True):
            edit = _edit(store, latent, place)
        if edit is not None:
            made.append(edit)
    return Edits(made) if made else None


def _edit(store: FeatureStore, latent: int, place: int) -> Edit | None:
    feature = store[latent]
    key = f"{store.folder} {latent} {place}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**\\#{latent}** {plain(feature.label)}", width="stretch")
        on = st.toggle("On", value=True, key=f"on {key}")
    st.caption(
        "promotes "
        + plain(" ".join(show_tokens(feature.promoted[:6])))
        + f" · output score {number(feature.row['out_score'], '+.3f')}"
    )
    kind = st.selectbox("Operation", list(OPERATIONS), format_func=lambda k: OPERATIONS[k][0], key=f"op {key}")
    st.caption(OPERATIONS[kind][1])
    given: dict[str, Any] = {}
    if KINDS[kind].has_amount:
        given["strength"] = st.slider(
            "Strength, fractions of the typical residual norm", -2.0, 2.0, 0.5, 0.05, key=f"strength {key}"
        )
        st.caption(units(store, latent, given["strength"]))
    elif kind == "scale":
        given["factor"] = st.slider("Factor", -4.0, 8.0, 2.0, 0.25, key=f"factor {key}")
    rule = st.selectbox("Where", RULES, format_func=POSITION_KINDS.get, key=f"where {key}")
    return KINDS[kind](latent, positions=rule, **given) if on else None


def show_tokens(promoted: Sequence[tuple[str, float]]) -> list[str]:
    return [glyphs(token.strip(" ") or token) for token, _ in promoted]


def units(store: FeatureStore, latent: int, strength: float) -> str:
    """A strength in its other two units, and a word where it is likely to break the text."""
    figures = store[latent].row
    raw = strength * store.norm_median / max(float(figures["dec_norm"]), 1e-12)
    told = f"raw {raw:+.3g}"
    if figures["max"] > 0:
        told += f" · {raw / figures['max']:+.2f} × its largest activation"
    return told + (" · texts usually break down beyond 1" if abs(strength) > 1 else "")


def arms(run: SteeringRun, largest: dict[str, float], key: str) -> None:
    """The texts in columns, coloured by the first target's activation as the unsteered model reads it."""
    target = next(iter(run.promoted))
    for i, sample in enumerate(run["steered"].samples):
        st.caption(plain(sample.prompt))
        for column, arm in zip(st.columns(len(run.arms)), run.arms, strict=True):
            mine = arm.samples[i]
            with column:
                st.markdown(f"**{plain(arm.name)}**")
                if not mine.new_ids:
                    st.caption("The model ended the text at once.")
                    continue
                readings = mine.scores.readings[target] if mine.scores else [0.0] * len(mine.pieces)
                touched = _touched(run, arm.name)
                parted = "" if arm.name == "plain" else _parted(mine.diverges_at)
                strips(
                    [
                        row(
                            mine.pieces,
                            readings,
                            largest.get(target) or max([*readings, 1e-9]),
                            notes=[parted] if parted else [],
                            steered=[touched] * len(mine.pieces),
                        )
                    ],
                    key=f"{key} {arm.name} {i}",
                    breaks=True,
                )


def _touched(run: SteeringRun, arm: str) -> bool:
    """Whether generated tokens were edited in this arm, for the dotted line under them."""
    return arm != "plain" and any(e.positions.kind in ("not_bos", "all", "content", "generated", "from") for e in run.edits)


def _parted(at: int | None) -> str:
    return "equals plain, token by token" if at is None else f"parts from plain at token {at + 1}"


def figures(run: SteeringRun) -> None:
    """The scores of every arm; what each means stands beside it."""
    names = [arm.name for arm in run.arms]
    rows = show.figures(run)
    table = {"": [f"{plain(name)}" for name, _, _ in rows]}
    table |= {name: [show.number(values[i]) for _, _, values in rows] for i, name in enumerate(names)}
    table["what it is"] = [meaning for _, meaning, _ in rows]
    st.table(table)


def told(run: SteeringRun) -> None:
    """What should be known before the texts are believed, then what the hooks counted."""
    for note in run.notes:
        (st.warning if note.startswith("No effect") or "times the typical" in note else st.info)(plain(note))
    for line in [*show.edit_lines(run), *show.self_check(run)]:
        st.caption(plain(line))


def python(run: SteeringRun, folder: str) -> str:
    """The lines that make this run in a notebook, from the folder that holds dictionary and pack."""
    edits = " + ".join(_code(edit) for edit in run.edits)
    s = run.sampling
    return (
        f"import scope\nfrom scope.steering.interventions import {', '.join(sorted({type(e).__name__ for e in run.edits}))}\n\n"
        f"lab = scope.open({folder!r})\n"
        f"lab.steer({edits}).compare(\n    {run.prompts!r}, n={run.n}, max_new_tokens={s.max_new_tokens}, "
        f"temperature={s.temperature}, top_p={s.top_p}, repetition_penalty={s.repetition_penalty}, seed={s.seed}\n)"
    )


def _code(edit: Edit) -> str:
    amount = getattr(edit, "strength", getattr(edit, "factor", None))
    given = [str(edit.latent), *([f"{amount:g}"] if amount is not None else [])]
    if str(edit.positions) != "not_bos":
        given.append(f"positions={str(edit.positions)!r}")
    return f"{type(edit).__name__}({', '.join(given)})"


def save(store: FeatureStore, run: SteeringRun) -> str:
    """Keep a run beside the pack; its name is the hash of its contents."""
    name = hashlib.sha256(run.to_json().encode()).hexdigest()[:12]
    run.to_json(_saved(store) / f"{name}.json")
    return name


def load(store: FeatureStore, name: str) -> SteeringRun:
    """A run that was kept.

    Raises:
        EditError: no such run here, or one that cannot be read.
    """
    if not re.fullmatch(r"[0-9a-f]{12}", name) or not (_saved(store) / f"{name}.json").exists():
        raise EditError(f"No saved run {name!r} lies beside this pack.\n  Runs are kept in {_saved(store)}")
    return SteeringRun.from_json(_saved(store) / f"{name}.json")


def saved(store: FeatureStore, most: int = 20) -> list[str]:
    """Names of the runs that were kept, newest first."""
    files = _saved(store).glob("*.json") if _saved(store).is_dir() else []
    return [f.stem for f in sorted(files, key=lambda f: -f.stat().st_mtime)[:most]]


def _saved(store: FeatureStore) -> Path:
    return store.folder.with_name(store.folder.name + ".steering")
