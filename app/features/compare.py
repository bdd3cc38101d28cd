"""Up to four latents side by side: figures, what they write, where they fire hardest."""

import streamlit as st
from scope.app.kit.messages import guarded
from scope.app.kit.plain import number, plain, show_line
from scope.app.kit.tokens import example_row, strips

from scope.escape import visible_token
from scope.features.face import Pack

MOST = 4


def figures(store: Pack, latents: list[int]) -> None:
    """Their figures in one table, a column each."""
    rows = [store[i].row for i in latents]
    names = {"density": ".3%", "max": ".3g", "p50": ".3g", "top_token_share": ".0%", "out_score": "+.3f", "label_score": ".2f"}
    table = {"figure": ["density", "largest", "median", "top token's share", "output score", "label's score"]}
    table |= {f"\\#{row['id']}": [number(row[name], form) for name, form in names.items()] for row in rows}
    st.table(table)


def side_by_side(store: Pack, latents: list[int]) -> int | None:
    """A column a latent; the one whose button was pressed."""
    opened = None
    for column, i in zip(st.columns(len(latents)), latents, strict=True):
        feature = store[i]
        with column:
            st.markdown(f"**\\#{i}** {plain(show_line(feature.label, 80))}")
            if st.button(f"Open #{i}", icon=":material/open_in_new:", type="tertiary"):
                opened = i
            promoted = " ".join(visible_token(token, mark_space=True) for token, _ in feature.promoted[:8])
            st.caption("raises " + plain(promoted) if promoted else "Its promoted tokens are not in this pack.")
            with guarded():
                rows = [example_row(e, float(feature.row["max"]), 8) for e in feature.examples("top", 5)]
                strips(rows, key=f"compare {i}")
                if not rows:
                    st.caption("It fired nowhere.")
    return opened


def shared(store: Pack, latents: list[int]) -> str:
    """What two latents have in common, in a line: cosine where it is known, and tokens on which both fire."""
    told = []
    for n, i in enumerate(latents):
        near = dict(store[i].neighbours)
        told += [f"cosine of #{i} and #{j}: {near[j]:+.2f}" for j in latents[n + 1 :] if j in near]
    tokens = [{row["token"] for row in store[i].tokens} for i in latents]
    both = set.intersection(*tokens) if tokens else set()
    told.append(f"{len(both)} of their most frequent tokens are shared by all")
    return "; ".join(told) + "."
