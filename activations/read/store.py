"""`ActivationStore` reads a recording: each site is an array of rows with known token, position and context."""

import bisect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from scope.activations.corpus.outlier_rule import OutlierRule
from scope.activations.corpus.roles import KindOfRows, Role
from scope.activations.errors import HolesWarning, RecordingError
from scope.activations.format.files import WAY_OUT
from scope.activations.format.hdf5 import NUMPY
from scope.activations.format.manifest import LOCK, Recorded, describe_missing, loose_ends, read_recording, without_missing
from scope.activations.format.norms import Norms, RowsOfKind, flagged, lower_median
from scope.activations.format.remote import Mirror, address
from scope.activations.format.row_bytes import to_float
from scope.activations.format.shard_entry import Count
from scope.activations.format.shard_reader import Fault, ShardReader
from scope.activations.pictures.patches import Box, patch_boxes
from scope.activations.read.rows import Rows
from scope.activations.read.shuffle import MEMORY_BYTES, Batches

from scope.errors import UnknownSite
from scope.typed_json import typed
from scope.whole_files import is_held

_OPEN_SHARDS = 64


@dataclass(frozen=True)
class RowPlace:
    """The origin of a row: a patch of a document's picture, or a token."""

    document: str
    context: int
    position: int
    role: str | None
    """None in a recording of text, whose roles follow from the tokens."""
    token_id: int | None
    """None for a patch."""
    patch: tuple[int, int] | None = None
    """(row, column) in the picture."""
    box: Box | None = None
    """(left, top, right, bottom) in pixels of the picture as it was, upright."""


@dataclass(frozen=True, kw_only=True)
class PatchPlaces:
    """The sizes that a recording of pictures states: of what the model sees, and of a patch of it."""

    picture_size: Count | None = None
    patch_size: Count | None = None


@dataclass(frozen=True, kw_only=True)
class PictureSize:
    """The size of a document's picture, as its facts state it."""

    width: Count = 0
    height: Count = 0


class ActivationStore:
    """A recording in the state in which it was opened; a writer may extend it meanwhile.

        store = ActivationStore.open("runs/recording")
        store["blocks.3.hook_resid_post"][1000:2000]      # float32 [1000 width]
        store.token_ids[1000:2000]                        # token ids of rows
        store.tokens[store.contexts_of[1000]]             # the context of a row

    Data is checked against its checksum on the first read. Memory: the returned rows, and 4 bytes a row for each array of
    tokens, positions and contexts once it is used.

    Where `scope recording repair` moved shards aside, the other rows are numbered without gaps. `left_out` lists the missing
    rows by their numbers in the whole recording; it is also in `manifest`, so that results made from this store record it.
    """

    def __init__(self, folder: Path, recorded: Recorded):
        self.folder, self.journal = folder, recorded.entries
        self.entries, self.left_out = without_missing(recorded.entries)
        self.manifest = replace(recorded.manifest, left_out=self.left_out)
        config, layout = self.manifest.config, self.manifest.layout
        self.sites: dict[str, int] = {site: layout.widths[site] for site in config.sites}
        self.dtype: str = config.dtype
        self.context, self.segment_rows = config.context, layout.segment_rows
        self.exhausted = recorded.exhausted
        self.has_roles = self.manifest.has_roles
        self.n_rows, self.n_contexts = (self.entries[-1].rows[1], self.entries[-1].contexts[1]) if self.entries else (0, 0)
        self.starts = [entry.rows[0] for entry in self.entries]
        self.loose_ends: list[str] = []
        """What a crash left that is not read, if no process is writing."""
        self.mirror: Mirror | None = None
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._last: ShardReader | None = None
        self._lock = Lock()  # shuffled reading uses a thread

    @classmethod
    def open(cls, folder: str | Path, whole: bool = True) -> "ActivationStore":
        """Open a recording. Every shard must exist and have its length, unless `whole` is False, as for `verify`.

        Shards at an address such as s3://bucket/recording are copied to runs/fetched when they are first read.
        Warns with HolesWarning if `scope recording repair` moved shards aside, or if there are shards that the journal does not
        list, as after a crash; the others can be read.

        Raises:
            RecordingError: no recording, an empty one, or one whose files are missing, cut short or damaged.
        """
        url = address(folder)
        mirror = Mirror(url) if url else None
        folder = mirror.folder if mirror else Path(folder)
        recorded = read_recording(folder)
        while True:
            try:
                return cls._opened(folder, recorded, mirror, whole)
            except RecordingError:
                before, recorded = recorded.entries, read_recording(folder)
                if recorded.entries == before:
                    raise
                # else a writer has just replaced the last shard by a longer one

    @classmethod
    def _opened(cls, folder: Path, recorded: Recorded, mirror: Mirror | None, whole: bool) -> "ActivationStore":
        if not recorded.entries:
            raise RecordingError(
                f"The recording in {folder} holds nothing yet: no shard is finished.\n  Give the same `scope harvest` again."
            )
        store = cls(folder, recorded)
        store.mirror = mirror
        if not mirror and not is_held(folder, LOCK) and loose_ends(folder, recorded):
            store.loose_ends = loose_ends(folder, read_recording(folder))  # as it is now, should a writer just have ended
        if store.holes:
            warnings.warn(store.holes, HolesWarning, stacklevel=3)
        if not store.entries:
            raise RecordingError(f"Nothing of {folder} can be read: {store.holes}")
        for entry in store.entries if mirror and whole else ():
            mirror.check(entry)
        for i, entry in enumerate(store.entries) if whole and not mirror else ():
            path = folder / entry.file
            nbytes = path.stat().st_size if path.exists() else None
            if nbytes != entry.bytes:
                store.reader(i)  # raises
        if whole and not mirror:
            store.pin_last()
        return store

    def pin_last(self) -> None:
        """Keep the last shard open, since a writer that extends the recording replaces its file.

        Raises:
            RecordingError: it is missing or has another length.
        """
        if self.entries:
            self._last = self.reader(len(self.entries) - 1)

    @property
    def place(self) -> str:
        """Folder or address of the recording."""
        return self.mirror.remote.url if self.mirror else str(self.folder)

    @property
    def holes(self) -> str:
        """Sentences about shards that are missing or that the journal does not list; empty for a complete recording."""
        missing = describe_missing(self.folder, self.left_out, self.n_rows)
        return "\n".join(filter(None, [missing, *(f"{self.folder}: {text}" for text in self.loose_ends)]))

    def __repr__(self) -> str:
        holes = f", without shards {[hole.shard for hole in self.left_out]}" if self.left_out else ""
        return f"ActivationStore({str(self.folder)!r}: {self.n_rows:,} rows of {', '.join(self.sites)}{holes})"

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, site: str) -> "Rows":
        """The rows of a site.

        Raises:
            UnknownSite: the recording does not hold the site.
        """
        shape = self.n_rows, self.width(site)
        return Rows(site, shape, lambda start, stop: to_float(self.raw(site, start, stop), self.dtype))

    def width(self, site: str) -> int:
        if site not in self.sites:
            near = get_close_matches(site, self.sites, n=4, cutoff=0.3)
            raise UnknownSite(
                f"{self.folder} holds no activations of {site}.\n"
                f"  It holds: {', '.join(near or self.sites)}\n"
                f"  To record it: scope harvest --site {site} with another --out"
            )
        return self.sites[site]

    def reader(self, index: int) -> ShardReader:
        """The open shard of entry `index`; those least recently used are closed."""
        if self._last and index == len(self.entries) - 1:
            return self._last
        with self._lock:
            if index not in self._readers:
                if self.mirror:
                    self.mirror.fetch(self.entries[index])
                self._readers[index] = ShardReader(self.folder, self.entries[index], self.segment_rows)
            self._readers.move_to_end(index)
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return self._readers[index]

    def raw(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as stored: float32, or uint16 with the bits of bfloat16."""
        self.width(site)
        if not 0 <= start <= stop <= self.n_rows:
            raise RecordingError(f"Rows {start} to {stop} are asked for; {self.folder} holds rows 0 to {self.n_rows}.")
        parts = []
        for shard in range(max(0, bisect.bisect_right(self.starts, start) - 1), len(self.entries)):
            first, end = self.entries[shard].rows
            low, high = max(start, first), min(stop, end)
            if low < high:
                parts.append(self.reader(shard).raw(site, low - first, high - first))
            if end >= stop:
                break
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.sites[site]), NUMPY[self.dtype])

    @cached_property
    def tokens(self) -> np.ndarray:
        """int32 [context position]: token ids of the contexts, <bos> first, padded at the end of the corpus."""
        self._refuse_unknown("token ids")
        return self._whole("tokens")

    @cached_property
    def documents(self) -> np.ndarray:
        """int32 [context position]: index of each token's document in `document_names`; -1 for padding."""
        self._refuse_unknown("documents")
        return self._whole("documents")

    @cached_property
    def roles(self) -> np.ndarray:
        """uint8 [context position]: the `Role` of each row of the contexts.

        Raises:
            RecordingError: the recording is of text, whose roles follow from the tokens and are not stored.
        """
        if not self.has_roles:
            raise RecordingError(
                f"{self.folder} does not store roles: it is of text, whose roles follow from the tokens.\n"
                "  Use corpus.inputs.text_roles(tokens, tokenizer.special_ids)."
            )
        return self._whole("roles")

    @cached_property
    def row_roles(self) -> np.ndarray:
        """uint8 [row]: the `Role` of each stored row."""
        return self.roles[self.contexts_of, self.positions]

    @cached_property
    def document_facts(self) -> list[dict]:
        """Metadata of each document in `document_names`; {} where there is none."""
        facts: list[dict] = []
        for i, entry in enumerate(self.entries):
            facts += [{}] * (entry.documents[0] - len(facts))
            if self.has_roles:
                facts += self.reader(i).objects("document_facts", dict)
        return facts + [{}] * (len(self.document_names) - len(facts))

    def place_of(self, row: int) -> RowPlace:
        """What a stored row is: its document, and the patch of its picture with its box, or its token.

        Raises:
            RecordingError: there is no such row.
        """
        if not 0 <= row < self.n_rows:
            raise RecordingError(f"Row {row} is asked for; {self.folder} holds rows 0 to {self.n_rows - 1}.")
        context, position = int(self.contexts_of[row]), int(self.positions[row])
        document = int(self.documents[context, position])
        name = self.document_names[document] if document >= 0 else ""
        token, role = int(self.tokens[context, position]), Role(self.roles[context, position]) if self.has_roles else None
        if role != Role.IMAGE:
            return RowPlace(name, context, position, None if role is None else role.name.lower(), token)
        places = typed(self.manifest.tokenizer, PatchPlaces, f"The manifest of {self.folder}", RecordingError)
        facts = typed(self.document_facts[document], PictureSize, f"Facts of {name}", RecordingError)
        if not places.patch_size or not places.picture_size:
            return RowPlace(name, context, position, "image", None)
        boxes = patch_boxes(places.picture_size, places.patch_size, (facts.width, facts.height))
        patch = int((self.roles[context, :position] == Role.IMAGE).sum())
        where = divmod(patch, places.picture_size // places.patch_size)
        return RowPlace(name, context, position, "image", None, where, boxes[patch])

    def thumbnail(self, document: int) -> bytes | None:
        """A small picture of a document, as the bytes of a PNG or JPEG; None where there is none."""
        index = bisect.bisect_right([entry.documents[0] for entry in self.entries], document) - 1
        place = self.document_facts[document].get("thumbnail") if 0 <= document < len(self.document_facts) else None
        if place is None or index < 0 or "document_pictures" not in self.reader(index).places:
            return None
        start, n = typed(place, tuple[Count, Count], f"The thumbnail of document {document}", RecordingError)
        return self.reader(index).small("document_pictures")[start : start + n].tobytes()

    @cached_property
    def document_names(self) -> list[str]:
        """Names of the documents in reading order."""
        names: list[str] = []
        for i, entry in enumerate(self.entries):
            names += ["(of a shard in quarantine)"] * (entry.documents[0] - len(names))
            names += self.reader(i).objects("document_names", str)
        return names

    @cached_property
    def token_ids(self) -> np.ndarray:
        """int32 [row]: token id of each stored row."""
        self._refuse_unknown("token ids")
        return self._whole("rows/token_id")

    @cached_property
    def positions(self) -> np.ndarray:
        """int32 [row]: position of each stored row in its context; <bos> is 0."""
        self._refuse_unknown("positions")
        return self._whole("rows/position")

    @cached_property
    def contexts_of(self) -> np.ndarray:
        """int32 [row]: context of each stored row."""
        self._refuse_unknown("contexts")
        contexts = self._whole("rows/context")
        for entry in self.entries if self.left_out else ():
            contexts[slice(*entry.rows)] += entry.contexts[0] - entry.in_whole.contexts[0]
        return contexts

    @cached_property
    def row_starts(self) -> np.ndarray:
        """int64 [context + 1]: context i has rows row_starts[i] to row_starts[i + 1]."""
        return np.searchsorted(self.contexts_of, np.arange(self.n_contexts + 1))

    def rows_of_context(self, context: int) -> slice:
        """The rows of a context, in the order of their positions."""
        if not 0 <= context < self.n_contexts:
            raise RecordingError(f"Context {context} is asked for; {self.folder} holds 0 to {self.n_contexts - 1}.")
        return slice(int(self.row_starts[context]), int(self.row_starts[context + 1]))

    def norms(self, site: str, roles: Collection[Role] | None = None) -> Norms:
        """Mean square, median and largest norm over all stored rows, or over those of some roles, such as image patches.

        Raises:
            RecordingError: the recording does not hold roles, or no row of these.
        """
        self.width(site)
        if roles is not None:
            norms = self.row_norms(site)[np.isin(self.row_roles, list(roles))]
            if not len(norms):
                raise RecordingError(f"{self.folder} holds no row that is {' or '.join(role.name.lower() for role in roles)}.")
            return Norms(float((norms.astype(np.float64) ** 2).mean()), lower_median(lambda: [norms], len(norms)), norms.max())
        rows = [entry.n_rows for entry in self.entries]
        squares = [entry.mean_square_norm[site] for entry in self.entries]
        largest = max(entry.max_norm[site] for entry in self.entries)
        median = lower_median(lambda: (self.reader(i).small(f"norms/{site}") for i in range(len(self.entries))), self.n_rows)
        return Norms(float(np.average(squares, weights=rows)), median, largest)

    def by_kind(self, site: str) -> dict[str, RowsOfKind]:
        """Rows, norms and outliers of "image" and "text" rows apart, since patches and tokens differ in size; outliers among
        patches are those that vision transformers use as registers. {} for a recording of text."""
        if not self.has_roles:
            return {}
        outliers, patches = self.outliers(site), self.row_roles == Role.IMAGE
        kinds = {"image": patches, "text": ~patches}
        of = {kind: sorted({Role(role) for role in np.unique(self.row_roles[rows])}) for kind, rows in kinds.items()}
        return {
            kind: RowsOfKind(int(rows.sum()), self.norms(site, of[kind]), int(outliers[rows].sum()))
            for kind, rows in kinds.items()
            if rows.any()
        }

    def row_norms(self, site: str) -> np.ndarray:
        """float32 [row]: norm of each stored row."""
        self.width(site)
        return self._whole(f"norms/{site}")

    def sinks(self, site: str, times: float = 10.0) -> np.ndarray:
        """Numbers of rows whose norm exceeds `times` the median, such as attention sinks."""
        return np.flatnonzero(self.row_norms(site) > times * self.norms(site).median)

    @property
    def outlier_rule(self) -> OutlierRule | None:
        """The outlier rule of the manifest with sample and thresholds; None for a recording without one."""
        return self.manifest.outliers

    def outliers(self, site: str) -> np.ndarray:
        """bool [row]: True where the outlier rule flags a row of a site. Such rows are stored like all others."""
        self.width(site)
        return flagged(self.row_norms(site), self.outlier_rule, site, self.row_roles if self.has_roles else None)

    def n_outliers(self, site: str) -> int:
        """Number of outliers at a site, from the journal."""
        self.width(site)
        return sum((entry.outliers or {}).get(site, 0) for entry in self.entries)

    def outlier_rows(self, index: int, sites: tuple[str, ...]) -> np.ndarray:
        """int64: rows of entry `index`, counted from its first, that are outliers at any of the sites."""
        rows = [np.empty(0, np.int64)]
        for site in sites if self.outlier_rule else ():
            if (self.entries[index].outliers or {}).get(site, 0):
                norms, roles = self.reader(index).small(f"norms/{site}"), self._roles_of(index)
                rows.append(np.flatnonzero(flagged(norms, self.outlier_rule, site, roles)))
        return np.unique(np.concatenate(rows))

    def other_rows(self, index: int, kind: KindOfRows) -> np.ndarray:
        """int64: rows of entry `index`, counted from its first, that are not of a kind.

        Raises:
            RecordingError: rows of image patches are asked for, and the recording is of text.
        """
        roles = self._roles_of(index) if kind != "all" else None
        if roles is None and kind == "image":
            raise RecordingError(f"{self.folder} is of text: it holds no rows of image patches. Leave out --rows image.")
        return np.empty(0, np.int64) if roles is None else np.flatnonzero((roles == Role.IMAGE) != (kind == "image"))

    def _roles_of(self, index: int) -> np.ndarray | None:
        """uint8 [row]: roles in entry `index`; None if the recording does not store roles."""
        if not self.has_roles:
            return None
        small = self.reader(index).small
        first = self.entries[index].in_whole.contexts[0]
        return small("roles")[small("rows/context") - first, small("rows/position")]

    def shuffled(
        self,
        site: str | tuple[str, ...],
        batch_size: int,
        seed: int = 0,
        epochs: int | None = None,
        memory_bytes: float = MEMORY_BYTES,
        outliers: bool = False,
        kind: KindOfRows = "all",
    ) -> Batches:
        """Batches float32 [batch_size width] in a seeded random order, without end unless `epochs` is given.

        With several sites, a batch is a tuple of tensors whose rows belong to the same tokens. Outliers at any of the sites are
        left out and counted in `left_out`, unless `outliers` is set; so are rows of another `kind`. See `Batches`.
        """
        for name in (site,) if isinstance(site, str) else site:
            self.width(name)
        return Batches(self, site, batch_size, seed, epochs, memory_bytes, outliers, kind)

    def verify(self, on_progress: Callable[[int, int, dict], None] | None = None) -> list[str]:
        """Read every byte of every shard. Returns a sentence for each failed checksum; empty if all is as written."""
        return [fault.text for faults in self.faults(on_progress).values() for fault in faults]

    def faults(self, on_progress: Callable[[int, int, dict], None] | None = None) -> dict[int, list[Fault]]:
        """Read every byte of every shard. Returns the failed checksums by index in `entries`."""
        faults_of: dict[int, list[Fault]] = {}
        total, done = sum(entry.bytes for entry in self.entries), 0
        for i, entry in enumerate(self.entries):
            try:
                faults = self.reader(i).faults()
            except RecordingError as error:
                faults = [Fault(str(error).removesuffix(" " + WAY_OUT))]
            if faults:
                faults_of[i] = faults
            if self.mirror and not self.mirror.keep:
                self._readers.pop(i, None)
                self.mirror.release(entry)
            done += entry.bytes
            if on_progress:
                on_progress(done, total, {"damaged": len(faults_of)})
        return faults_of

    def _refuse_unknown(self, what: str) -> None:
        imported = self.manifest.imported
        if imported and what in imported["unknown"]:
            raise RecordingError(
                f"The {what} of {self.folder} are unknown: it was imported from {imported['from']}, which lacks them.\n"
                "  Activations can be read and trained on; for what needs text, harvest with the model itself."
            )

    def _whole(self, name: str) -> np.ndarray:
        return np.concatenate([self.reader(i).small(name) for i in range(len(self.entries))])
