"""`scope.diff`: what did fine-tuning move?"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scope.diffing.config import DiffConfig
from scope.errors import ConfigError
from scope.progress import OnProgress
from scope.provenance import ModelId
from scope.whole_files import only_writer, refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings, resolve, sae_of_lab

MANIFEST, PARTIAL = "manifest.json", "partial.safetensors"
_EVERY = 20.0  # seconds between two savings of what has been read


@dataclass(frozen=True, kw_only=True)
class DiffJob(ModelSettings):
    """What to compare on which text. Each field is also a flag of `scope diff`."""

    model: str = field()
    """BASE, the model before fine-tuning: bundled, a checkpoint's folder, a hub id, or BASE+ADAPTER. --adapter, --revision
    and --window-convention are this model's."""

    tuned: str
    """TUNED, the model after it: a whole checkpoint of the same shape, BASE+ADAPTER, or an adapter that names its base."""

    tuned_revision: str | None = None
    """Commit or tag of TUNED on the hub; of BASE+ADAPTER it is that of BASE."""

    out: Path | None = None
    """Folder for the result: manifest.json, tables as CSV, latents.csv, and the differences' directions. A run that was stopped
    goes on there."""

    sae: Path | None = None
    """An SAE of the base, or a lab (a folder with dictionary/): also say which latents moved, which ones the update reads and
    writes, and how well the SAE fits the tuned model."""

    pack: Path | None = None
    """A feature pack of that SAE, whose labels then stand beside the latents; without --sae, the SAE that it was made from."""

    corpus: tuple[str, ...] = ("bundled",)
    """The text, as in `scope harvest --corpus`; several are read in equal parts."""

    text_field: str = "text"
    """Field or column that holds the text."""

    by: str = "script"
    """How text is grouped: script (Latin, Arabic, ...), corpus (each of several), or the name of a field or column of the
    corpus, such as domain or language."""

    config: DiffConfig = field(default_factory=DiffConfig)

    tuned_dtype: str | None = None
    """What the tuned model computes in, by default the same. `scope diff BASE BASE --tuned-dtype bfloat16` shows what rounding
    alone does."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the base's."""


def diff(config: Any = None, tuned: str | None = None, *, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Compare a model with its fine-tune: weights, activations and, given an SAE of the base, its latents. Returns a
    `scope.diffing.result.Diff`; with `out` it is also written there, and `Diff.load(out)` reads it.

    `scope.diff("bundled", "bundled+rig", sae="runs/demo")` says what `scope diff` says with flags.

    Raises:
        ConfigError: a setting that cannot be, or models that are not of one shape.
        CheckpointError, DictionaryError, PackError: what cannot be read, or an SAE that does not fit the base.
        CorpusError, TokensError: text that cannot be read, or too little of it.
    """
    from scope.diffing.diff import diff as diff_in_memory
    from scope.diffing.text import read_text
    from scope.models.load import load_model
    from scope.sae.files import read_sae

    job = resolve(DiffJob, config, settings if tuned is None else {"tuned": tuned, **settings}, first="model")
    if job.out is not None:
        refuse_unwritable(job.out / MANIFEST)
        earlier = _earlier(job.out)
    pack = None if job.pack is None else _pack(job.pack)
    folder = _dictionary(job)
    base = job.load_model()
    dtype = job.tuned_dtype or job.dtype
    changed = load_model(job.tuned, device=job.device, dtype=dtype, revision=job.tuned_revision)
    if job.out is not None and earlier is not None and not _same_pair(earlier, base, changed):
        raise ConfigError(f"{job.out} holds another comparison: {earlier.title()}. Give another folder, or delete it.")
    sae = None if folder is None else read_sae(folder, str(base.device))
    documents, described = _documents(job)
    text = read_text(
        documents, base.words, job.config.contexts, min(job.config.context, base.cfg.n_ctx), described, job.config.seed
    )
    ways: dict[str, Any] = {"any_model": job.any_model, "on_progress": on_progress}
    if job.out is None:
        return _labelled(diff_in_memory(base, changed, text, sae, job.config, **ways), pack)
    job.out.mkdir(parents=True, exist_ok=True)
    with only_writer(job.out):
        partial = _Partial(job.out / PARTIAL, _key(job, base, changed, sae, text))
        result = diff_in_memory(base, changed, text, sae, job.config, reading=partial.read(), after_batch=partial.keep, **ways)
        result = _labelled(result, pack)
        result.provenance["command"] = {
            "base": base.provenance["model"],
            "tuned": job.tuned,
            "tuned_revision": job.tuned_revision,
            "sae": str(folder) if folder else None,
        }
        result.provenance["command"] |= {"corpus": list(job.corpus), "text_field": job.text_field, "by": job.by}
        result.save(job.out)
        partial.file.unlink(missing_ok=True)
    return result


def _earlier(folder: Path) -> Any:
    """The comparison that a folder holds; None where it holds none yet.

    Raises:
        ConfigError: it holds something else, such as a recording, which has a manifest.json too.
    """
    from scope.diffing.result import WRITTEN, Diff, DiffError

    names = sorted(path.name for path in folder.iterdir())
    other = [name for name in names if name not in {*WRITTEN, PARTIAL} and not name.startswith(".")]  # locks, broken-off files
    if (folder / MANIFEST).exists():
        try:
            return Diff.load(folder)
        except DiffError:
            other = other or [MANIFEST]
    if other:
        raise ConfigError(f"{folder} holds something else than a comparison: {other[0]}. Give a new folder.")
    return None


def _same_pair(earlier: Any, base: Any, tuned: Any) -> bool:
    """Whether an earlier comparison is one of the same two models."""
    pairs = ((earlier.provenance.get("base"), base), (earlier.provenance.get("tuned"), tuned))
    return all(ModelId.of(known).same_weights(ModelId.of(model.provenance)) is not False for known, model in pairs)


def _dictionary(job: DiffJob) -> Path | None:
    """The folder of the SAE: the one that is given, dictionary/ in it or beside the pack."""
    if job.sae is None and job.pack is None:
        return None
    if job.sae is not None:
        return Path(sae_of_lab(job.sae)).expanduser()
    beside = Path(job.pack).expanduser().parent / "dictionary"  # type: ignore[arg-type]
    return beside if beside.is_dir() else Path(job.pack).expanduser()  # type: ignore[arg-type]


def _pack(folder: Path) -> Any:
    from scope.features.face import Pack

    return Pack.open(Path(folder).expanduser())


def _labelled(result: Any, pack: Any) -> Any:
    """The result with the pack's labels beside the latents.

    Raises:
        PackError: the pack is of an SAE with another number of latents.
    """
    from scope.errors import PackError

    if pack is None or result.latents is None:
        return result
    if len(pack) != len(result.latents):
        raise PackError(
            f"{pack.folder} describes {len(pack):,} latents, and the SAE has {len(result.latents):,}. Give its pack."
        )
    result.latents["label"] = pack.table["label"].to_numpy()
    return result


def _documents(job: DiffJob) -> tuple[Iterator[Any], dict[str, Any]]:
    """(document, group) of the corpora in equal parts, and what text it is."""
    from scope.activations.corpus.sources import open_corpus
    from scope.diffing.text import in_balance, script_of

    corpora = {spec: open_corpus(spec, job.text_field) for spec in job.corpus}
    streams = [(spec, corpus.documents(job.config.seed)) for spec, corpus in corpora.items()]
    balanced = in_balance(streams, 4 * job.config.context)
    if job.by == "script":

        def group_of(document: Any, spec: str) -> str:
            return script_of(document.text)

    elif job.by == "corpus":
        stems = [Path(spec).stem for spec in corpora]
        name_of = {spec: stem if stem and stems.count(stem) == 1 else spec for spec, stem in zip(corpora, stems, strict=True)}

        def group_of(document: Any, spec: str) -> str:
            return name_of[spec]

    else:
        with_fields = [spec for spec, corpus in corpora.items() if "field" in corpus.identity]
        if not with_fields:
            raise ConfigError(
                f"There is no field {job.by!r} in {', '.join(corpora)}, which is text without fields.\n"
                "  --by takes script, corpus, or a field of JSON lines or a table."
            )
        values = {
            (spec, document.name): document.text for spec in with_fields for document in open_corpus(spec, job.by).documents()
        }

        def group_of(document: Any, spec: str) -> str:
            value = values.get((spec, document.name), "none")
            return "none" if value == document.text else value  # of plain text in a folder, which has no fields

    described = {"corpus": [corpus.identity for corpus in corpora.values()], "by": job.by, "seed": job.config.seed}
    return ((document, group_of(document, spec)) for document, spec in balanced), described


def _key(job: DiffJob, base: Any, tuned: Any, sae: Any, text: Any) -> str:
    """What a reading that was stopped depends on."""
    from scope.sae.files import parameters_sha256

    parts = [base.provenance, tuned.provenance, parameters_sha256(sae) if sae is not None else None, text.names]
    parts += [list(job.config.sites), job.config.batch_contexts]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for part in (text.tokens, text.units, text.groups):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


class _Partial:
    """What has been read so far, in a file beside the result."""

    def __init__(self, file: Path, key: str):
        self.file, self.key, self.saved = file, key, time.monotonic()

    def read(self) -> Any:
        """What an earlier run of the same job had read, else nothing."""
        from safetensors import SafetensorError, safe_open

        from scope.diffing.reading import Reading

        try:
            with safe_open(self.file, "pt") as stored:
                facts = stored.metadata() or {}
                if facts.get("key") != self.key:
                    return Reading()
                return Reading(int(facts["done"]), {name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return Reading()

    def keep(self, reading: Any) -> None:
        from safetensors.torch import save

        if time.monotonic() - self.saved < _EVERY:
            return
        facts = {"key": self.key, "done": str(reading.done)}
        write_whole(self.file, save({name: t.contiguous() for name, t in reading.sums.items()}, facts))
        self.saved = time.monotonic()
