"""`scope lookahead`: which latents of an infilling model fire in the middle because of the suffix."""

from collections.abc import Sequence
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.lookahead import FindLookahead, lookahead

FLAGS = flags_of(
    FindLookahead,
    positional=("sae",),
    doc="""Find latents that fire in the middle of an infilling example because of the suffix.

Every middle is read with its own suffix and with suffixes of other documents, prefix and middle staying as they are. Latents
are chosen on half of the documents, by a threshold that no latent passes by chance in 95 % of permutations of the suffixes,
and confirmed on the other half; beside it the same with another's suffix in the place of the own one, and on the model without
its adapter.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from rich.table import Table

    from scope.cli.progress import console, progress_bar

    config = config_of(FindLookahead, parsed)
    with progress_bar("Reading", unit="examples") as on_progress:
        result = lookahead(config, on_progress=on_progress)
    labels = {}
    if config.pack:
        from scope.features.face import Pack

        labels = dict(Pack.open(config.pack).table["label"])
    table = Table("latent", "own suffix", "others'", "lost", "z, held out", "floor's z", "more, z", "label", box=None)
    for row in sorted(result.ahead, key=lambda row: -row.lost)[:20]:
        floor, more = ("" if z is None else f"{z:.1f}" for z in (row.floor_z, row.more_z))
        cells = (row.latent, f"{row.own:.3g}", f"{row.others:.3g}", f"{row.lost:.0%}", f"{row.z_held_out:.1f}", floor, more)
        table.add_row(*map(str, cells), labels.get(row.latent, ""))
    if table.row_count:
        console.print(table)
    console.print(str(result), markup=False, soft_wrap=True)
    for file in filter(None, (config.out, config.html, config.csv)):
        console.print(f"Written: {file}", markup=False, soft_wrap=True)
    if config.pack:
        console.print(f"The pages of its latents show it: scope app {config.pack}", markup=False, soft_wrap=True)
