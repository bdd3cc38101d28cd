"""Whether an edit did anything, and if not, why; and what else a reader of a run should know before believing it."""

from collections.abc import Sequence

from scope.steering.apply.gauge import Gauge
from scope.steering.apply.report import Report
from scope.steering.apply.resolve import Resolved
from scope.steering.edits.interventions import Direction

STRONG = 1.0
"""Beyond this many typical norms texts usually break down; the useful window is narrow and near 0.5."""


ERROR = 0.1
"""Of the variance: above it the error is a likely place for what an edit of a latent did not reach."""

POOR = 0.5
"""A dictionary that leaves more of the variance unexplained than this says little about the text at hand."""


def notes(arms: Sequence, edits: Sequence[Resolved], gauges: dict[str, Gauge], fvu: dict[str, float]) -> list[str]:
    """Sentences for the reader, the most important first. `fvu` is what each site's dictionary leaves unexplained here."""
    by_name = {arm.name: arm for arm in arms}
    steered = by_name["steered"]
    found = []
    if "plain" in by_name:
        same = [i for i, s in enumerate(steered.samples) if s.diverges_at is None]
        if same:
            which = (
                "No effect"
                if len(same) == len(steered.samples)
                else f"No effect on {len(same)} of {len(steered.samples)} texts"
            )
            found.append(f"{which}: the steered text equals the plain one, token by token. {why(steered, edits, same, fvu)}")
    if steered.report.max_norm > STRONG:
        found.append(
            f"The edit is up to {steered.report.max_norm:.2f} times the typical residual norm long; beyond about {STRONG:g} "
            "texts usually break down. Half the norm is a good place to start."
        )
    poor = {site: share for site, share in fvu.items() if share > POOR}
    found += [f"The dictionary at {s} explains only {1 - v:.0%} of the variance of these texts." for s, v in poor.items()]
    found += [f"Typical norm at {site}: {g.source}." for site, g in gauges.items() if g.source.startswith("measured on the")]
    if any(s.stopped_by == "context" for arm in arms for s in arm.samples):
        found.append("Some texts end because the model's context is full.")
    return found


def why(steered, edits: Sequence[Resolved], same: Sequence[int], fvu: dict[str, float]) -> str:
    """The likely reason for texts that did not change, from what the hooks counted."""
    report: Report = steered.report
    reasons = [reason for told in report.edits if (reason := _idle(told))]
    kept = _kept(edits, fvu)
    if len(reasons) == len(report.edits):
        return " ".join([*reasons, *kept])
    untouched = [i for i in same if not report.edited_per_row[i]]
    if untouched:
        return (
            f"Nothing was edited in {len(untouched)} of these: the latent was silent there, or the positions came to nothing."
        )
    if not any(steered.samples[i].new_ids for i in same):
        return "The model ended the text at once, with and without the edit."
    if report.mean_norm < 0.05:
        return f"The edit is only {report.mean_norm:.3f} of the typical residual norm long. Raise the strength; try 0.5."
    doses = [steered.samples[i].scores.kl for i in same if steered.samples[i].scores]
    dose = sum(doses) / len(doses) if doses else 0.0
    if dose < 1e-6:
        return "The edit acted, and the next-token distribution did not move: nothing after this site reads this direction."
    moved = f"The next-token distribution moved (mean KL {dose:.3g} nats a step), but changed no token that was drawn."
    return " ".join([moved, "Raise the strength, or choose a latent with a higher output score.", *kept])


def _kept(edits: Sequence[Resolved], fvu: dict[str, float]) -> list[str]:
    """That the direction of an edited activation may live on in the error, where that is large enough to matter."""
    sites = [e.site for e in edits if e.edit.reads == "activation" and not isinstance(e.edit.latent, Direction)]
    found = []
    for site in dict.fromkeys(sites):
        if fvu.get(site, 0.0) > ERROR:
            found.append(
                f"What the dictionary does not explain ({fvu[site]:.0%} of the variance here) is kept and may carry the same; "
                "ProjectOut takes the direction out of that, too."
            )
    return found


def _idle(told: dict) -> str | None:
    """Why an edit never acted, None if it did."""
    name = told["edit"]
    if told["acted"]:
        return None
    if not told["in_rule"]:
        return f"[{name}] No position fell under its rule."
    if not told["condition_held"]:
        return f"[{name}] Its condition held at none of {told['in_rule']} positions."
    if not told["active"] and name.startswith(("ablate", "scale")):
        return (
            f"[{name}] {told['target']} was active at 0 of {told['condition_held']} positions, so there was nothing to change."
        )
    if name.startswith(("cap", "floor")):
        side = "below" if name.startswith("cap") else "above"
        return f"[{name}] The projection was {side} that already at all {told['condition_held']} positions."
    if name.startswith("at least"):
        return f"[{name}] {told['target']} was at least that strong already at all {told['condition_held']} positions."
    return f"[{name}] Its strength came to 0 at all {told['condition_held']} positions."
