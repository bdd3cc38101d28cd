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
from scope.features.pack.format import CONTROLS, FILES, LATER, RELATIONS
from scope.features.pack.index import Index
from scope.features.pack.manifest import load_json, owner_of, read_manifest, verify
from scope.features.pack.notes import Notes
from scope.provenance import DictionaryId, ModelId

_LABEL_COLUMNS = ("label", "label_source", "label_score")
"""Columns of the table that change when somebody labels a latent."""


class PackData:
    """Everything that a pack holds about the latents of one dictionary.

    Opening reads the manifest alone; the table, the vocabulary and the relations are read on first use, examples
    are read latent by latent. Safe to share between threads.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self._lock = RLock()
        self._files: dict[str, h5py.File] = {}
        self._relations: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "PackData":
        """Open a pack that `scope features` wrote.

        Raises:
            PackError: no pack, a pack being built, another schema, a file missing or of the wrong size.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        wanted = {"d_sae", "site", "model", "n_tokens", "norm_median", "n_ctx", "pad", "window", "histogram"}
        missing = sorted(wanted - set(manifest)) + sorted(set(FILES) - set(manifest["files"]))
        if missing:
            raise PackError(f"{folder / 'manifest.json'} says nothing of {', '.join(missing)}. Make the pack again.")
        return cls(folder, manifest)

    d_sae = property(lambda self: int(self.manifest["d_sae"]))
    n_tokens = property(lambda self: int(self.manifest["n_tokens"]))
    n_ctx = property(lambda self: int(self.manifest["n_ctx"]))
    pad = property(lambda self: int(self.manifest["pad"]))
    window = property(lambda self: int(self.manifest["window"]))
    site = property(lambda self: str(self.manifest["site"]))
    model = property(lambda self: ModelId.of(self.manifest["model"]))
    dictionary = property(lambda self: DictionaryId.of(self.manifest["dictionary"]))
    model_name = property(lambda self: self.model.name or "unknown model")
    norm_median = property(lambda self: float(self.manifest["norm_median"]))
    title = property(lambda self: f"{self.model_name} · {self.site} · {self.d_sae:,} latents")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a latent, in order of id; the columns are explained in `scope.features.pack.table`."""
        try:
            table = pd.read_parquet(self.folder / "features.parquet")
        except Exception as error:  # pyarrow raises many kinds
            raise PackError(f"{self.folder / 'features.parquet'} is damaged: {error}. Make the pack again.") from None
        if len(table) != self.d_sae:
            raise PackError(f"features.parquet of {self.folder} has {len(table)} rows; the manifest says {self.d_sae}.")
        return self._labelled(table)

    @cached_property
    def notes(self) -> Notes:
        """Labels, notes and stars, which may be written at any time."""
        return Notes(self.folder, owner_of(self.manifest))

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the labels that people and models gave in place of those that came with the pack."""
        self._notes_read, self._columns = self.notes.version(), table[list(_LABEL_COLUMNS)]
        self._labels = self.notes.labels()
        return table.assign(**self._label_columns())

    def _label_columns(self) -> dict[str, np.ndarray]:
        """The columns that labels change, with the labels in them."""
        columns = {column: self._columns[column].to_numpy(object, copy=True) for column in _LABEL_COLUMNS}
        for i, label in self._labels.items():
            if 0 <= i < self.d_sae:
                score = np.nan if label.score is None else label.score
                columns["label"][i], columns["label_source"][i], columns["label_score"][i] = label.text, label.source, score
        return {**columns, "label_score": columns["label_score"].astype(np.float64)}

    def refresh(self) -> None:
        """Take in the labels that were written since, here or by another process."""
        with self._lock:
            version = self.notes.version()
            if "table" not in self.__dict__ or version == self._notes_read:
                return
            labels = self.notes.labels()
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
    def health(self) -> dict[str, Any] | None:
        """The evaluation report and the training curves, where they were given."""
        return load_json(self.folder / "health.json") if "health.json" in self.manifest["files"] else None

    @cached_property
    def map(self) -> np.ndarray | None:
        """[d_sae 2] where latents lie on a flat map of their decoder directions; None in a pack without one. What it is worth
        stands in `manifest["map"]`; see `scope.features.collect.map`."""
        if "map.npy" not in self.manifest["files"]:
            return None
        try:
            places = np.load(self.folder / "map.npy", allow_pickle=False)
            wrong = "" if places.shape == (self.d_sae, 2) else f"its shape is {places.shape}, of {self.d_sae} latents"
        except (OSError, ValueError) as error:
            wrong = str(error)
        if wrong:
            raise PackError(f"map.npy of {self.folder} is damaged: {wrong}.\n  Make it again: scope map {self.folder}")
        return places

    @cached_property
    def vocab(self) -> list[str]:
        return load_json(self.folder / "vocab.json.gz")

    @cached_property
    def contexts(self) -> np.ndarray:
        """Token ids [n_contexts context], mapped from disk."""
        return np.load(self.folder / "contexts.npy", mmap_mode="r", allow_pickle=False)

    @cached_property
    def _documents(self) -> tuple[np.ndarray, list[str]]:
        indices = np.load(self.folder / "documents.npy", mmap_mode="r", allow_pickle=False)
        return indices, load_json(self.folder / "documents.json")

    @cached_property
    def histogram_edges(self) -> np.ndarray:
        low, n = self.manifest["histogram"]["low"], self.manifest["histogram"]["bins"]
        return ((np.arange(n + 1) + low).astype(np.uint32) << np.uint32(20)).view(np.float32).astype(np.float64)

    @cached_property
    def token_totals(self) -> np.ndarray:
        """[d_vocab] how often each token stood where latents could fire."""
        return self._read("relations.h5", "token_totals")

    @cached_property
    def controls(self) -> dict[str, np.ndarray] | None:
        """Windows of text that are the same for all latents, and who fires in them: "position" [n] of their middles,
        "start" [n + 1], and "latent" [start[i] : start[i + 1]] for window i. None in packs that kept none."""
        with self._lock:
            if "control_position" not in self._open("relations.h5"):
                return None
        return {name: self._read("relations.h5", f"control_{name}") for name in CONTROLS}

    def document(self, context: int, offset: int) -> str:
        indices, names = self._documents
        index = int(indices[context, offset])
        return names[index] if 0 <= index < len(names) else "unknown document"

    def pieces(self, ids) -> list[str]:
        return [self.vocab[i] if 0 <= i < len(self.vocab) else f"<{i}>" for i in map(int, ids)]

    def words_with(self, text: str) -> np.ndarray:
        """Ids of the pieces that hold a text, whatever its case."""
        wanted = text.casefold()
        return np.array([i for i, piece in enumerate(self._folded) if wanted in piece], int)

    @cached_property
    def ids_of(self) -> dict[str, list[int]]:
        """Ids by piece, to the letter."""
        return _places(self.vocab)

    @cached_property
    def loose_ids_of(self) -> dict[str, list[int]]:
        """Ids by piece, without regard to case and outer spaces."""
        return _places([piece.strip() for piece in self._folded])

    @cached_property
    def _folded(self) -> list[str]:
        return [piece.casefold() for piece in self.vocab]

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
                self._relations[name] = np.zeros((self.d_sae, 0)) if missing else self._read("relations.h5", name)
            return self._relations[name]

    def read_example(self, name: str, latent: int) -> np.ndarray:
        """One latent's chunk of examples.h5.

        Raises:
            PackError: the chunk's bytes are not those that were written; other latents are not affected.
        """
        with self._lock:
            try:
                return self._open("examples.h5")[name][latent]
            except (OSError, KeyError, RuntimeError):
                raise PackError(
                    f"The examples of latent {latent} are damaged in {self.folder / 'examples.h5'}; its figures are not,\n"
                    f"  nor are other latents. To make them again: scope features DICTIONARY --out {self.folder}"
                ) from None

    def _read(self, file: str, name: str) -> np.ndarray:
        with self._lock:
            try:
                return self._open(file)[name][()]
            except (OSError, KeyError, RuntimeError) as error:
                raise PackError(f"{name} is damaged in {self.folder / file}: {error}. Make the pack again.") from None

    def _open(self, file: str) -> h5py.File:
        if file not in self._files:
            self._files[file] = h5py.File(self.folder / file, "r")
        return self._files[file]

    def close(self) -> None:
        """Close the files; the pack may still be used, and opens them again."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def __enter__(self) -> "PackData":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self) -> list[str]:
        """Files whose bytes differ from what was written; empty when all is well."""
        return verify(self.folder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}, {self.n_tokens:,} tokens, {str(self.folder)!r})"


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
