"""`scope.index_pages` and what the command `scope pages` does: index pages, search them, explain a hit, suppress latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.progress import OnProgress
from scope.workflows.settings import ModelSettings, resolve


@dataclass(frozen=True, kw_only=True)
class IndexPages(ModelSettings):
    """Which pages to index, and by which model. Each field is also a flag of `scope pages index`."""

    sources: tuple[Path, ...]
    """Folders, pictures, PDFs, and corpora of pictures as in `scope harvest --corpus`: a .parquet or .jsonl with pictures,
    a hub data set as owner/name, pages:200."""

    out: Path = Path("runs/pages")
    """Folder of the index. If it holds one of the same model, new pages are added."""

    vectors: Literal["float16", "float32"] = "float16"
    """Precision in which vectors are stored; the search runs in float32 either way."""

    dpi: int = 150
    """Pixels per inch at which pages of PDFs are rendered, before they are resized to the model's square."""

    batch: int = 4
    """Pages that run at once."""

    bad: Literal["skip", "refuse"] = "skip"
    """Leave out pages that cannot be read, and name them; or stop at the first."""


@dataclass(frozen=True, kw_only=True)
class OpenIndex(ModelSettings):
    """An index and the model that made it. Its fields are flags of every command that asks an index."""

    index: Path
    """Folder that `scope pages index` wrote."""

    model: str | None = None
    """Where the model of the index is now: a folder or hub id. By default where it was when the index was made."""

    def open(self) -> Any:
        """The index with its model."""
        from scope.pages.index import Index

        index = Index.open(self.index)
        index.use(self.load_model({"model": index.manifest.model}, pictures=True))
        return index


@dataclass(frozen=True, kw_only=True)
class SearchPages(OpenIndex):
    """What to look for. Each field is also a flag of `scope pages search`."""

    query: tuple[str, ...]
    """Texts to look for."""

    k: int = 5
    """Pages to show for each."""

    csv: Path | None = None
    """Write a row per page found here."""


@dataclass(frozen=True, kw_only=True)
class WithSae(OpenIndex):
    """An index and an SAE of the model's last stream or vectors."""

    sae: Path
    """SAE of hook_embeddings, proj.hook_out, unembed.hook_in or the last block's hook_resid_post."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights."""

    csv: Path | None = None
    """Write the whole table here."""

    def read_sae(self, folder: Path | None = None) -> Any:
        """The SAE, on the device of the model."""
        from scope.sae.files import read_sae

        return read_sae(folder or self.sae, self.device)


@dataclass(frozen=True, kw_only=True)
class ExplainHit(WithSae):
    """Which hit to take apart. Each field is also a flag of `scope pages explain`."""

    query: str
    """The query."""

    page: str
    """The page: its number from 0 or its name, such as report.pdf#3."""

    query_sae: Path | None = None
    """Another SAE for the query's side."""

    top: int = 12
    """Pairs of latents to show."""

    png: Path | None = None
    """Write the page with the patches of the largest pairs here."""


@dataclass(frozen=True, kw_only=True)
class MapQuery(OpenIndex):
    """Which query to map onto which page. Each field is also a flag of `scope pages map`."""

    query: str
    """The query."""

    page: str
    """The page: its number from 0 or its name, such as report.pdf#3."""

    token: str | None = None
    """Token of the query to draw; by default the mean over all."""

    png: Path | None = None
    """Write the page with the similarities here."""

    csv: Path | None = None
    """Write a row per token here."""


@dataclass(frozen=True, kw_only=True)
class SuppressLatents(WithSae):
    """Which latents to take out of all pages. Each field is also a flag of `scope pages suppress`."""

    query: tuple[str, ...]
    """Texts to look for."""

    latents: tuple[int, ...]
    """Latents, with commas between: 12,40."""

    draws: int = 5
    """Random sets of latents of equal firing rate to compare with."""

    seed: int = 0
    """Random seed for these sets."""

    k: int = 10
    """Pages to show for each query."""


@dataclass(frozen=True, kw_only=True)
class CountLatents(WithSae):
    """The SAE whose latents are counted. Each field is also a flag of `scope pages latents`."""

    everywhere: float = 0.95
    """Share of pages from which on a latent counts as everywhere."""


@dataclass(frozen=True, kw_only=True)
class WeighIndex(OpenIndex):
    """How to score an index with parts of it left out. Each field is also a flag of `scope pages weigh`."""

    judgements: Path
    """File of rows query, page, relevance, or BEIR's query-id, corpus-id, score: JSON lines, .csv, .tsv or .parquet."""

    queries: Path | None = None
    """File of the texts of queries, as _id and text, where the judgements name them by id."""

    sae: Path | None = None
    """SAE of the pages, to leave out latents too."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights."""

    keep: tuple[float, ...] = (0.5, 0.25, 0.1)
    """Shares of each page's vectors to keep, with commas between."""

    everywhere: float = 0.95
    """Share of pages from which on a latent counts as everywhere."""

    draws: int = 3
    """Random choices to compare with."""

    seed: int = 0
    """Random seed for these choices."""

    csv: Path | None = None
    """Write the table here."""

    out: Path | None = None
    """Write an index that has the vectors of --keep alone, here, to be searched: with --sae those whose latents are rare, else
    those far from their page's mean. Give one share to --keep."""


@dataclass(frozen=True, kw_only=True)
class RemovePages:
    """Which pages to take out of an index. Each field is also a flag of `scope pages remove`."""

    index: Path
    """Folder that `scope pages index` wrote."""

    names: tuple[str, ...]
    """Pages, such as plan.png or report.pdf#3, or files, such as report.pdf for all of its pages."""


def index_pages(sources: Any = None, *, model: Any = None, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Index pages with a ColPali; returns the `scope.pages.index.Index`.

    `scope.index_pages("reports/", model="vidore/colpali-v1.3-hf", out="runs/pages")` does what `scope pages index` does. In
    Python `sources` may also be PIL images, or a mapping from names to pictures, and `model` a model that is loaded.

    Raises:
        PagesError: no pages, a folder that holds something else, or a model that is no ColPali.
        CheckpointError: the model is missing.
    """
    from scope.models.face import VisionModel
    from scope.pages.build import build_index

    loaded = model if isinstance(model, VisionModel) else None
    if isinstance(sources, IndexPages):
        job = sources
        items: Any = list(job.sources)
    else:
        items = sources if isinstance(sources, dict | list | tuple) else [] if sources is None else [sources]
        on_disk = [] if isinstance(items, dict) else [item for item in items if isinstance(item, str | Path)]
        named = {} if loaded is not None or model is None else {"model": model}
        job = resolve(IndexPages, None, {"sources": on_disk, **named, **settings})
    options = {"dtype": job.vectors, "dpi": job.dpi, "batch": job.batch, "bad": job.bad}
    found = loaded if loaded is not None else job.load_model(pictures=True)
    return build_index(found, items, job.out, on_progress=on_progress, **options)


def open_index(folder: Path | str, model: Any = None) -> Any:
    """An index that `scope.index_pages` wrote. Its model is loaded when it is needed, unless a loaded one is given.

    Raises:
        PagesError: there is none, it is damaged, or it was made by another model.
    """
    from scope.pages.index import Index

    return Index.open(folder, model)


def ask_index(config: OpenIndex, *, on_progress: OnProgress | None = None) -> Any:
    """What a config asks an index for: `Hits` of each query, `SimilarityMaps`, an `Explanation`, `Suppressed` for each query,
    `Firing` or `Weights`; also written where the config names files.

    Raises:
        PagesError: no index, a query or page that is none, an SAE of another site, or another model than made the index.
        DictionaryError: an SAE that cannot be read, or of another model.
    """
    from scope.whole_files import refuse_unwritable, write_whole

    files = [file for file in (getattr(config, "csv", None), getattr(config, "png", None)) if file]
    for file in files:
        refuse_unwritable(file)
    index = config.open()
    result = _ANSWERS[type(config)](config, index, on_progress)
    if getattr(config, "csv", None):
        write_whole(config.csv, _table(result).to_csv(index=False))
    if getattr(config, "png", None):
        result.save_drawn(config.png, config.token if isinstance(config, MapQuery) else config.top)
    return result


def _table(result: Any) -> Any:
    import pandas as pd

    results = result if isinstance(result, list) else [result]
    named = [one.to_frame().assign(**({"query": one.query} if isinstance(result, list) else {})) for one in results]
    return pd.concat(named)


def _search(job: SearchPages, index: Any, on_progress: OnProgress | None) -> Any:
    return index.search(list(job.query), job.k)


def _map(job: MapQuery, index: Any, on_progress: OnProgress | None) -> Any:
    maps = index.maps(job.query, job.page)
    if job.token is not None:
        maps.token(job.token)  # refuses one that the query does not have
    return maps


def _explain(job: ExplainHit, index: Any, on_progress: OnProgress | None) -> Any:
    of_query = job.read_sae(job.query_sae) if job.query_sae else None
    return index.explain(job.query, job.page, job.read_sae(), of_query, job.any_model)


def _suppress(job: SuppressLatents, index: Any, on_progress: OnProgress | None) -> Any:
    options = {"draws": job.draws, "seed": job.seed, "any_model": job.any_model, "on_progress": on_progress}
    return index.suppress(list(job.query), list(job.latents), job.read_sae(), **options)


def _latents(job: CountLatents, index: Any, on_progress: OnProgress | None) -> Any:
    return index.firing(job.read_sae(), everywhere=job.everywhere, any_model=job.any_model, on_progress=on_progress)


def _weigh(job: WeighIndex, index: Any, on_progress: OnProgress | None) -> Any:
    from scope.pages.derive import trim
    from scope.pages.errors import PagesError
    from scope.sae.files import read_sae

    if job.out is not None and len(job.keep) != 1:
        raise PagesError(f"--out writes one index, and --keep has {len(job.keep)} shares. Give one, such as --keep 0.25.")
    if job.out is not None and job.out.exists():
        raise PagesError(f"{job.out} exists already, and a trimmed index is written to a new folder.")
    judged, sae = index.judgements(job.judgements, job.queries), read_sae(job.sae, job.device) if job.sae else None
    options = {name: getattr(job, name) for name in ("keep", "everywhere", "draws", "seed", "any_model")}
    weights = index.weigh(judged, sae, **options, on_progress=on_progress)
    if job.out is not None:
        rates = None if sae is None else index.firing(sae, any_model=job.any_model)
        trim(index, job.out, job.keep[0], sae, rates, on_progress)
    return weights


_ANSWERS = {
    SearchPages: _search,
    MapQuery: _map,
    ExplainHit: _explain,
    SuppressLatents: _suppress,
    CountLatents: _latents,
    WeighIndex: _weigh,
}
