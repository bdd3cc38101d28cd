"""`scope diff`: what did fine-tuning move?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.diff import DiffJob, diff

FLAGS = flags_of(
    DiffJob,
    positional=("model", "tuned"),
    commas=("sites",),
    more=[("html", Path | None, None, "Also write a page with verdict, figure and tables here.")],
    doc="""Compare a model with its fine-tune: a whole checkpoint, an adapter, or BASE+ADAPTER.

The size and rank of the change of every weight (of an adapter from its factors), and how far activations lie apart at each
site on the same text. With an SAE of the base: latents that moved beyond what drawing the text anew does, latents that the
update reads and writes beside random directions, and how well the SAE still fits.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from scope.cli.progress import console, print_note, progress_bar

    job = config_of(DiffJob, parsed)
    with progress_bar("Reading", unit="contexts") as on_progress:
        result = diff(job, on_progress=on_progress)
    console.print(result.title(), style="bold")
    for line in result.verdict():
        console.print(line, soft_wrap=True)
    for note in result.notes:
        print_note(note)
    console.print(_table(result, "sites", ("site", "relative", "constant", "rank", "promotes"), 200))
    console.print(_table(result, "weights", ("parameter", "relative", "rank", "stable", "first"), 12))
    if result.latents is not None:
        console.print(_table(result, "latents", ("latent", "z", "p", "frequency_base", "frequency_tuned", "promotes"), 12))
    if job.out:
        console.print(f"All tables: {job.out}", soft_wrap=True)
    if parsed.html:
        result.to_html(parsed.html)
        console.print(f"The page: {parsed.html}", soft_wrap=True)


def _table(result: Any, name: str, columns: tuple[str, ...], rows: int) -> Any:
    """The first rows of a table."""
    from rich.table import Table

    drawn = Table(*columns, box=None, pad_edge=False)
    for row in result.to_frame(name).head(rows)[list(columns)].itertuples(index=False):
        drawn.add_row(*(_cell(value) for value in row))
    return drawn


def _cell(value: Any) -> str:
    from scope.escape import visible

    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return visible(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
