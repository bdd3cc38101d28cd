"""A pack, or some of its latents, in a form that other programs read."""

from collections.abc import Callable
from pathlib import Path

from scope.errors import PackError
from scope.features.exports import tables
from scope.features.exports.latents import json_file
from scope.features.exports.neuronpedia import neuronpedia_folder
from scope.features.exports.page import MOST, html_file
from scope.features.exports.saedashboard import saedashboard_file
from scope.features.pack.data import PackData
from scope.progress import OnProgress
from scope.whole_files import file_aside

FORMATS = {
    "parquet": "the table, a row a latent",
    "csv": "the same for spreadsheets; no cell can be run as a formula",
    "json": "everything: rows, histograms, examples, relations, notes",
    "html": f"cards on one page that needs nothing else, up to {MOST:,}",
    "neuronpedia": "the files of a source in Neuronpedia's public data",
    "saedashboard": "the JSON that SAEDashboard reads",
}
"""What `export` can write."""

SUFFIX = {"parquet": ".parquet", "csv": ".csv", "json": ".json", "html": ".html", "neuronpedia": "", "saedashboard": ".json"}


def export(
    pack: PackData,
    to: str,
    out: Path,
    latents: list[int] | None = None,
    on_progress: OnProgress | None = None,
    *,
    name: str | None = None,
) -> Path:
    """Write latents (default: all) in a format of FORMATS to `out`, aside first and then renamed; returns where it lies.

    `name` is the set's on Neuronpedia.

    Before that, every byte of the pack is held against its checksum, 1.6 s a gigabyte, once a process.

    Raises:
        PackError: an unknown format, too many cards for a page, a folder in the way, or a damaged pack.
    """
    if to not in FORMATS:
        raise PackError(f"There is no export to {to!r}; there are {', '.join(FORMATS)}.")
    chosen = list(range(pack.d_sae)) if latents is None else latents
    if not chosen:
        raise PackError("There is no latent to export: the list is empty.")
    if to == "html" and len(chosen) > MOST:
        raise PackError(f"A page holds up to {MOST:,} cards; these are {len(chosen):,}. Choose some, as out_score:50.")
    if to == "saedashboard" and out.suffix != ".json":
        raise PackError(f"SAEDashboard reads files that end in .json, which {out.name} does not.")
    pack.require_intact()
    if to == "neuronpedia":
        if out.exists() and not out.is_dir():
            raise PackError(f"{out} is a file, and the export for Neuronpedia is a folder. Choose another place.")
        return neuronpedia_folder(pack, chosen, out, on_progress, name)
    if out.is_dir():
        raise PackError(f"{out} is a folder; give the name of a file, such as {out / f'latents{SUFFIX[to]}'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(out) as aside:
        _write(pack, to, aside, chosen, on_progress)
    return out


def _write(pack: PackData, to: str, file: Path, latents: list[int], on_progress: OnProgress | None) -> None:
    if to == "parquet":
        tables.parquet(pack.table.join(pack.by_role).iloc[latents], file)
    elif to == "csv":
        file.write_bytes(tables.csv(pack.table.join(pack.by_role).iloc[latents].rename_axis("id")))
    else:
        by_latent: dict[str, Callable] = {"json": json_file, "html": html_file, "saedashboard": saedashboard_file}
        by_latent[to](pack, latents, file, on_progress)
