"""Splits a moderator's log-odds, logit(Yes) - logit(No), over the latents of an SAE, policy beside policy.

For each policy the rows are those of `scope.circuits.attribution.attribute` with the method "direct": what each latent, the
SAE's error, its bias and the blocks after its site add to the log-odds by way of the last token's stream, the scale of the
final norm held fixed. They add up to the log-odds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scope.circuits.attribution import attribute
from scope.circuits.attribution_result import Attribution
from scope.circuits.tables import html_table
from scope.escape import visible
from scope.moderation.moderator import Moderator
from scope.moderation.policies import Policy, find_policies
from scope.moderation.prompt import Item, rendered
from scope.result import Result, bar_figure
from scope.sae.base import SAE


@dataclass(frozen=True, repr=False)
class Contributions(Result):
    """One text: an attribution of the log-odds for each policy."""

    item: Item
    by_policy: dict[str, Attribution]

    @property
    def log_odds(self) -> dict[str, float]:
        """logit(Yes) - logit(No) by policy."""
        return {policy: found.logit_difference for policy, found in self.by_policy.items()}

    def to_frame(self):
        """Parts by policies, in logits, as a pandas table; latents by falling size of their largest share, a latent that is
        silent under a policy with 0. `label` is that of the pack, "" without one."""
        import pandas as pd

        columns = {policy: {row.name: row.value for row in found.rows} for policy, found in self.by_policy.items()}
        latents = {row.name: row.latent for found in self.by_policy.values() for row in found.rows}
        table = pd.DataFrame(columns, index=list(latents)).fillna(0.0)
        largest = table.abs().max(axis=1)
        order = sorted(latents, key=lambda name: (latents[name] is None, -largest[name] if latents[name] is not None else 0))
        labels = self.labels
        return table.loc[order].assign(latent=[latents[name] for name in order], label=[labels.get(n, "") for n in order])

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the rows that have one, by name."""
        return {row.name: row.label for found in self.by_policy.values() for row in found.rows if row.label}

    def plot(self):
        """The largest parts as bars, a colour a policy, in a Plotly figure."""
        return bar_figure(self.to_frame().rename_axis("part").reset_index(), "part", *self.by_policy)

    def to_json(self) -> str:
        found = {
            policy: {"log_odds": a.logit_difference, "before_cap": a.before_cap, "rows": {r.name: r.value for r in a.rows}}
            for policy, a in self.by_policy.items()
        }
        text = {"text": self.item.text, "response": self.item.response}
        return json.dumps({**text, "policies": found, **({"labels": self.labels} if self.labels else {})}, indent=1)

    def _head(self) -> list[str]:
        first = next(iter(self.by_policy.values()))
        lines = [
            f"logit(Yes) - logit(No) for {visible(self.item.text)!r}, {first.site}.",
            "Each row is a part's share by way of the last token's stream, the scale of the final norm held fixed.",
        ]
        capped = {p: a.logit_difference / a.before_cap for p, a in self.by_policy.items() if a.before_cap}
        if any(abs(share - 1) > 1e-4 for share in capped.values()):
            shares = ", ".join(f"{policy} {share:.4f}" for policy, share in capped.items())
            lines.append(f"The soft cap squeezes the difference, and every row in the same proportion: {shares}.")
        return lines

    def _rows(self, top: int) -> list[tuple[str, ...]]:
        """Name, value by policy and label of each row that is shown."""
        table, names, labels = self.to_frame(), list(self.by_policy), self.labels
        latents, others = (table[table["latent"].isna() == other] for other in (False, True))
        shown = [*latents.head(top)[names].iterrows()]
        if len(latents) > top:
            shown.append((f"{len(latents) - top} further latents", latents[names].iloc[top:].sum()))
        shown += [*others[names].iterrows(), ("sum", table[names].sum())]
        return [(name, *(f"{v:+.3f}" for v in row), visible(labels.get(name, ""))) for name, row in shown]

    def text(self, top: int = 12) -> str:
        """The `top` latents with the largest shares, all others as one row, and the other parts."""
        rows, names = self._rows(top), list(self.by_policy)
        first = max(len(row[0]) for row in rows)
        widths = [max(8, len(name)) for name in names]
        lines = [f"{'':<{first}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))]
        for name, *values, label in rows:
            cells = "  ".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True))
            lines.append(f"{name:<{first}}  {cells}  {label}".rstrip())
        return "\n".join([*self._head(), *lines])

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._head(), ("part", *self.by_policy, "label"), self._rows(12), [])


def contributions(
    moderator: Moderator,
    sae: SAE,
    item: Item,
    policies: str | Policy | Sequence[str | Policy],
    any_model: bool = False,
    pack: Any = None,
) -> Contributions:
    """The log-odds of one text under each policy as a sum over latents. Labels come from `pack`.

    Raises:
        ModerationError: see `Moderator.judge`.
        EditError: an SAE at a site that is no part of the residual stream.
        DictionaryError: an SAE of another model.
    """
    model, found = moderator.model, {}
    for policy in find_policies(policies):
        prompt = rendered(model.words, item, policy, moderator.template)
        settings = {"method": "direct", "any_model": any_model, "pack": pack}
        found[policy.name] = attribute(model, sae, prompt, moderator.yes, moderator.no, **settings)
    return Contributions(item, found)
