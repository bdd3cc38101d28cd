"""`scope match`: which latents of two SAEs do the same on the same text."""

from collections.abc import Sequence
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.match import Match, match, place_beside

FLAGS = flags_of(
    Match,
    positional=("a", "b"),
    doc="""Match the latents of two SAEs, of the same or of two models, by what they do on the same text.

Each latent of A meets the latent of B whose activations correlate most with its own, word by word. Chance is what the same
gives once B's documents are exchanged among each other; the ceiling is what a third SAE gives, such as another seed of A.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from rich.table import Table

    from scope.cli.progress import console, progress_bar

    config = config_of(Match, parsed)
    with progress_bar("Reading", unit="pieces") as on_progress:
        result = match(config, on_progress=on_progress)
    table = Table("latent of A", "latent of B", "correlation", "by chance", "each other's best")
    for row in result.to_frame().head(20).itertuples():
        table.add_row(
            *map(str, (row.latent, row.partner)), f"{row.correlation:.2f}", f"{row.by_chance:.2f}", "yes" if row.mutual else ""
        )
    console.print(table)
    console.print(str(result), markup=False)
    if out := config.out or place_beside(config.a, config.b):
        console.print(f"Saved as {out}" + ("" if config.out else "; scope app shows it on the page Match."), soft_wrap=True)
    if config.csv:
        console.print(f"Every latent: {config.csv}", markup=False, soft_wrap=True)
