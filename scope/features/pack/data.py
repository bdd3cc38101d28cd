"""A pack opened for reading. `scope.Pack` adds searching, reading texts, exporting and cards."""

import operator
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scope.errors import DictionaryError, PackError
from scope.escape import fold
from scope.features.pack.decay import FILE as DECAY_FILE
from scope.features.pack.decay import Decay
from scope.features.pack.files import open_hdf5, read_array, read_rules, read_table, read_value, require_intact
from scope.features.pack.format import CONTROLS, EXAMPLES, FIRINGS, GROUPS, LATER, NO_BAND, RELATIONS, RULES, RULES_FILE
from scope.features.pack.index import ContextTexts, Index
from scope.features.pack.lookahead import FILE, Lookahead
from scope.features.pack.manifest import Manifest, make_again, read_manifest, verify
from scope.features.pack.notes import Notes
from scope.features.pack.pictures import FILE as PICTURES
from scope.features.pack.pictures import PackPictures
from scope.features.pack.table import NO_TOKEN, among_others
from scope.provenance import DictionaryId, ModelId, without_folders
from scope.sae.hub.names import name_where_no_folder_is
from scope.sae.hub.neuronpedia import neuronpedia_id

_LABEL_COLUMNS = ("label", "label_source", "label_score")
"""Columns of the table that change when somebody labels a latent."""


class PackData:
    """Everything that a pack holds about the latents of one dictionary.

    Opening reads the manifest alone; the table, the vocabulary and the relations are read on first use, examples
    are read latent by latent. Safe to share between threads.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None):
        self.folder = Path(folder)
        self.manifest = manifest or read_manifest(self.folder)
        self._lock = RLock()
        self._files: dict[str, h5py.File] = {}
        self._relations: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "PackData":
        """Open a pack that `scope features` wrote.

        Raises:
            PackError: no pack, a pack being built, another schema, a file missing or of the wrong size.
        """
        return cls(folder)

    d_sae = property(lambda self: self.manifest.d_sae)
    n_tokens = property(lambda self: self.manifest.n_tokens)
    n_ctx = property(lambda self: self.manifest.n_ctx)
    pad = property(lambda self: self.manifest.pad)
    window = property(lambda self: self.manifest.window)
    site = property(lambda self: self.manifest.site)
    site_out = property(lambda self: self.manifest.site_out)
    place = property(lambda self: " → ".join(filter(None, (self.site, self.site_out))))
    """The site, or what a transcoder reads and what it writes."""
    model = property(lambda self: ModelId.of(self.manifest.model))
    dictionary = property(lambda self: DictionaryId.of(self.manifest.dictionary))
    model_name = property(lambda self: without_folders(self.model.name) or "unknown model")
    norm_median = property(lambda self: self.manifest.norm_median)
    title = property(lambda self: f"{self.model_name} · {self.place} · {self.d_sae:,} latents")

    @cached_property
    def neuronpedia(self) -> str | None:
        """Neuronpedia's id of the SAE (gemma-2-2b/12-gemmascope-res-16k), whose numbers of latents are those of the pack; None
        where it has no page there."""
        return neuronpedia_id(self.manifest.dictionary.get("provenance"))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a latent, in order of id; the columns are explained in `scope.features.pack.table`.

        Raises:
            PackError: it is damaged.
        """
        return self._labelled(self.read_columns())

    def read_columns(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Some columns of the table as they came with the pack, read anew; None for all."""
        return read_table(self._intact("features.parquet"), self.d_sae, columns)

    def _intact(self, name: str) -> Path:
        """A file of the pack, once its checksum is right."""
        require_intact(self.folder, self.manifest, name)
        return self.folder / name

    def require_intact(self) -> None:
        """Refuse a pack of which any byte is not as it was written; done before an export. Costs 1.6 s a gigabyte, once.

        Raises:
            PackError: a file differs.
        """
        require_intact(self.folder, self.manifest, *self.manifest.files)

    @cached_property
    def notes(self) -> Notes:
        """Labels, notes and stars, which may be written at any time."""
        return Notes(self.folder, self.manifest.owner)

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the labels that people and models gave in place of those that came with the pack."""
        self._notes_read, self._columns = self.notes.version(), self._renamed(table[list(_LABEL_COLUMNS)])
        self._labels = self.notes.labels(details=False)
        return table.assign(**self._label_columns())

    def _renamed(self, columns: pd.DataFrame) -> pd.DataFrame:
        """The label columns, without the name that earlier versions gave to latents that no token predicts."""
        nameless = np.flatnonzero(columns["label"].to_numpy() == NO_TOKEN)
        if not len(nameless):
            return columns
        label, ids = columns["label"].to_numpy(object, copy=True), self.relation("token_id")
        text = self.manifest.pictures is None or self.n_ctx > self.manifest.pictures.n_patches
        for i in nameless.tolist():
            label[i] = among_others(self.pieces([t for t in ids[i, :6] if t >= 0]) if text else [])
        return columns.assign(label=label)

    def _label_columns(self) -> dict[str, np.ndarray]:
        """The columns that labels change, with the labels in them."""
        columns = {column: self._columns[column].to_numpy(object, copy=True) for column in _LABEL_COLUMNS}
        for i, label in self._labels.items():
            if 0 <= i < self.d_sae:
                score = np.nan if label.score is None else label.score
                columns["label"][i], columns["label_score"][i] = label.text, score
                columns["label_source"][i] = without_folders(label.author)
        return {**columns, "label_score": columns["label_score"].astype(np.float64)}

    def refresh(self) -> None:
        """Take in the labels that were written since, here or by another process."""
        with self._lock:
            version = self.notes.version()
            if "table" not in self.__dict__ or version == self._notes_read:
                return
            labels = self.notes.labels(details=False)
            self._notes_read = version
            if labels != self._labels:  # a star or a note changes no table
                self._labels = labels
                self.table = self.table.assign(**self._label_columns())
                if "index" in self.__dict__:
                    self.index = self.index.renewed(self.table, _LABEL_COLUMNS)

    @cached_property
    def index(self) -> Index:
        """Orders, flags and texts of the table, ready to be asked."""
        return Index(self.table)

    @cached_property
    def texts(self) -> ContextTexts:
        """The text of all contexts, ready to be searched; made on first use."""
        return ContextTexts(self.contexts, self.folded)

    @property
    def labelled_by_people(self) -> list[int]:
        """Latents whose label in the table was given by a person."""
        return [i for i, label in self._labels.items() if label.source == "you"] if len(self.table) else []

    @cached_property
    def firing_sample(self) -> np.ndarray:
        """Int[d_sae n] positions of firings of each latent, drawn uniformly from all of them; -1 is an empty place. In packs of
        earlier versions the uniform sample among the examples."""
        if FIRINGS in self.manifest.files:
            stored = np.array(read_array(self._intact(FIRINGS), (self.d_sae, None), "i"))
            if not _within(stored, -1, self.contexts.size):
                way_out = make_again(self.folder)
                raise PackError(f"{self.folder / FIRINGS} is damaged: it holds positions outside the text.\n  {way_out}")
            return stored
        position, group = self._whole_examples("position"), self._whole_examples("group")
        uniform = group == GROUPS.index("random") + 1
        sample = np.where(uniform, position, -1)
        return sample[:, uniform.any(0)]

    @cached_property
    def rule_scores(self) -> pd.DataFrame | None:
        """A row a latent: F1 of its rule, of the best single token, and of the null; None in a pack without rules."""
        if RULES_FILE not in self.manifest.files:
            return None
        names = [name for name, kind in RULES.items() if kind is not str]
        return read_rules(self._intact(RULES_FILE), self.d_sae, names)

    def rule(self, latent: int) -> dict[str, Any] | None:
        """The rule of a latent that came with the pack: its data, words and scores; None without one."""
        if RULES_FILE not in self.manifest.files:
            return None
        row = read_rules(self._intact(RULES_FILE), self.d_sae, list(RULES), latent)
        return row if row["rule"] else None

    @cached_property
    def health(self) -> dict[str, Any] | None:
        """The evaluation report and the training curves, where they were given."""
        return read_value(self._intact("health.json"), dict[str, Any]) if "health.json" in self.manifest.files else None

    @cached_property
    def map(self) -> np.ndarray | None:
        """[d_sae 2] where latents lie on a flat map of their decoder directions; None in a pack without one. What it is worth
        stands in `manifest.map`; see `scope.features.collect.map`."""
        if "map.npy" not in self.manifest.files:
            return None
        places = np.array(read_array(self._intact("map.npy"), (self.d_sae, 2), "f"))
        if not np.isfinite(places).all():
            way_out = make_again(self.folder, "map.npy")
            raise PackError(f"{self.folder / 'map.npy'} is damaged: a place is no number.\n  {way_out}")
        return places

    @cached_property
    def lookahead(self) -> Lookahead | None:
        """Which latents fire in a middle because of the suffix, where `scope lookahead --pack` put it into the pack."""
        return Lookahead.of_pack(self._intact(FILE), self.manifest.owner) if FILE in self.manifest.files else None

    @cached_property
    def decay(self) -> Decay | None:
        """How long the latents of a state last; None in a pack of another site, or made before it was measured."""
        return Decay.load(self._intact(DECAY_FILE)) if DECAY_FILE in self.manifest.files else None

    @cached_property
    def pictures(self) -> PackPictures | None:
        """The small pictures of the pack and where in them latents fire; None in a pack of text."""
        return PackPictures(self._intact(PICTURES).parent, self.manifest) if PICTURES in self.manifest.files else None

    @cached_property
    def vocab(self) -> list[str]:
        return read_value(self._intact("vocab.json.gz"), list[str])

    @cached_property
    def contexts(self) -> np.ndarray:
        """Token ids [n_contexts context], mapped from disk."""
        return read_array(self._intact("contexts.npy"), (self.manifest.n_contexts, self.n_ctx), "iu")

    @cached_property
    def documents(self) -> tuple[np.ndarray, list[str]]:
        """(index of each token's document [n_contexts context], -1 where unknown; names of the documents)."""
        names = read_value(self._intact("documents.json"), list[str])
        return read_array(self._intact("documents.npy"), self.contexts.shape, "iu"), names

    @cached_property
    def histogram_edges(self) -> np.ndarray:
        low, n = self.manifest.histogram.low, self.manifest.histogram.bins
        return ((np.arange(n + 1) + low).astype(np.uint32) << np.uint32(20)).view(np.float32).astype(np.float64)

    @cached_property
    def token_totals(self) -> np.ndarray:
        """[d_vocab] how often each token stood where latents could fire."""
        totals = self._read("token_totals")
        if len(totals) < len(self.vocab):
            raise self._damaged("token_totals", f"it counts {len(totals):,} tokens of a vocabulary of {len(self.vocab):,}")
        return totals

    @cached_property
    def controls(self) -> dict[str, np.ndarray] | None:
        """Windows of text that are the same for all latents, and who fires in them: "position" [n] of their middles,
        "start" [n + 1], and "latent" [start[i] : start[i + 1]] for window i. None in packs that kept none."""
        with self._lock:
            if "control_position" not in self._open("relations.h5"):
                return None
        controls = {name: self._read(f"control_{name}") for name in CONTROLS}
        position, start, latent = (controls[name] for name in ("position", "start", "latent"))
        ends = start[[0, -1]].tolist() if len(start) == len(position) + 1 else None
        inside = _within(position, 0, self.contexts.size) and _within(latent, 0, self.d_sae)
        if ends != [0, len(latent)] or (np.diff(start) < 0).any() or not inside:
            raise self._damaged("control windows", "they lie outside the text or name latents that are none")
        return controls

    def document(self, context: int, offset: int) -> str:
        indices, names = self.documents
        index = int(indices[context, offset])
        return names[index] if 0 <= index < len(names) else "unknown document"

    def pieces(self, ids) -> list[str]:
        return [self.vocab[i] if 0 <= i < len(self.vocab) else f"<{i}>" for i in map(int, ids)]

    def words_with(self, text: str) -> np.ndarray:
        """Ids of the pieces that hold a text, whatever its case."""
        wanted = fold(text)
        return np.array([i for i, piece in enumerate(self.folded) if wanted in piece], int)

    @cached_property
    def ids_of(self) -> dict[str, list[int]]:
        """Ids by piece, to the letter."""
        return _places(self.vocab)

    @cached_property
    def loose_ids_of(self) -> dict[str, list[int]]:
        """Ids by piece, without regard to case and outer spaces."""
        return _places([piece.strip() for piece in self.folded])

    @cached_property
    def folded(self) -> list[str]:
        """The pieces of the vocabulary as texts are searched."""
        return [fold(piece) for piece in self.vocab]

    def __len__(self) -> int:
        return self.d_sae

    def latent_id(self, latent: object) -> int:
        """The number of a latent of this pack.

        Raises:
            PackError: not a whole number, or not the number of a latent of this pack.
        """
        try:
            if isinstance(latent, bool | np.bool_):
                raise TypeError
            index = operator.index(latent)
        except TypeError:
            raise PackError(f"{latent!r} is no latent; latents are whole numbers from 0 to {self.d_sae - 1}.") from None
        if not 0 <= index < self.d_sae:
            nearest = 0 if index < 0 else self.d_sae - 1
            raise PackError(
                f"There is no latent {index}: this pack's latents run from 0 to {self.d_sae - 1} (nearest: {nearest})."
            )
        return index

    def relation(self, name: str) -> np.ndarray:
        """A whole table of relations, [d_sae places]; read once and kept."""
        with self._lock:
            if name not in self._relations:
                if name not in RELATIONS:
                    raise PackError(f"There is no relation {name}; there are {', '.join(RELATIONS)}.")
                missing = name in LATER and name not in self._open("relations.h5")
                self._relations[name] = np.zeros((self.d_sae, 0)) if missing else self._checked(name, self._read(name))
            return self._relations[name]

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        """A relation whose ids are those of latents or tokens, and whose numbers are numbers."""
        if name.endswith("_id"):
            among = self.d_sae if name in ("neighbour_id", "opposite_id", "cofiring_id") else len(self.vocab)
            whole = _within(values, -1, among)
        else:
            whole = bool(np.isfinite(values).all())
        if not whole:
            raise self._damaged(name, "it holds ids that are none, or what is no number")
        return values

    @cached_property
    def by_role(self) -> pd.DataFrame:
        """How often each latent fires on rows of each role, and how strongly then: columns such as `middle_density` (firings
        / rows of the role) and `middle_mean`. Control tokens, such as the marks of infilling, count nowhere else.

        Without columns in a pack of plain text, whose rows have no roles, and in packs of earlier versions.
        """
        rows = self.manifest.roles
        count, total = self.relation("role_count"), self.relation("role_sum")
        if not count.shape[1] == total.shape[1] == len(rows):
            raise self._damaged("role_count", f"it counts {count.shape[1]} roles, and the manifest names {len(rows)}")
        columns = {}
        for k, (role, n) in enumerate(rows.items()):
            columns[f"{role}_density"] = count[:, k] / max(n, 1)
            columns[f"{role}_mean"] = np.divide(total[:, k], count[:, k], out=np.zeros(self.d_sae), where=count[:, k] > 0)
        return pd.DataFrame(columns, index=pd.RangeIndex(self.d_sae, name="id"))

    def read_example(self, name: str, latent: int) -> np.ndarray:
        """One latent's chunk of examples.h5.

        Raises:
            PackError: the chunk's bytes are not those that were written; other latents are not affected.
        """
        try:
            with self._lock:
                values = self._open("examples.h5")[name][latent]
            if name == "position":
                whole = _within(values, -1, self.contexts.size)
            elif name == "band":
                whole = bool(((values < self._open("examples.h5")["band_count"].shape[1]) | (values == NO_BAND)).all())
            else:
                whole = EXAMPLES[name][0] != "f" or bool(np.isfinite(values).all())
        except (OSError, KeyError, RuntimeError, ValueError, TypeError):
            whole = False
        if not whole:
            raise PackError(
                f"The examples of latent {latent} are damaged in {self.folder / 'examples.h5'}; its figures are not,\n"
                f"  nor are other latents. {make_again(self.folder)}"
            )
        return values

    def _whole_examples(self, name: str) -> np.ndarray:
        """A whole dataset of examples.h5, which costs a read for each latent."""
        with self._lock:
            try:
                values = self._open("examples.h5")[name][()]
                whole = name != "position" or _within(values, -1, self.contexts.size)
            except (OSError, KeyError, RuntimeError, ValueError, TypeError):
                whole = False
        if not whole:
            raise PackError(f"{self.folder / 'examples.h5'} is damaged.\n  {make_again(self.folder)}")
        return values

    def _read(self, name: str) -> np.ndarray:
        """A whole dataset of relations.h5."""
        with self._lock:
            try:
                return self._open("relations.h5")[name][()]
            except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
                raise self._damaged(name, str(error)) from None

    def _damaged(self, name: str, problem: str) -> PackError:
        return PackError(f"{name} is damaged in {self.folder / 'relations.h5'}: {problem}.\n  {make_again(self.folder)}")

    def _open(self, file: str) -> h5py.File:
        if file not in self._files:
            path = self.folder / file if file == "examples.h5" else self._intact(file)
            self._files[file] = open_hdf5(path, self.manifest)
        return self._files[file]

    def close(self) -> None:
        """Close the files; the pack may still be used, and opens them again."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            if self.__dict__.get("pictures") is not None:
                self.pictures.close()

    def __enter__(self) -> "PackData":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self) -> list[str]:
        """Files whose bytes differ from what was written; empty when all is well."""
        return verify(self.folder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}, {self.n_tokens:,} tokens, {str(self.folder)!r})"


def pack_beside(dictionary: Path, site: str, d_sae: int, stated: Path | None = None) -> PackData | None:
    """The pack of a dictionary: the one that is stated, else pack/ beside the dictionary's folder, of a published SAE that in
    runs/; None without one there.

    Raises:
        PackError: no pack, a damaged one, or one about other latents.
    """
    name = name_where_no_folder_is(str(dictionary)) if stated is None else None
    folder = stated or (dictionary.parent / "pack" if name is None else name.lab / "pack")
    if stated is None and not (folder / "manifest.json").exists():
        return None
    pack = PackData.open(folder)
    if (pack.site, pack.d_sae) != (site, d_sae):
        raise PackError(f"The pack {folder} is about {pack.d_sae} latents at {pack.site}, not about {dictionary}.")
    return pack


def dictionary_of(pack: PackData) -> str:
    """Where the dictionary of a pack lies: where the manifest says, beside the pack, where `scope demo` puts it, or a hub id.

    Raises:
        DictionaryError: it is in none of these places.
    """
    stated = pack.dictionary.path
    places = [Path(stated), pack.folder / stated] if stated else []
    places.append(pack.folder.absolute().parent / "dictionary")
    for place in places:
        if place.exists():
            return str(place)
    if stated and not stated.startswith((".", "/", "~")) and not Path(stated).is_absolute() and stated.count("/") >= 2:
        return stated
    raise DictionaryError(
        f"The dictionary of this pack is not where it was: {stated or places[-1]}.\n"
        "  Browsing needs none; to test text and to steer, put it back or make the pack again. A command may be given it:\n"
        "  --dictionary FOLDER"
    )


def _places(texts: list[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    return places


def _within(values: np.ndarray, first: int, stop: int) -> bool:
    """Whether all values lie from `first` to below `stop`."""
    return bool(((values >= first) & (values < stop)).all())
