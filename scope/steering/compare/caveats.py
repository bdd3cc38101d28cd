"""Notes on a run: whether the edit did anything, and if not, why; what limits how far its texts can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

from scope.steering.apply.resolve import Resolved
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.run import Condition
from scope.steering.edits.base import Edit

STRONG = 1.0
"""Beyond this many typical norms texts usually break down; the useful window is narrow and near 0.5."""


ERROR = 0.1
"""FVU above which the SAE's error is a likely place for what an edit of a latent did not reach."""

POOR = 0.5
"""FVU above which a dictionary says little about the texts."""


def notes_on(
    conditions: Sequence[Condition],
    edits: Sequence[Resolved],
    strength_units: Mapping[str, StrengthUnits],
    fvu: Mapping[str, float],
) -> list[str]:
    """Sentences for the reader, the most important first. `fvu` is what each site's dictionary leaves unexplained here."""
    by_name = {c.name: c for c in conditions}
    steered = by_name["steered"]
    notes = []
    if "plain" in by_name:
        same = [i for i, s in enumerate(steered.samples) if s.diverges_at is None]
        if same:
            which = (
                "No effect"
                if len(same) == len(steered.samples)
                else f"No effect on {len(same)} of {len(steered.samples)} texts"
            )
            notes.append(f"{which}: the steered text equals the plain one, token by token. {why(steered, edits, same, fvu)}")
    if steered.report.max_norm > STRONG:
        notes.append(
            f"The edit is up to {steered.report.max_norm:.2f} times the typical residual norm long; beyond about {STRONG:g} "
            "texts usually break down. Half the norm is a good place to start."
        )
    poor = {site: share for site, share in fvu.items() if share > POOR}
    notes += [poor_fit(site, share) for site, share in poor.items()]
    notes += [
        f"Typical norm at {site}: {units.source}."
        for site, units in strength_units.items()
        if units.source.startswith("measured on the")
    ]
    if any(s.stopped_by == "context" for c in conditions for s in c.samples):
        notes.append("Some texts end because the model's context is full.")
    return notes


def poor_fit(site: str, fvu: float) -> str:
    """A sentence for a dictionary that leaves most of the variance; above an FVU of 1 it is worse than the texts' mean."""
    if fvu >= 1:
        return f"The dictionary at {site} explains none of the variance of these texts: FVU {fvu:.2f}, and their mean has 1."
    return f"The dictionary at {site} explains only {1 - fvu:.0%} of the variance of these texts."


def why(steered: Condition, edits: Sequence[Resolved], same: Sequence[int], fvu: Mapping[str, float]) -> str:
    """The likely reason for texts that did not change, from what the hooks counted."""
    report = steered.report
    reasons = [reason for counts in report.edits if (reason := _idle(counts))]
    in_error = _in_error(edits, fvu)
    if len(reasons) == len(report.edits):
        return " ".join([*reasons, *in_error])
    untouched = [i for i in same if not report.edited_per_row[i]]
    targets = " and ".join(dict.fromkeys(counts["target"] for counts in report.edits))
    if untouched:
        return (
            f"Nothing was edited in {len(untouched)} of these: there was nothing of {targets} there, or the positions came to "
            "nothing."
        )
    if not any(steered.samples[i].new_ids for i in same):
        return "The model ended the text at once, with and without the edit."
    if report.mean_norm < 0.05:
        return f"The edit is only {report.mean_norm:.3f} of the typical residual norm long. Raise the strength; try 0.5."
    kls = [steered.samples[i].scores.kl for i in same if steered.samples[i].scores]
    kl = sum(kls) / len(kls) if kls else 0.0
    if kl < 1e-6:
        return "The edit acted, and the next-token distribution did not move: nothing after this site reads this direction."
    moved = f"The next-token distribution moved (mean KL {kl:.3g} nats a step), but changed no token that was drawn."
    return " ".join([moved, _stronger([e.edit for e in edits]), *in_error])


def _stronger(edits: Sequence[Edit]) -> str:
    """What may change a token that the edits did not change."""
    if all(edit.on_tokens for edit in edits):
        return "Forget more tokens or raise the part; what attention reads of them is not taken away."
    if all(edit.on_latent for edit in edits):
        return "Raise the strength, or choose a latent with a higher output score."
    return "Raise the strength."


def _in_error(edits: Sequence[Resolved], fvu: Mapping[str, float]) -> list[str]:
    """That the direction of an edited activation may live on in the error, where that is large enough to matter."""
    sites = [e.site for e in edits if e.edit.reads == "activation" and e.edit.on_latent]
    notes = []
    for site in dict.fromkeys(sites):
        if fvu.get(site, 0.0) > ERROR:
            notes.append(
                f"What the dictionary does not explain ({fvu[site]:.0%} of the variance here) stays and may carry the same; "
                "ProjectOut takes the direction out of that, too."
            )
    return notes


def _idle(counts: dict[str, Any]) -> str | None:
    """Why an edit never acted, None if it did."""
    name = counts["edit"]
    if counts["acted"]:
        return None
    if not counts["in_rule"]:
        return f"[{name}] No position fell under its rule."
    if not counts["condition_held"]:
        return f"[{name}] Its condition held at none of {counts['in_rule']} positions."
    if not counts["active"] and name.startswith(("ablate", "scale")):
        return f"[{name}] {counts['target']} was active at 0 of {counts['condition_held']} positions: nothing to change."
    if name.startswith(("cap", "floor")):
        side = "below" if name.startswith("cap") else "above"
        return f"[{name}] The projection was {side} that already at all {counts['condition_held']} positions."
    if name.startswith("forget"):
        return f"[{name}] Nothing was left of it in the state at {counts['in_rule']} positions."
    if name.startswith("hold"):
        return f"[{name}] {counts['target']} was active before 0 of {counts['in_rule']} positions: nothing to hold."
    if name.startswith("at least"):
        return f"[{name}] {counts['target']} was at least that strong already at all {counts['condition_held']} positions."
    return f"[{name}] Its strength came to 0 at all {counts['condition_held']} positions."
