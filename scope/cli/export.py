"""`scope export`: a pack's latents in a form that other programs read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write latents of a pack as a table, as everything, as cards, or for Neuronpedia or SAEDashboard.

    parquet, csv: the table, a row a latent. json: all that the pack knows. html: cards on a page that needs nothing else.
    neuronpedia: a source as it lies in its public data. saedashboard: the JSON that SaeVisData.load_json reads.

    hook, gguf: of an intervention that `scope steer --export` wrote, its program for transformers or its control vector.
    """

    pack: tyro.conf.Positional[Path]
    """Pack that `scope features` wrote, or an intervention."""

    to: Literal["parquet", "csv", "json", "html", "neuronpedia", "saedashboard", "hook", "gguf"]
    """The format."""

    out: Path | None = None
    """File, or folder for neuronpedia. None: beside the pack, under its name."""

    latents: str | None = None
    """Which: numbers and ranges (3,17,40-60), starred, COLUMN:N for the foremost N (out_score:50). None: all."""

    name: str | None = None
    """Name of the set on Neuronpedia, e.g. gemmascope-res-16k. None: made of site and width."""

    def run(self) -> None:
        from scope.cli.packs import pack_folder
        from scope.cli.progress import console, progress_bar
        from scope.features.exports.export import SUFFIX, export
        from scope.features.face import Pack
        from scope.features.pack.search import chosen
        from scope.progress import size

        if self.to in ("hook", "gguf"):
            from scope.steering.export.forms import copy_form

            for file in copy_form(self.pack, self.to, self.out):
                console.print(f"Written: {file}", soft_wrap=True)
            return
        store = Pack.open(pack_folder(self.pack))
        latents = chosen(store, self.latents)
        folder = store.folder.absolute()
        out = self.out or folder.with_name(f"{folder.name}.{self.to}{SUFFIX[self.to].replace('.' + self.to, '')}")
        with progress_bar("Exporting", unit="latents") as on_progress:
            where = export(store, self.to, out, latents, on_progress, name=self.name)
        files = [f for f in where.rglob("*") if f.is_file()] if where.is_dir() else [where]
        written = size(sum(f.stat().st_size for f in files))
        console.print(f"{len(latents):,} latents, {written}: {where}")
        if self.to == "neuronpedia":
            console.print(
                "Neuronpedia takes sources from its bucket s3://neuronpedia-datasets/v1 alone, not from a folder: ask its "
                "makers to put this one there. An instance of your own can be pointed at another bucket."
            )
