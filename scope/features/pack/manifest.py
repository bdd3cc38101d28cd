"""The manifest of a pack as checked types: read when a pack is opened, with the way out where it cannot be."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from scope.errors import PackError
from scope.features.pack.format import FILES, N_BINS, SCHEMA
from scope.progress import OnProgress
from scope.provenance import DictionaryId
from scope.renamed import warn
from scope.typed_json import plain_name, read_json, read_typed, typed
from scope.versions import version_of
from scope.whole_files import beside, file_sha256

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**48)]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of the pack as it was written."""

    size: Natural
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HistogramBins:
    """Bins of the activation histograms: bin k begins at the float32 of bits (low + k) << 20, so there are 8 an octave."""

    low: Annotated[int, msgspec.Meta(ge=0, le=1912)]
    bins: Annotated[int, msgspec.Meta(ge=1, le=N_BINS)]


@dataclass(frozen=True, kw_only=True)
class ScoreBaseline:
    """How output scores were measured, and what random directions reach; absent numbers were not measured."""

    strength: float | None = None
    length: float | None = None
    prompts: Natural = 0
    random: Natural = 0
    latents: Natural | None = None
    null_mean: float | None = None
    null_p95: float | None = None
    null_kl: float | None = None
    why: str = ""
    """Why nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class MapFidelity:
    """What a flat map of the directions is worth; see `scope.features.collect.map`."""

    method: str = ""
    seed: int = 0
    explained: tuple[float, ...] = ()
    explained_by_chance: tuple[float, ...] = ()
    kept: float | None = None
    kept_by_chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """How pictures are cut into patches: `grid` rows of as many, of `patch_size` pixels of the `picture_size` that a model
    sees. A grid of 1 is a site with one row for the whole picture."""

    grid: Annotated[int, msgspec.Meta(ge=1, le=2**12)]
    picture_size: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    patch_size: Annotated[int, msgspec.Meta(ge=1, le=2**16)]

    @property
    def n_patches(self) -> int:
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class Made:
    """When the pack was made and by which versions."""

    scope: str = ""
    torch: str = ""
    numpy: str = ""
    date: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a pack says about itself. Fields with a default were added after version 1 or are absent from some packs."""

    schema: int
    d_sae: Positive
    site: str
    model: dict[str, Any]
    dictionary: dict[str, Any]
    n_tokens: Natural
    n_ctx: Positive
    pad: int
    window: Annotated[int, msgspec.Meta(ge=0, le=2**20)]
    histogram: HistogramBins
    norm_median: float
    files: dict[str, StoredFile]
    site_out: str | None = None
    """Where a transcoder writes; None of an SAE, which writes where it reads."""
    n_contexts: Natural | None = None
    control_half: Positive | None = None
    text: dict[str, Any] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)
    excluded: str = ""
    norm_p99: float | None = None
    l0: float | None = None
    tokens_lost: Natural = 0
    output_score: ScoreBaseline = field(default_factory=ScoreBaseline)
    flags: dict[str, int | float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    made: Made = field(default_factory=Made)
    map: MapFidelity | None = None
    roles: dict[str, Natural] = field(default_factory=dict)
    """Rows of each role, such as prefix, suffix, middle and control, in the order of the relations by role; empty for text."""
    pictures: PatchGrid | None = None
    """How the pictures of the pack are cut into patches; None for a pack of text."""
    seconds: float | None = None
    as_written: dict[str, Any] = field(default_factory=dict, repr=False)
    """The JSON object itself, with what this version does not know."""

    def __post_init__(self):
        numbers = {"norm_median": self.norm_median, "norm_p99": self.norm_p99, "l0": self.l0, "seconds": self.seconds}
        for name, value in numbers.items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}")

    def __getitem__(self, key: str) -> Any:
        """The manifest was a dictionary in version 0.1.0."""
        warn(f"manifest[{key!r}]", f"manifest.{key}")
        return self.as_written[key]

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dictionary, for version 0.1.0."""
        warn(f"manifest.get({key!r})", f"manifest.{key}")
        return self.as_written.get(key, default)

    @property
    def owner(self) -> str:
        """The hash of the dictionary that a pack shows: what its notes belong to."""
        dictionary = DictionaryId.of(self.dictionary)
        return str(dictionary.parameters_sha256 or dictionary.weights_sha256)

    @property
    def corpus_name(self) -> str:
        """The name of the text, however deep the manifest says it; its kind where it has no name; "" where it says neither."""
        place: Any = self.corpus or self.text
        while isinstance(place, dict):
            name = place.get("name") or place.get("kind")
            if isinstance(name, str):
                return name
            place = place.get("recording") or place.get("corpus")
        return place if isinstance(place, str) else ""


class _Settings(TypedDict, total=False):
    """Types of the settings in `config`; see `scope.features.collect.config.CollectConfig`."""

    tokens: int | None
    score_prompts: int
    score_strength: float
    score_latents: int | None
    score_null: int
    map: str
    chunk_tokens: int
    seed: int
    sizes: dict[str, int]
    flags: dict[str, int | float]


class _Model(TypedDict, total=False):
    """Types of what `ModelId` reads."""

    model: str | None
    revision: str | None
    weights_sha256: str | None
    weights_sampled: str | None
    config_sha256: str | None
    tokenizer_sha256: str | None
    dtype: str | None
    adapter: str | None


class _RecordingConfig(TypedDict, total=False):
    """Types of the settings of a recording; see `scope.activations.format.manifest.RecordedConfig`."""

    sites: list[str]
    tokens: int
    context: int
    batch_contexts: int
    shard_rows: int
    dtype: str
    seed: int | None
    exclude: list[str]
    outlier_times: float | None


class _Layout(TypedDict, total=False):
    widths: dict[str, int]
    contexts_per_shard: int
    segment_rows: int
    packing: str


class _Outliers(TypedDict, total=False):
    rule: str
    times: float
    median: dict[str, float | None]
    threshold: dict[str, float | None]
    sample: dict[str, int | str]


class _Corpus(TypedDict, total=False):
    """Types of what names the text of a recording."""

    kind: str | None
    name: str | None
    field: str | None
    sha256: str | None


class _Recording(TypedDict, total=False):
    """Types of the manifest of the recording that was read."""

    format: str
    version: int
    model: _Model
    tokenizer: dict[str, int | str | None]
    corpus: _Corpus
    config: _RecordingConfig
    layout: _Layout
    versions: dict[str, str]
    outliers: _Outliers | None
    tokens: int | None


_Schedule = dict.fromkeys(("lr", "beta1", "beta2", "warmup", "warmup_start", "decay"), float | None)
_Counts = dict.fromkeys(
    ("steps", "batch_size", "calibration", "dead_after", "save_every", "log_every", "seed", "order_seed"), int | None
)
_Switches = dict.fromkeys(("center", "pre_bias"), bool | None)
_TrainConfig = TypedDict("_TrainConfig", {**_Schedule, **_Counts, **_Switches, "warmup_shape": str | None}, total=False)
"""Types of the settings of a training; see `scope.training.config.TrainConfig`."""


class _Training(TypedDict, total=False):
    """Types of how the training of a dictionary ended."""

    config: _TrainConfig
    threads: int | None
    device: str | None
    processes: int | None
    tokens: int | None
    l0: float | None
    fvu: float | None
    dead: float | None
    notes: list[str] | None


class _Source(TypedDict, total=False):
    """Types of what is known of the training of a dictionary."""

    model: _Model | None
    site: str | None
    recording: _Recording | None
    preset: str | None
    training: _Training | None
    versions: dict[str, str] | None
    weights_sha256: str | None


class _Dictionary(TypedDict, total=False):
    """Types of what `DictionaryId` reads."""

    path: str | None
    parameters_sha256: str | None
    weights_sha256: str | None
    kind: str | None
    site: str | None
    d_in: int | None
    provenance: _Source | None


class _Text(TypedDict, total=False):
    """Types of what is known of the text."""

    recording: _Recording
    corpus: _Corpus
    tokens_sha256: str
    contexts: Natural


class _Recorded(TypedDict, total=False):
    """Types of the objects that a manifest carries as they are."""

    model: _Model
    dictionary: _Dictionary
    text: _Text
    config: _Settings


@dataclass(frozen=True, kw_only=True)
class BuildState:
    """How far the building of a pack is: the content of build.json."""

    identity: dict[str, Any] = field(default_factory=dict)
    done: Natural
    total: Natural


def make_again(folder: Path, name: str = "") -> str:
    """The way out where the file `name` of a pack is damaged."""
    if name == "map.npy":
        return f"Make it again: scope map {folder}"
    return f"Copy the pack again, or make it again: scope features DICTIONARY --out {folder}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pack whose files are there, of the right size and of this schema.

    Raises:
        PackError: no pack, a pack being built, damage, or another schema; each with the way out.
    """
    file = folder / "manifest.json"
    if not file.exists():
        raise PackError(_missing(folder))
    written = typed(read_json(file, PackError, make_again(folder)), dict[str, Any], file, PackError, make_again(folder))
    if written.get("schema") != SCHEMA:
        raise PackError(_other_schema(folder, written))
    manifest = replace(typed(written, Manifest, file, PackError, make_again(folder)), as_written=written)
    typed(written, _Recorded, file, PackError, make_again(folder))
    missing = sorted(set(FILES) - set(manifest.files))
    if missing:
        raise PackError(f"{file} does not name {', '.join(missing)}.\n  {make_again(folder)}")
    for name, stated in manifest.files.items():
        path = folder / plain_name(name, file, PackError, make_again(folder))
        size = path.stat().st_size if path.is_file() else None
        if size != stated.size:
            what = "is missing" if size is None else f"has {size:,} bytes; the manifest says {stated.size:,}"
            raise PackError(f"{path} {what}. The pack is damaged or half copied.\n  {make_again(folder)}")
    return manifest


def _other_schema(folder: Path, written: dict[str, Any]) -> str:
    """An older pack is made again; a newer one wants a newer program, and to make it again with this one would lose it."""
    schema, made = written.get("schema"), written.get("made")
    by = made.get("scope") if isinstance(made, dict) else None
    text = f"schema {schema}{f', written by scope {by}' if by else ''}; scope {version_of()} here reads schema {SCHEMA}."
    if isinstance(schema, int) and schema > SCHEMA:
        return (
            f"{folder} is newer than this program: {text}\n"
            f"  Open it with {f'scope {by}' if by else 'a newer scope'} or later,\n"
            f"  or make one of your own beside it: scope features DICTIONARY --out {folder}-{SCHEMA}"
        )
    return f"{folder} is older than this program: {text}\n  Make it again: scope features DICTIONARY --out {folder}"


def build_state(folder: Path) -> BuildState | None:
    """How far the building of the pack `folder` is; None where none was begun, or its state cannot be read."""
    try:
        return read_typed(beside(folder, ".building") / "build.json", BuildState, PackError)
    except PackError:
        return None


def _missing(folder: Path) -> str:
    if beside(folder, ".building").exists():
        state = build_state(folder)
        text = f"{state.done:,} of {state.total:,} tokens" if state else "just begun"
        return (
            f"{folder} is being built, or its building was stopped ({text}).\n"
            "  Wait for it, or give the same `scope features` command again to go on where it stopped."
        )
    what = "is no feature pack: it has no manifest.json" if folder.exists() else "does not exist"
    return f"{folder} {what}.\n  To make a pack: scope features DICTIONARY --recording RECORDING --out {folder}"


def verify(folder: Path, on_progress: OnProgress | None = None) -> list[str]:
    """Names of files whose bytes are not those that were written; empty when all is well."""
    files, bad = read_manifest(folder).files, []
    for done, (name, stated) in enumerate(files.items(), 1):
        if file_sha256(folder / name) != stated.sha256:
            bad.append(name)
        if on_progress:
            on_progress(done, len(files), {})
    return bad
