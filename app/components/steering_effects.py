"""What edits do inside the model, without drawing a token: to the next token, to a logit difference, to later latents."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.components.figures import show_line
from scope.app.components.plain import number, plain

from scope.escape import visible_token

_NUMBERS = ("plain", "edited", "change")


def numbers(found: Any) -> None:
    """The size of the effect beside that of the same edit on other latents."""
    nulls, changes = list(found.null_kl), list(found.null_change)
    with st.container(horizontal=True):
        st.metric(
            "KL to plain",
            number(found.kl, ".4f"),
            f"null {np.median(nulls):.4f}" if nulls else None,
            delta_color="off",
            delta_arrow="off",
            border=True,
            help="Of the next token, nats. Null: the median over other latents whose part in the prompt is about as large.",
        )
        before, after = found.logit_difference
        st.metric(
            "Logit difference",
            f"{after:+.3f}",
            f"{found.change:+.3f}",
            delta_color="off",
            delta_arrow="off",
            border=True,
            help=f"Before the edit {before:+.3f}.",
        )
        if changes:
            st.metric(
                "Change in the nulls",
                f"{np.median(changes):+.3f}",
                f"{min(changes):+.2f} to {max(changes):+.2f}",
                delta_color="off",
                delta_arrow="off",
                border=True,
            )
    st.caption(plain(f"Logit of {visible_token(found.token)!r} minus that of {visible_token(found.other)!r}. {found.report}."))
    if nulls:
        less = sum(found.kl > n for n in nulls)
        st.caption(f"The edit moves the next token further than {less} of {len(nulls)} other latents do.")
    for note in found.notes:
        st.warning(plain(note), icon=":material/block:")


def tokens(found: Any) -> None:
    """The likeliest next tokens with and without the edit."""
    rows = pd.DataFrame(list(found.tokens))
    rows["token"] = [show_line(visible_token(token, mark_space=True), 24) for token in rows["token"]]
    forms = {"plain": "%.3f", "edited": "%.3f", "change": "%+.3f"}
    _table(rows, forms, "effects tokens", "The likeliest next tokens, without and with the edit")


def downstream(found: Any, labels: dict[str, Any]) -> None:
    """Latents of later sites that changed most at the last token. `labels`: site -> labels by latent."""
    rows = found.downstream_frame()
    if rows.empty:
        return
    rows.insert(
        2,
        "label",
        [show_line(str(labels[s][i]), 40) if s in labels else "" for s, i in zip(rows["site"], rows["latent"], strict=True)],
    )
    forms = {"plain": "%.2f", "edited": "%.2f", "change": "%+.2f", "null": "%.2f"}
    _table(rows, forms, "effects downstream", "Latents of later sites that the edit moves most, at the last token")
    st.caption("Null: root mean square of the change when other latents are edited in the same way.")


def _table(rows: pd.DataFrame, forms: dict[str, str], key: str, alt: str) -> None:
    config: dict[str, Any] = {name: st.column_config.NumberColumn(name, format=form) for name, form in forms.items()}
    if "latent" in rows:
        config["latent"] = st.column_config.NumberColumn("latent", format="%d", width=70)
    st.dataframe(rows, hide_index=True, column_config=config, key=key, height=min(36 * len(rows) + 40, 400), alt=alt)
