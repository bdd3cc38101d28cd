"""Parts of the Monitor page: which monitors there are, a text's score by token, and the numbers beside their nulls."""

import os
from pathlib import Path

import pandas as pd
import streamlit as st
from scope.app.kit import tiles as kit_tiles
from scope.app.kit.plain import number, plain, short_name, show_line
from scope.app.kit.tokens import row as strip_row
from scope.app.kit.tokens import strips
from scope.app.serve import models

from scope.errors import ScopeError
from scope.features.face import Pack
from scope.monitor.labelled import MonitorError
from scope.monitor.monitor import Monitor
from scope.monitor.run import Scored
from scope.monitor.statistics import Interval, Rate
from scope.provenance import ModelId
from scope.typed_json import parse_json, typed

MONITORS = "SCOPE_MONITORS"
"""Environment variable by which `scope app` names monitors: a JSON list of folders. Without it, those beside a pack."""


def folders_of(store: Pack) -> dict[str, str]:
    """Name -> folder of the monitors given to `scope app`, otherwise of those beside the pack, in its folder or one below."""
    listed = parse_json(os.environ.get(MONITORS) or "[]", MONITORS, MonitorError, "It is set by scope app.")
    folders = [Path(folder) for folder in typed(listed, list[str], MONITORS, MonitorError, "It is set by scope app.")]
    around = store.folder.absolute().parent
    folders = folders or sorted({file.parent for depth in ("*", "*/*") for file in around.glob(f"{depth}/monitor.json")})
    names: dict[str, str] = {}
    for folder in folders:
        name = folder.name if folder.name not in names else f"{folder.parent.name}/{folder.name}"
        names[name] = str(folder)
    return names


def opened(folders: dict[str, str]) -> tuple[dict[str, Monitor], list[str]]:
    """(monitors by name, why others cannot be shown)."""
    monitors, refusals = {}, []
    for name, folder in folders.items():
        try:
            monitors[name] = _open(folder, _modified(folder))[0]
        except ScopeError as refusal:
            refusals.append(str(refusal))
    return monitors, refusals


def _modified(folder: str) -> int:
    file = Path(folder) / "monitor.json"
    return file.stat().st_mtime_ns if file.exists() else 0


@st.cache_resource(show_spinner=False, max_entries=16)
def _open(folder: str, modified_ns: int) -> tuple[Monitor, dict]:
    from scope.monitor.files import read

    return read(Path(folder))


def title(name: str, monitor: Monitor) -> str:
    """Such as "harmful: probe, blocks.12.hook_resid_post"."""
    return show_line(f"{name}: {monitor.positive}, {monitor.method}, {monitor.site}", 80)


def summary(monitor: Monitor) -> str:
    """The sentence on what the monitor reads, at which site, and above which score it raises an alarm."""
    how = f"{monitor.aggregation} over the tokens of {monitor.reads()}"
    return (
        f"Alarm for {monitor.positive!r} against {monitor.negative!r}: {how} at {monitor.site} of "
        f"{short_name(ModelId.of(monitor.model).name or 'unknown model')}."
    )


def scored(store: Pack, folder: str, text: str) -> tuple[Scored, str]:
    """(the text's score by token, a remark on the model), from the pack's model; kept for this session.

    Raises:
        ScopeError: the model cannot be loaded, or is not the one that the monitor was fitted to.
    """
    kept, key = st.session_state.setdefault("monitor scores", {}), (folder, _modified(folder), id(store), text)
    if key not in kept:
        with models.in_turn(store) as (model, _), st.spinner("Scoring"):
            from scope.monitor.run import check_model, score_texts

            monitor, weights = _open(folder, _modified(folder))
            note = check_model(monitor, weights, model)
            kept[key] = next(score_texts(monitor, weights, model, [text])), note
        while len(kept) > 50:
            del kept[next(iter(kept))]
    return kept[key]


def verdict(monitor: Monitor, row: Scored) -> None:
    """Whether the alarm sounds, the score and the threshold."""
    if row.score is None:
        st.info("No token of this text counts, so it has no score.")
        return
    (st.error if row.alarm else st.success)(
        plain("ALARM: the score is above the threshold." if row.alarm else "No alarm: the score is not above the threshold."),
        icon=":material/notifications_active:" if row.alarm else ":material/check_circle:",
    )
    kit_tiles.tiles(
        [
            ("Score", f"{row.score:.4g}", f"{monitor.aggregation} over tokens", ""),
            ("Threshold", f"{row.threshold:.4g}", f"for {monitor.fpr:.1%} false alarms", "Set on the validation texts."),
            (
                "Probability",
                f"{row.probability:.1%}",
                "by the validation texts",
                "It holds where positive texts are as frequent as there.",
            ),
            ("Highest token", show_line((row.token or "").strip() or "␣", 24), f"position {row.position}", ""),
        ],
        key="verdict",
    )
    if row.cut:
        st.caption(f"{row.cut:,} tokens at the end of the text were not read: the monitor reads {monitor.context:,}.")


def strip(monitor: Monitor, row: Scored) -> None:
    """The text coloured by score; the value under the pointer is the token's score."""
    if row.score is None:
        return
    drawn = strip_row(
        row.pieces, row.above(monitor.typical), row.loudest(monitor.typical), row.position, value=f"{row.score:.3g}"
    )
    for cell in drawn["cells"]:
        value = row.values[cell[5]]
        cell[2] = "" if value is None else f"{value:.3g}"
    strips([drawn], key="monitor strip", breaks=True)
    st.caption(
        f"Colour: how far a token's score is above {monitor.typical:.3g}, the median score of the negative validation texts."
    )


def _rate(rate: Rate) -> str:
    return "–" if rate.interval is None else f"{rate.interval.low:.1%} to {rate.interval.high:.1%}"


def tiles(monitor: Monitor) -> None:
    """The AUC beside that of the words, and the errors of the alarm."""
    first, fpr, tpr = monitor.scores[0], monitor.test_fpr, monitor.test_tpr
    words = next((s for s in monitor.scores if s.name == "bag of words"), None)
    rows = [
        ("AUC", f"{first.auc:.3f}", f"{first.interval.low:.3f} to {first.interval.high:.3f}", "0.5 is guessing. 95 % interval.")
    ]
    if words is not None:
        rows.append(
            ("Bag of words", f"{words.auc:.3f}", "needs no model", "A logistic regression on token counts, same texts.")
        )
    rows += [
        ("False alarms", f"{fpr.share:.1%}", _rate(fpr), f"{fpr.k} of {fpr.n} negative test texts."),
        ("Caught", f"{tpr.share:.1%}", _rate(tpr), f"{tpr.k} of {tpr.n} positive test texts."),
        (
            "Right alarms, 1 in 100",
            number(monitor.precision(0.01), ".1%"),
            f"at worst {number(monitor.precision_at_worst(0.01), '.1%')}",
            "Of all alarms, if 1 in 100 texts were positive. At worst: both rates at the worse end of their interval.",
        ),
    ]
    kit_tiles.tiles(rows, key="monitor")
    beaten = monitor.beaten_by()
    if beaten:
        st.warning(plain(f"On the test texts it is not shown to be better than: {', '.join(beaten)}."))


def nulls(monitor: Monitor) -> None:
    """The table of the monitor, its baselines and its nulls."""

    def interval(ends: Interval | None, form: str) -> str:
        return "–" if ends is None else f"{ends.low:{form}} to {ends.high:{form}}"

    rows = [
        {
            "detector": s.name,
            "AUC": f"{s.auc:.3f}",
            "95 %": interval(s.interval, ".3f"),
            "monitor minus it": number(s.difference, "+.3f"),
            "its 95 %": interval(s.difference_interval, "+.3f"),
            "caught": f"{s.tpr.share:.1%}" if s.tpr else "–",
            "false alarms": f"{s.fpr.share:.1%}" if s.fpr else "–",
            "largest draw": number(s.largest, ".3f"),
        }
        for s in monitor.scores
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, key="monitor nulls", alt="AUC beside baselines and nulls")


def groups(monitor: Monitor) -> None:
    """Errors by group of the test texts, where they have groups."""
    if not monitor.groups:
        return
    with st.expander(f"By group ({len(monitor.groups)})"):
        rows = [
            {
                "group": show_line(g.name, 40),
                "texts": g.n,
                "false alarms": number(g.fpr.share, ".1%"),
                "false alarms, 95 %": _rate(g.fpr),
                "caught": number(g.tpr.share, ".1%"),
                "caught, 95 %": _rate(g.tpr),
            }
            for g in monitor.groups
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="monitor groups", alt="Errors by group")


def limits(monitor: Monitor) -> None:
    """Cost, and what was left out of the texts."""
    c = monitor.cost
    where = "the whole model" if c.layers is None else f"{c.layers} of {c.n_layers} blocks"
    st.caption(
        f"Cost: {c.flops:,} operations a token beside {c.model_flops:,}; measured {c.microseconds:.2f} µs beside "
        f"{c.whole:.0f} µs for the whole model, {c.to_site:.0f} µs for what has to run ({where})."
    )
    for note in monitor.notes:
        st.caption(plain(note))
