"""Makes an index from another: one without some of its pages, or one with a part of each page's vectors.

The model is not run. What stays equal is linked or copied; the new folder takes its place when all of it is written.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from scope.pages.errors import PagesError
from scope.pages.firing import Firing, far_from_mean, largest
from scope.pages.format import (
    Manifest,
    Shard,
    Trimmed,
    picture_file,
    read_manifest,
    read_shards,
    read_skipped,
    read_vectors,
    shard_file,
    write_manifest,
    write_shard,
    write_skipped,
)
from scope.pages.head import rows_of_pages
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.whole_files import only_writer, whole_folder

TrimBy = Literal["mean", "latents"]


def remove_pages(folder: Path | str, names: Sequence[str]) -> int:
    """Take pages out of an index, with their vectors and pictures; the number of pages that went. Other pages keep their order.

    A name is a page's ("report.pdf#3", "plan.png") or a file's, which stands for all of its pages, and for the remark that it
    could not be read. Until the last moment the index is as it was, so after a crash the same call does it.

    Raises:
        PagesError: no such page, or a damaged index.
        FolderInUse: another process writes there.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    with only_writer(folder):
        shards, skipped, wanted = read_shards(folder, manifest), read_skipped(folder), set(names)
        pages = [page for shard in shards for page in shard.pages]
        known = {page.name for page in pages} | {page.file for page in pages} | {skip.page for skip in skipped}
        if unknown := sorted(wanted - known) or ([] if wanted else ["nothing"]):
            some = ", ".join(sorted(known)[:4])
            raise PagesError(f"{folder} has no page {unknown[0]!r}, so none was removed. It has pages such as {some}.")
        goes = [page.name in wanted or page.file in wanted for page in pages]
        with whole_folder(folder) as aside:
            _without(folder, aside, manifest, shards, goes)
            write_skipped(aside, [skip for skip in skipped if skip.page not in wanted])
            write_manifest(aside, manifest)
    return sum(goes)


def _without(folder: Path, aside: Path, manifest: Manifest, shards: Sequence[Shard], goes: Sequence[bool]) -> None:
    (aside / "shards").mkdir()
    (aside / "pictures").mkdir()
    number = first = n_shards = 0
    for i, shard in enumerate(shards):
        stays = [not gone for gone in goes[first : first + len(shard.pages)]]
        if all(stays):
            for ending in ("safetensors", "json"):
                _take(shard_file(folder, i, ending), shard_file(aside, n_shards, ending))
        elif any(stays):
            vectors, norms = read_vectors(folder, i, shard, manifest)
            lengths = [page.vectors for page in shard.pages]
            rows = torch.repeat_interleave(torch.tensor(stays), torch.tensor(lengths))
            left = [page for page, stay in zip(shard.pages, stays, strict=True) if stay]
            write_shard(aside, n_shards, left, vectors[rows], norms[rows])
        n_shards += any(stays)
        for offset, stay in enumerate(stays):
            if stay:
                _take(picture_file(folder, first + offset), picture_file(aside, number))
                number += 1
        first += len(shard.pages)


def _take(file: Path, new: Path) -> None:
    """The same file under another name, which nothing writes into later; one that is missing stays missing."""
    if not file.exists():
        return
    try:
        os.link(file, new)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, new)


@torch.no_grad()
def trim(
    index: Any,
    folder: Path | str,
    share: float,
    sae: SAE | None = None,
    rates: Firing | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write an index to `folder` that has only a share of each page's vectors: those far from the page's mean, or with `sae`
    and the `rates` of its latents those whose latents are rare.

    Raises:
        PagesError: `folder` is there already.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise PagesError(f"{folder} exists already, and a trimmed index is written to a new folder.")
    manifest, streams = index.manifest, None if sae is None else rows_of_pages(index, sae.site)
    by: TrimBy = "mean" if sae is None else "latents"
    with whole_folder(folder) as aside:
        (aside / "shards").mkdir()
        (aside / "pictures").mkdir()
        for i, (first, shard, vectors, norms) in enumerate(index.shards()):
            pages, rows, at = [], [], 0
            for offset, page in enumerate(shard.pages):
                own = vectors[at : at + page.vectors].float()
                x = None if streams is None else next(streams)[1]
                key = far_from_mean(own) if sae is None or rates is None else rates.rarity(sae, x)
                kept = largest(key, share)
                pages.append(replace(page, vectors=len(kept)))
                rows.append(kept + at)
                at += page.vectors
                _take(picture_file(index.folder, first + offset), picture_file(aside, first + offset))
                if on_progress is not None:
                    on_progress(first + offset + 1, len(index), {})
            chosen = torch.cat(rows)
            write_shard(aside, i, pages, vectors[chosen], norms[chosen])
        write_skipped(aside, index.skipped)
        write_manifest(aside, replace(manifest, trimmed=Trimmed(share=share, by=by, of=str(index.folder.absolute()))))
    return folder
