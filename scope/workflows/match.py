"""`scope.match`: which latents of two SAEs do the same on the same text."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scope.progress import OnProgress
from scope.sae.hub.names import name_where_no_folder_is
from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings, resolve


@dataclass(frozen=True, kw_only=True)
class Match(ModelSettings):
    """What to match on which text. Each field is also a flag of `scope match`."""

    a: Path
    """An SAE, a feature pack, or a lab (a folder with dictionary/ and pack/)."""

    b: Path
    """Another of them, of the same or another model."""

    ceiling: Path | None = None
    """A third, such as another seed of A on the same model: the share that finds a partner there is the most to expect."""

    model: str | None = None
    """Model of A, and of --ceiling: bundled, a checkpoint's folder, a hub id or BASE+ADAPTER. By default the one that it was
    trained on. --adapter, --revision and --window-convention are this model's."""

    model_b: str | None = None
    """Model of B."""

    corpus: str = "bundled"
    """Text: as in `scope harvest --corpus`."""

    text_field: str = "text"
    """JSONL field or column that holds the text."""

    words: int = 20_000
    """Words to read."""

    seed: int = 0
    """Random seed for how documents are exchanged."""

    csv: Path | None = None
    """Write a row per latent here."""

    out: Path | None = None
    """File (.json) for the result. None: beside A's pack, if A has one, where the app's Match page finds it."""


def match(config: Match | None = None, *, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Match the latents of two SAEs by the correlation of their activations on the words of a text; beside chance (documents
    exchanged) and, with `ceiling`, beside a third SAE. Returns a `scope.features.compare.partners.Match`, which is also saved
    beside A's pack if A has one, or as `out`.

    Raises:
        ConfigError: a setting that cannot be.
        DictionaryError, PackError, CheckpointError: what cannot be read, or SAE and model that do not fit.
        TokensError: too little text.
    """
    import scope
    from scope.activations.corpus.sources import open_corpus
    from scope.features.compare.partners import match as match_in_memory

    job = resolve(Match, config, settings)
    out = job.out or place_beside(job.a, job.b)
    for file in (job.csv, out):
        if file:
            refuse_unwritable(file)
    loaded: dict[str, Any] = {}
    of_b = job.of_another(job.model_b)
    a, b = _encoder(job.a, job, loaded), _encoder(job.b, of_b, loaded)
    ceiling = _encoder(job.ceiling, job, loaded) if job.ceiling else None
    corpus = open_corpus(job.corpus, job.text_field)
    texts = (document.text for document in corpus.documents(0))
    result = match_in_memory(a, b, texts, ceiling, job.words, job.seed, on_progress)
    encoders = {"a": (job.a, a), "b": (job.b, b), "ceiling": (job.ceiling, ceiling)}
    made = {name: _identity(place, encoder) for name, (place, encoder) in encoders.items() if encoder is not None}
    result = replace(result, provenance={**made, "corpus": corpus.identity, "seed": job.seed, "scope": scope.__version__})
    if out:
        result.save(out)
    if job.csv:
        write_whole(job.csv, result.to_frame().to_csv(index=False))
    return result


def place_beside(a: Path, b: Path) -> Path | None:
    """The file for a match of A with B: in the folder for matches beside A's pack, and named for B; None if A has no pack.

    A match with another B of that name keeps its file; this one's name then ends in a hash of B's place."""
    from scope.features.compare.partners import matches_beside

    a, b = _folder(a), _folder(b)
    pack = next((place for place in (a / "pack", a, a.parent / "pack") if (place / "features.parquet").exists()), None)
    name = b.parent.name if b.name in ("pack", "dictionary") else b.name
    if pack is None:
        return None
    file = matches_beside(pack) / f"{name}.json"
    if _other_place(file) in (None, str(b)):
        return file
    return file.with_stem(f"{name}-{hashlib.sha256(str(b).encode()).hexdigest()[:8]}")


def _folder(place: Path) -> Path:
    """The folder of an SAE; of a published one that is given by name, the one of its pack."""
    name = name_where_no_folder_is(str(place))
    return (Path(place).expanduser() if name is None else name.lab).absolute()


def _other_place(file: Path) -> str | None:
    """Where the SAE lies that a saved match was made with; None where there is none that says so."""
    from scope.errors import PackError
    from scope.features.compare.partners import Match as SavedMatch

    try:
        record = SavedMatch.load(file).provenance.get("b")
    except PackError:
        return None
    return record.get("path") if isinstance(record, dict) else None


def _identity(place: Path, encoder: Any) -> dict[str, Any]:
    """The provenance of one side: its SAE by hash, and the model as it was loaded."""
    from scope.sae.files import parameters_sha256

    sae = encoder.sae
    return {
        "path": str(_folder(place)),
        "kind": sae.kind,
        "site": sae.site,
        "parameters_sha256": parameters_sha256(sae),
        "model": dict(encoder.model.provenance),
    }


def _encoder(folder: Path, settings: ModelSettings, loaded: dict[str, Any]) -> Any:
    """The SAE of a folder with its model; a model is loaded once."""
    from scope.features.compare.partners import Encoder
    from scope.provenance import ModelId
    from scope.sae.files import read_sae

    folder = Path(folder).expanduser()
    places = (folder / "dictionary", folder.parent / "dictionary" if (folder / "manifest.json").exists() else folder)
    sae = read_sae(next((place for place in places if place.is_dir()), folder), settings.device)
    key = f"{settings.model or ModelId.of(sae.provenance.get('model')).name} {settings.adapter} {settings.revision}"
    key += f" {settings.window_convention or ModelId.of(sae.provenance.get('model')).window_convention}"
    if key not in loaded:
        loaded[key] = settings.load_model(sae.provenance)
    return Encoder(loaded[key], sae)
