"""`scope features`: a dictionary and a recording (or text) in, a feature pack out."""

import shlex
from collections.abc import Sequence
from typing import Any

from scope.cli.flags import YES, config_of, flags_of
from scope.workflows.features import CollectFeatures, collect_features

FLAGS = flags_of(
    CollectFeatures,
    positional=("dictionary",),
    more=[YES],
    doc="""Collect everything the browser shows about each latent into a pack.

One pass over the activations of a recording, or of a model on a corpus, gathers all latents at once; then each
latent's effect on the next token is measured beside random directions. The pack can be browsed without the model:
scope app PACK. Stopped, the same command goes on where it stopped. Several processes share the work, on one machine or
with one disk: torchrun --nproc-per-node N -m scope.cli features ...
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from scope.cli.progress import console, print_certificate, print_note, progress_bar

    with progress_bar("Collecting", unit="tokens", yes=parsed.yes) as on_progress:
        pack = collect_features(
            config_of(CollectFeatures, parsed),
            on_progress=on_progress,
            on_note=print_note,
            on_certificate=print_certificate,
            on_plan=lambda text: console.print(text, style="dim", highlight=False),
        )
    if pack is not None:
        print_pack(pack, console)


def print_pack(pack: Any, console: Any) -> None:
    """Counts, the best latents, and how to browse them."""
    from pandas import isna
    from rich.table import Table

    from scope.escape import visible_token

    table, null = pack.table, pack.manifest.output_score
    flagged = {name: int(table["flags"].str.contains(name).sum()) for name in ("dead", "dense", "single-token", "duplicate")}
    told = ", ".join(f"{n:,} {name}" for name, n in flagged.items())
    made = f"{pack.d_sae:,} latents on {pack.n_tokens:,} tokens, L0 {pack.manifest.l0:.1f}"
    console.print(f"{made}, in {pack.manifest.seconds:.0f} s: {told}")
    if pack.site_out is not None:
        console.print(f"A transcoder: its latents read {pack.site}; what they promote is what they write at {pack.site_out}.")
    if null.null_p95 is not None:
        above, best = int(table["flags"].str.contains("output").sum()), table["out_score"].max()
        console.print(
            f"Output score: {above:,} latents above {null.null_p95:+.4f}, which 5 % of {null.random} random "
            f"directions reach; best {best:+.3f}"
        )
    shown = Table("latent", "label", "density", "promotes (weights)", "output score", box=None)
    for i, row in table.sort_values(["out_score", "label_score"], ascending=False, na_position="last").head(8).iterrows():
        words = " ".join(visible_token(t, mark_space=True) for t in row["promotes"][:5])
        shown.add_row(
            str(i), row["label"], f"{row['density']:.2%}", words, "" if isna(row["out_score"]) else f"{row['out_score']:+.3f}"
        )
    console.print(shown)
    if len(pack.by_role.columns):
        console.print(_roles(pack))
    console.print(f"To browse it: scope app {shlex.quote(str(pack.folder))}")


def _roles(pack: Any) -> Any:
    """Rows and L0 of each role, and the latents that fire there most often for their frequency elsewhere."""
    from rich.table import Table

    shares, usual = pack.by_role, pack.table["density"]
    shown = Table("role", "rows", "L0", "latents that fire there most, with their lift", box=None)
    for role, rows in pack.manifest.roles.items():
        density = shares[f"{role}_density"]
        lift = (density / usual)[(density * rows >= 10) & (usual > 0)].nlargest(4)
        latents = ", ".join(f"{i} ({times:.1f})" for i, times in lift.items())
        shown.add_row(role, f"{rows:,}", f"{density.sum():.1f}", latents)
    return shown
