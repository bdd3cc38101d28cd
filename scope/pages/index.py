"""`Index`: pages and their vectors on disk, searched by exact MaxSim a shard at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor

from scope.models.paligemma.late_interaction import Scores, Vectors, max_sim
from scope.models.pictures.read import read_picture
from scope.pages.errors import PagesError
from scope.pages.explain import explain
from scope.pages.firing import firing
from scope.pages.format import Page, Shard, picture_file, read_manifest, read_shards, read_skipped, read_vectors
from scope.pages.hits import Hit, Hits
from scope.pages.judgements import read_judgements
from scope.pages.maps import similarity_maps
from scope.pages.suppress import suppress
from scope.pages.weigh import weigh
from scope.provenance import ModelId
from scope.shapes import PerToken


def check_model(model: Any) -> None:
    """Raises PagesError where a model gives pages and queries no vectors."""
    if not hasattr(model, "embed_pages"):
        raise PagesError(
            f"{model.provenance.get('model')} is a {getattr(model.cfg, 'family_name', type(model).__name__)}, and pages are "
            "searched with a ColPali, such as vidore/colpali-v1.3-hf."
        )


class Index:
    """A folder that `scope pages index` wrote. `index.search("a query")` finds pages; `index[3]` is a page."""

    def __init__(self, folder: Path, model: Any = None):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._shards = read_shards(folder, self.manifest)
        self.pages: tuple[Page, ...] = tuple(page for shard in self._shards for page in shard.pages)
        self.skipped = read_skipped(folder)
        self._model = model
        self._last: tuple[int, tuple[Tensor, Tensor]] | None = None
        if model is not None:
            self._check(model)

    @classmethod
    def open(cls, folder: Path | str, model: Any = None) -> "Index":
        """An index on disk. Its model is loaded when it is needed, unless it is given.

        Raises:
            PagesError: there is none, it is damaged, or it was made by another model.
        """
        return cls(Path(folder).expanduser(), model)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, page: int | str) -> Page:
        return self.pages[self.number(page)]

    def __repr__(self) -> str:
        blank = sum(page.blank for page in self.pages)
        trimmed = self.manifest.trimmed
        part = "" if trimmed is None else f", {trimmed.share:.0%} of each page's"
        more = [f"{blank:,} blank"] * bool(blank) + [f"{len(self.skipped):,} more skipped"] * bool(self.skipped)
        odd = f" ({', '.join(more)})" if more else ""
        return (
            f"Index of {len(self):,} pages{odd} by "
            f"{ModelId.of(self.manifest.model).name}: {self.manifest.d_embed} numbers a vector in {self.manifest.dtype}{part}"
        )

    def _check(self, model: Any) -> None:
        check_model(model)
        mine, its = ModelId.of(self.manifest.model), ModelId.of(model.provenance)
        if mine.same_weights(its) is False or model.cfg.d_embed != self.manifest.d_embed:
            raise PagesError(f"{self.folder} is an index of {mine}; this model is {its}. Give the model that made it.")

    @property
    def model(self) -> Any:
        """The ColPali that made the index.

        Raises:
            PagesError: the weights under its name are others now.
        """
        if self._model is None:
            from scope.models.load import load_model

            known = ModelId.of(self.manifest.model)
            self.use(load_model(str(known.name), revision=known.revision))
        return self._model

    def use(self, model: Any) -> None:
        """Take a model that is loaded already.

        Raises:
            PagesError: it is not the one that made the index.
        """
        self._check(model)
        self._model = model

    def number(self, page: int | str) -> int:
        """The number of a page from 0, from its number, its name ("report.pdf#3", "plan.png") or the end of it.

        Raises:
            PagesError: there is no such page, or several.
        """
        text = str(page)
        names = [p.name for p in self.pages]
        alike = [i for i, name in enumerate(names) if name == text]
        if not alike and text.isdecimal() and int(text) < len(self):
            return int(text)
        alike = alike or [i for i, p in enumerate(self.pages) if Path(p.name).name == text or Path(p.file).stem == text]
        if len(alike) != 1:
            several = f"{len(alike)} pages are called so: {', '.join(names[i] for i in alike[:4])}" if alike else ""
            some = ", ".join(names[:4])
            raise PagesError(
                f"{self.folder} has no page {text!r}{f'; {several}' if several else ''}.\n"
                f"  Give a number from 0 to {len(self) - 1:,}, or a name, such as {some}."
            )
        return alike[0]

    def shards(self) -> Iterator[tuple[int, Shard, Tensor, Tensor]]:
        """(number of the first page, its pages, their vectors as stored, the lengths that these had) of each shard."""
        first = 0
        for i, shard in enumerate(self._shards):
            yield first, shard, *self._tensors(i)
            first += len(shard.pages)

    def _tensors(self, shard: int) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] != shard:
            self._last = shard, read_vectors(self.folder, shard, self._shards[shard], self.manifest)
        return self._last[1]

    def stored(self, page: int | str) -> tuple[Vectors, PerToken]:
        """(the vectors of a page in float32, the length of each before it was brought to 1)."""
        number, first = self.number(page), 0
        for i, shard in enumerate(self._shards):
            if number < first + len(shard.pages):
                lengths = [p.vectors for p in shard.pages]
                vectors, norms = (t.split(lengths)[number - first] for t in self._tensors(i))
                return vectors.float(), norms
            first += len(shard.pages)
        raise PagesError(f"{self.folder} has no page {page!r}.")

    def vectors(self, page: int | str) -> Vectors:
        """The vectors of a page in float32."""
        return self.stored(page)[0]

    def picture(self, page: int | str) -> Any:
        """A page as the model sees it, a PIL image of the model's square.

        Raises:
            PictureError: the file is missing or damaged.
        """
        return read_picture(picture_file(self.folder, self.number(page)))

    def shown(self, page: int | str, longest: int = 448) -> Any:
        """A page to be looked at: what the model sees, stretched to the page's own proportions."""
        p = self[page]
        factor, picture = longest / max(p.width, p.height), self.picture(page)
        size = max(1, round(p.width * factor)), max(1, round(p.height * factor))
        return picture.resize(size, Resampling.NEAREST if min(size) > 2 * max(picture.size) else Resampling.BICUBIC)

    @torch.no_grad()
    def queries(self, texts: Sequence[str]) -> list[Vectors]:
        """The vectors of queries, without padding, in float32.

        Raises:
            PagesError: a query is empty.
        """
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise PagesError("A query is empty. Give a text to look for.")
        inputs = self.model.prepare_queries(list(texts))
        vectors = self.model.embed_queries(inputs).float().cpu()
        return [rows[mask.bool()] for rows, mask in zip(vectors, inputs["attention_mask"].cpu(), strict=True)]

    def scores(self, queries: Any) -> Scores:
        """MaxSim [query page] of texts, or of vectors [n pos d_embed] or a list of [pos d_embed], with every page.

        A shard is in memory at a time, and a bounded number of products.
        """
        if isinstance(queries, str) or (isinstance(queries, list | tuple) and queries and isinstance(queries[0], str)):
            queries = self.queries([queries] if isinstance(queries, str) else queries)
        if not len(self):
            raise PagesError(f"{self.folder} has no page yet. To go on: the same `scope pages index` as before.")
        columns = [max_sim(queries, vectors.unflatten(0, (len(shard.pages), -1))) for _, shard, vectors, _ in self.shards()]
        return torch.cat(columns, 1)

    def require_whole(self) -> None:
        """
        Raises:
            PagesError: the index has a part of each page's vectors alone.
        """
        if (trimmed := self.manifest.trimmed) is not None:
            raise PagesError(
                f"{self.folder} has {trimmed.share:.0%} of each page's vectors: it is searched alone.\n"
                f"  Where and why a page matches is asked of the whole index, {trimmed.of}."
            )

    def search(self, queries: str | Sequence[str], k: int = 5) -> Any:
        """The `k` pages that score highest for a query, as `Hits`; of several queries, a list of them.

        All pages are compared, so the ranks are exact. Of a `k` above the number of pages, all are given.

        Raises:
            PagesError: an empty query, no query, a `k` below 1, an index without pages, or another model.
        """
        if k < 1:
            raise PagesError(f"k is {k}; at least one page can be found.")
        texts = [queries] if isinstance(queries, str) else list(queries)
        if not texts:
            raise PagesError("There is no query. Give a text to look for.")
        results = [self._hits(text, row, k) for text, row in zip(texts, self.scores(texts), strict=True)]
        return results[0] if isinstance(queries, str) else results

    def _hits(self, query: str, scores: PerToken, k: int) -> Hits:
        order = torch.sort(scores, descending=True, stable=True).indices[:k].tolist()
        hits = tuple(
            Hit(rank=i + 1, page=page, name=self.pages[page].name, score=float(scores[page]), blank=self.pages[page].blank)
            for i, page in enumerate(order)
        )
        return Hits(query=query, hits=hits, n_pages=len(self), asked=k, median=float(scores.median()), index=self)

    def maps(self, query: str, page: int | str) -> Any:
        """Where on a page each token of a query finds its match: `scope.pages.maps.SimilarityMaps`."""
        self.require_whole()
        return similarity_maps(self, query, page)

    def explain(self, query: str, page: int | str, sae: Any, query_sae: Any = None, any_model: bool = False) -> Any:
        """The score of a query with a page as a sum over pairs of latents; see `scope.pages.explain.explain`."""
        self.require_whole()
        return explain(self, query, page, sae, query_sae, any_model)

    def firing(self, sae: Any, **options: Any) -> Any:
        """On which share of pages and vectors each latent fires; see `scope.pages.firing.firing`."""
        self.require_whole()
        return firing(self, sae, **options)

    def suppress(self, queries: str | Sequence[str], latents: int | Sequence[int], sae: Any, **options: Any) -> Any:
        """The ranks of all pages with latents taken out of the pages, beside random latents of equal firing rate, as
        `scope.pages.suppress.Suppressed`; of several queries, a list of them."""
        self.require_whole()
        chosen = [latents] if isinstance(latents, int) else list(latents)
        results = suppress(self, [queries] if isinstance(queries, str) else list(queries), chosen, sae, **options)
        return results[0] if isinstance(queries, str) else results

    def judgements(self, file: Path | str, queries: Path | str | None = None) -> Any:
        """Which pages answer which queries, from a file; see `scope.pages.judgements.read_judgements`."""
        return read_judgements(self, file, queries)

    def weigh(self, judged: Any, sae: Any = None, **options: Any) -> Any:
        """nDCG@5 beside bytes, with patches or latents left out; see `scope.pages.weigh.weigh`."""
        self.require_whole()
        return weigh(self, judged, sae, **options)
