"""The result of a search for retrieval triggers: detectors of calls, and calls that were forced and held back."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.escape import escape
from scope.html_page import html_page
from scope.json_result import JsonResult
from scope.result import bar_figure
from scope.retrieval import steered_calls, triggers
from scope.retrieval.steered_calls import SteeredCalls
from scope.retrieval.triggers import Announcement
from scope.whole_files import write_whole


@dataclass(frozen=True, kw_only=True)
class TriggerResult(JsonResult):
    """How well calls are announced, and what steering them does."""

    error, way_out = ConfigError, "Make it again: scope datacommons triggers SAE --out FILE"

    schema: int = 1
    announcements: tuple[Announcement, ...]
    steered: tuple[SteeredCalls, ...] = ()
    notes: tuple[str, ...] = ()
    """Aims and rows that were left out, each with its reason."""

    provenance: dict[str, Any]
    """The model, the SAE, the questions and the settings."""

    def __str__(self) -> str:
        parts = [triggers.table(self.announcements)]
        if self.steered:
            parts.append(steered_calls.table(self.steered))
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def to_frame(self, table: str = "announcements") -> Any:
        """A row for each distance and detector, or with "steered" for each way of steering and condition.

        Raises:
            ConfigError: there is no such table.
        """
        import pandas as pd

        if table == "announcements":
            rows = [
                {"k": a.k, "calls": a.n_calls, "detector": name, "latent": a.latent if name == "latent" else None}
                | asdict(score)
                | {"f1": score.f1}
                for a in self.announcements
                for name, score in a.scores.items()
            ]
            return pd.DataFrame(rows).astype({"latent": "Int64"})
        if table == "steered":
            return pd.DataFrame(
                {"aim": s.aim, "by": s.means, "edit": s.edit, "condition": name, "answers": s.n} | asdict(outcome)
                for s in self.steered
                for name, outcome in s.outcomes.items()
            )
        raise ConfigError(f"There is no table {table!r}; there are announcements and steered.")

    def plot(self) -> Any:
        """F1 of each detector by the distance to the call, as a Plotly figure."""
        return bar_figure(self.to_frame().assign(where=lambda t: t["detector"] + ", k " + t["k"].astype(str)), "where", "f1")

    def to_csv(self, file: str | Path) -> None:
        """Both tables below each other in one CSV; `table` says which one a row is of."""
        import pandas as pd

        tables = [self.to_frame(name).assign(table=name) for name in ("announcements", "steered")]
        frame = pd.concat([table for table in tables if len(table)], ignore_index=True)
        write_whole(Path(file), frame[["table", *frame.columns.drop("table")]].to_csv(index=False))

    def to_html(self, file: str | Path | None = None) -> str:
        """As a page that needs nothing else, also written to `file`."""
        tables = [self.to_frame(name) for name in ("announcements", "steered")]
        shown = "".join(t.to_html(index=False, border=0, float_format="{:.2f}".format) for t in tables if len(t))
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        about = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.provenance.items())
        head = (
            "Detectors and edits are chosen on half of the questions and scored on the other. null: the best latent for the "
            "calls of other answers; random: a random direction of equal length."
        )
        text = html_page("Retrieval triggers", f"<p>{head}</p>{shown}{notes}<dl>{about}</dl>")
        if file is not None:
            write_whole(Path(file), text)
        return text
