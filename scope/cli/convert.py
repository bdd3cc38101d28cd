"""`scope convert`: a dictionary from one format into another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Command:
    """Write a dictionary in another format, say what that format cannot hold, and compare what was written.

    Read are the folders of `scope train`, SAELens, Gemma Scope, Gemma Scope 2, dictionary_learning and sparsify.
    """

    source: tyro.conf.Positional[str]
    """A folder, a file of weights in it, or a hub id and the folder in it."""

    out: tyro.conf.Positional[Path]
    """Folder to write; it must not hold a dictionary yet."""

    to: Literal["scope", "sae_lens", "gemma_scope"]
    """What to write: this project's folder (SAELens' with a scope.json), SAELens' alone, or Gemma Scope's params.npz."""

    site: str | None = None
    """Where the dictionary reads, for a source that does not say or says what is wrong, e.g. blocks.12.hook_resid_post."""

    def run(self) -> None:
        from scope.cli.progress import console, print_note
        from scope.sae.convert import convert

        done = convert(self.source, self.out, self.to, self.site)
        sae = done.sae
        console.print(
            f"{done.folder}: {sae.d_sae:,} latents over {sae.site or 'a site that the source does not name'}, "
            f"{sae.kind}, as {self.to}"
        )
        same = "bit for bit the same" if done.furthest == 0 else f"the same to {done.furthest:.1g}, by rounding"
        console.print(f"Read back: {same}.")
        for line in done.lost:
            print_note(line, "not kept")
        if not sae.site:
            print_note("say where it reads with --site, or set sae.site once it is loaded.")
