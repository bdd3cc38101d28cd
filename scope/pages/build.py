"""Makes a page index: embeds pages with a ColPali and writes their vectors, shard by shard.

Whatever stops it, finished pages are kept, and the same call goes on with the next one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from scope.errors import PictureError
from scope.models.pictures.draw import png
from scope.pages.errors import PagesError
from scope.pages.format import (
    INDEX,
    SCHEMA,
    Dtype,
    Manifest,
    Page,
    Skipped,
    picture_file,
    read_manifest,
    read_shards,
    read_skipped,
    write_manifest,
    write_shard,
    write_skipped,
)
from scope.pages.index import Index, check_model
from scope.pages.sources import Source, find_sources, is_blank, sources_in
from scope.progress import OnProgress
from scope.provenance import ModelId
from scope.versions import version_of
from scope.whole_files import only_writer, write_whole

PAGES_A_SHARD = 32
Bad = Literal["skip", "refuse"]


def build_index(
    model: Any,
    sources: Any,
    folder: Path | str,
    *,
    dtype: Dtype = "float16",
    dpi: int = 150,
    batch: int = 4,
    bad: Bad = "skip",
    on_progress: OnProgress | None = None,
) -> Index:
    """Embed every page of `sources` and write it to `folder`; pages that an index there has are not embedded again.

    Args:
        model: a ColPali.
        sources: files, folders, PIL images, or a mapping from names to pictures.
        dtype: how vectors are stored; the search runs in float32 either way.
        dpi: pixels per inch at which pages of PDFs are rendered, before they are resized to the model's square.
        batch: pages that run at once.
        bad: leave out pages that cannot be read, and name them in the result's `skipped`; or stop at the first.

    Raises:
        PagesError: no page, a page that cannot be read where `bad` is "refuse", or a folder with an index of another model, of
            other settings or of files that have changed since, or with other files.
        FolderInUse: another process writes there.
    """
    check_model(model)
    if batch < 1 or dpi < 1:
        raise PagesError(f"batch is {batch} and dpi {dpi}; both must be at least 1.")
    files, corpora, _ = find_sources(sources)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / INDEX).exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise PagesError(f"{folder} holds other files than a page index. Give a new folder.")
    with only_writer(folder):
        _Builder(model, folder, dtype, dpi, batch, bad, _origins(sources)).run(files, sources_in(corpora), on_progress)
    return Index.open(folder, model)


def _origins(sources: Any) -> tuple[str, ...]:
    items = sources if isinstance(sources, list | tuple) else [sources]
    return tuple(dict.fromkeys(str(item) if isinstance(item, str | Path) else "pictures in memory" for item in items))


class _Builder:
    def __init__(self, model: Any, folder: Path, dtype: Dtype, dpi: int, batch: int, bad: Bad, origins: Sequence[str]):
        self.model, self.folder, self.batch, self.bad = model, folder, batch, bad
        self.manifest = self._manifest(dtype, dpi, origins)
        if (folder / INDEX).exists():
            self.manifest = self._continued(read_manifest(folder))
        shards = read_shards(folder, self.manifest)
        self.n_shards, self.n_pages = len(shards), sum(len(shard.pages) for shard in shards)
        self.known: dict[str, dict[int, Page]] = {}
        for page in (page for shard in shards for page in shard.pages):
            self.known.setdefault(page.file, {})[page.number] = page
        self.skipped = {skip.page: skip for skip in read_skipped(folder)}
        self.seen: set[str] = set()
        self.waiting: list[tuple[Page, Any]] = []  # pages to embed in the next batch
        self.ready: list[tuple[Page, torch.Tensor, torch.Tensor]] = []  # pages to write in the next shard

    def _manifest(self, dtype: Dtype, dpi: int, origins: Sequence[str]) -> Manifest:
        size = self.model.cfg.pictures.size
        ids = self.model.prepare_pages([torch.zeros(size, size, 3, dtype=torch.uint8)])["input_ids"][0]
        image, words = self.model.cfg.image_token, self.model.words  # the image token may lie beyond the vocabulary
        pieces = ("<image>" if i == image else words.pieces([i])[0] for i in ids.tolist())
        return Manifest(
            schema=SCHEMA,
            model=dict(self.model.provenance),
            family=self.model.cfg.family_name,
            d_embed=self.model.cfg.d_embed,
            dtype=dtype,
            grid=tuple(self.model.patch_grid()),
            first_patch=int((ids == image).nonzero()[0]),
            pieces=tuple(pieces),
            dpi=dpi,
            sources=tuple(origins),
            scope=version_of(),
        )

    def _continued(self, there: Manifest) -> Manifest:
        """The manifest of an index that is gone on with.

        Raises:
            PagesError: it was made by another model or with other settings.
        """
        if there.trimmed is not None:
            raise PagesError(
                f"{self.folder} has {there.trimmed.share:.0%} of each page's vectors, and no pages are added to it.\n"
                f"  Add them to {there.trimmed.of}, and trim that again: scope pages weigh ... --out NEW_FOLDER."
            )
        now, names = self.manifest, ("d_embed", "dtype", "grid", "pieces", "dpi")
        if ModelId.of(there.model).same_weights(ModelId.of(now.model)) is False:
            raise PagesError(
                f"{self.folder} is an index of {ModelId.of(there.model)}; this model is {ModelId.of(now.model)}.\n"
                "  Give that model, or another --out."
            )
        if other := [name for name in names if getattr(there, name) != getattr(now, name)]:
            values = ", ".join(f"{n} {getattr(there, n)}, not {getattr(now, n)}" for n in other if n != "pieces")
            raise PagesError(
                f"{self.folder} was made with other settings: {values or 'other tokens of a page'}.\n"
                "  Give the same, or another --out."
            )
        return replace(there, sources=tuple(dict.fromkeys([*there.sources, *now.sources])))

    def run(self, files: Sequence[Source], streamed: Iterable[Source], on_progress: OnProgress | None) -> None:
        write_manifest(self.folder, self.manifest)
        for name in ("shards", "pictures"):
            (self.folder / name).mkdir(exist_ok=True)
        try:
            for i, file in enumerate(chain(files, streamed)):
                if file.name in self.seen:
                    raise PagesError(
                        f"Two sources are called {file.name}. Index a folder above both, so that their names differ."
                    )
                self.seen.add(file.name)
                self._read(file)
                if on_progress is not None:
                    numbers = {"pages": self.n_pages + len(self.ready) + len(self.waiting), "skipped": len(self.skipped)}
                    on_progress(i + 1, max(len(files), i + 1), numbers)
            self._embed()
        finally:  # after Ctrl-C and after a refusal too: what is embedded is written
            self._write()
            write_skipped(self.folder, list(self.skipped.values()))
        if not self.n_pages:
            reasons = "\n  ".join(skip.reason for skip in list(self.skipped.values())[:3])
            raise PagesError(f"None of the pages could be read, so {self.folder} is an empty index.\n  {reasons}")

    def _read(self, file: Source) -> None:
        known = self.known.get(file.name, {})
        try:
            sha256 = file.sha256()
        except PictureError as error:
            self._leave_out(file.name, error)
            return
        if any(page.sha256 != sha256 for page in known.values()):
            raise PagesError(
                f"{file.name} has changed since {self.folder} was made, and pages of an index are not replaced.\n"
                f"  Remove its pages first: scope pages remove {self.folder} {file.name}; or give another --out."
            )
        for number, image in file.pages(self.manifest.dpi, lambda number: number not in known):
            page = Page(
                file=file.name, number=max(1, number), width=1, height=1, sha256=sha256, vectors=len(self.manifest.pieces)
            )
            if isinstance(image, PictureError):
                self._leave_out(page.name if number else file.name, image)
                continue
            self.skipped.pop(page.name, None)
            page = replace(page, width=image.width, height=image.height, blank=is_blank(image))
            processor = self.model.cfg.pictures
            self.waiting.append((page, image.resize((processor.size, processor.size), resample=processor.resample)))
            if len(self.waiting) == self.batch:
                self._embed()

    def _leave_out(self, name: str, error: PictureError) -> None:
        if self.bad == "refuse":
            raise PagesError(
                f"{error}\n  Pages before it are indexed; mend or remove it and give the same command, or leave such pages out "
                "with --bad skip."
            )
        self.skipped[name] = Skipped(page=name, reason=" ".join(str(error).split()))

    @torch.no_grad()
    def _embed(self) -> None:
        if not self.waiting:
            return
        inputs = self.model.prepare_pages([image for _, image in self.waiting])
        rows = self.model.record(inputs, ["proj.hook_out"])["proj.hook_out"].float().cpu()
        norms = rows.norm(dim=-1)
        vectors = (rows / norms[..., None]).to(getattr(torch, self.manifest.dtype))
        for (page, image), vector, norm in zip(self.waiting, vectors, norms, strict=True):
            if not bool(vector.isfinite().all()):
                raise PagesError(f"The model gives {page.name} vectors that are no numbers. Load it with dtype float32.")
            write_whole(picture_file(self.folder, self.n_pages + len(self.ready)), png(image))
            self.ready.append((page, vector, norm))
        self.waiting = []
        if len(self.ready) >= PAGES_A_SHARD:
            self._write()

    def _write(self) -> None:
        if not self.ready:
            return
        pages, vectors, norms = zip(*self.ready, strict=True)
        write_shard(self.folder, self.n_shards, pages, torch.cat(vectors), torch.cat(norms))
        self.n_shards, self.n_pages, self.ready = self.n_shards + 1, self.n_pages + len(pages), []
