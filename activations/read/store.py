"""`ActivationStore`: a recording, read. Every site is one array of rows; every row knows its token, position and context."""

import bisect
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from scope.activations.corpus.roles import Role
from scope.activations.errors import HolesWarning, RecordingError
from scope.activations.format.files import WAY_OUT
from scope.activations.format.hdf5 import NUMPY
from scope.activations.format.manifest import WITH_ROLES, Recorded, read_recording
from scope.activations.format.missing_shards import told, without_holes
from scope.activations.format.norms import Norms, flagged, lower_median
from scope.activations.format.remote import Mirror, address
from scope.activations.format.row_bytes import to_float
from scope.activations.format.shard_reader import Fault, ShardReader
from scope.activations.read.rows import Rows
from scope.activations.read.shuffle import MEMORY_BYTES, Batches

from scope.errors import UnknownSite

_OPEN_SHARDS = 64


class ActivationStore:
    """A recording as it stood when it was opened; a writer may go on beside it.

        store = ActivationStore.open("runs/recording")
        store["blocks.3.hook_resid_post"][1000:2000]      # float32 [1000 width]
        store.token_ids[1000:2000]                        # which token each row is
        store.tokens[store.contexts_of[1000]]             # the whole context it stands in

    What is read is held against its checksum the first time. Memory: what is asked for, and 4 bytes a row for the arrays of
    tokens, positions and contexts once they are used.

    Where `scope recording repair` moved shards aside, the rest is numbered without holes, and `left_out` (also in `manifest`,
    so that whatever is made from this store says it) tells what is missing, in the numbers of the whole recording.
    """

    def __init__(self, folder: Path, recorded: Recorded):
        self.folder, self.manifest, self.journal = folder, recorded.manifest, recorded.entries
        self.entries, self.left_out = without_holes(recorded.entries)
        if self.left_out:
            self.manifest = self.manifest | {"left_out": self.left_out}
        self.sites: dict[str, int] = {s: self.manifest["layout"]["widths"][s] for s in self.manifest["config"]["sites"]}
        self.dtype: str = self.manifest["config"]["dtype"]
        self.context: int = self.manifest["config"]["context"]
        self.segment_rows: int = self.manifest["layout"]["segment_rows"]
        self.exhausted = recorded.exhausted
        self.has_roles: bool = self.manifest["version"] == WITH_ROLES
        self.n_rows, self.n_contexts = (self.entries[-1][key][1] if self.entries else 0 for key in ("rows", "contexts"))
        self.starts = [entry["rows"][0] for entry in self.entries]
        self.mirror: Mirror | None = None
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._last: ShardReader | None = None
        self._lock = Lock()  # the shuffled reader reads ahead in a thread

    @classmethod
    def open(cls, folder: str | Path, whole: bool = True) -> "ActivationStore":
        """Open a recording. Every shard must be there and of its length, unless `whole` is False, as for `verify`.

        An address such as s3://bucket/recording is read through runs/fetched, to which a shard comes when it is first read.
        Warns with HolesWarning where shards were moved aside by `scope recording repair`; the rest can be read.

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
                # else a writer has just put a longer last shard in the place of the one that was listed

    @classmethod
    def _opened(cls, folder: Path, recorded: Recorded, mirror: Mirror | None, whole: bool) -> "ActivationStore":
        if not recorded.entries:
            raise RecordingError(
                f"The recording in {folder} holds nothing yet: no shard is finished.\n  Give the same `scope harvest` again."
            )
        store = cls(folder, recorded)
        store.mirror = mirror
        if store.left_out:
            warnings.warn(store.holes, HolesWarning, stacklevel=3)
        if not store.entries:
            raise RecordingError(f"Nothing of {folder} can be read: {store.holes}")
        for entry in store.entries if mirror and whole else ():
            mirror.must_have(entry)
        for i, entry in enumerate(store.entries) if whole and not mirror else ():
            path = folder / entry["file"]
            found = path.stat().st_size if path.exists() else None
            if found != entry["bytes"]:
                store.reader(i)  # raises, and says why
        if whole and not mirror:
            store.hold_last()
        return store

    def hold_last(self) -> None:
        """Keep the last shard open from now on: a writer that extends the recording replaces its file.

        Raises:
            RecordingError: it is missing, or not of its length.
        """
        if self.entries:
            self._last = self.reader(len(self.entries) - 1)

    @property
    def place(self) -> str:
        """Where the recording is: a folder, or an address."""
        return self.mirror.remote.url if self.mirror else str(self.folder)

    @property
    def holes(self) -> str:
        """What is left out, in words; empty for a whole recording."""
        return told(self.folder, self.left_out, self.n_rows)

    def __repr__(self) -> str:
        holes = f", without shards {[hole['shard'] for hole in self.left_out]}" if self.left_out else ""
        return f"ActivationStore({str(self.folder)!r}: {self.n_rows:,} rows of {', '.join(self.sites)}{holes})"

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, site: str) -> "Rows":
        """
        Raises:
            UnknownSite: the recording does not hold that site.
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
        """The open file of entry `index`; the least used are closed."""
        if self._last and index == len(self.entries) - 1:
            return self._last
        with self._lock:
            if index not in self._readers:
                if self.mirror:
                    self.mirror.have(self.entries[index])
                self._readers[index] = ShardReader(self.folder, self.entries[index], self.segment_rows)
            self._readers.move_to_end(index)
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return self._readers[index]

    def raw(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as they are stored: float32, or uint16 that are the bits of bfloat16."""
        self.width(site)
        if not 0 <= start <= stop <= self.n_rows:
            raise RecordingError(f"Rows {start} to {stop} are asked for; {self.folder} holds rows 0 to {self.n_rows}.")
        parts = []
        for shard in range(max(0, bisect.bisect_right(self.starts, start) - 1), len(self.entries)):
            first, end = self.entries[shard]["rows"]
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
        """int32 [context position]: what the model read, <bos> first, <pad> where a last context is short."""
        self._must_know("token ids")
        return self._whole("tokens")

    @cached_property
    def documents(self) -> np.ndarray:
        """int32 [context position]: index into `document_names` of the text each token is from; -1 for padding."""
        self._must_know("documents")
        return self._whole("documents")

    @cached_property
    def roles(self) -> np.ndarray:
        """uint8 [context position]: what each row of the contexts is, a `Role`.

        A recording of text does not hold it: the tokens tell.

        Raises:
            RecordingError: it is not stored, and the tokenizer's special tokens are not known here.
        """
        if not self.has_roles:
            raise RecordingError(
                f"{self.folder} does not hold what each row is: it is of text, whose tokens tell.\n"
                "  Ask corpus.inputs.text_roles(tokens, tokenizer.special_ids)."
            )
        return self._whole("roles")

    @cached_property
    def row_roles(self) -> np.ndarray:
        """uint8 [row]: what each stored row is, a `Role`."""
        return self.roles[self.contexts_of, self.positions]

    @cached_property
    def document_facts(self) -> list[dict]:
        """What is known of each document of `document_names` beside its name; {} where nothing is."""
        facts: list[dict] = []
        for i, entry in enumerate(self.entries):
            facts += [{}] * (entry["documents"][0] - len(facts))
            if self.has_roles:
                facts += json.loads(self.reader(i).small("document_facts").tobytes())
        return facts + [{}] * (len(self.document_names) - len(facts))

    @cached_property
    def document_names(self) -> list[str]:
        """Names of the documents, in the order in which they were read."""
        names: list[str] = []
        for i, entry in enumerate(self.entries):
            names += ["(of a shard in quarantine)"] * (entry["documents"][0] - len(names))
            names += json.loads(self.reader(i).small("document_names").tobytes())
        return names

    @cached_property
    def token_ids(self) -> np.ndarray:
        """int32 [row]: the token at which each row was recorded."""
        self._must_know("token ids")
        return self._whole("rows/token_id")

    @cached_property
    def positions(self) -> np.ndarray:
        """int32 [row]: where in its context each row stands; <bos> is 0."""
        self._must_know("positions")
        return self._whole("rows/position")

    @cached_property
    def contexts_of(self) -> np.ndarray:
        """int32 [row]: which context each row stands in."""
        self._must_know("contexts")
        found = self._whole("rows/context")
        for entry in self.entries if self.left_out else ():
            found[slice(*entry["rows"])] += entry["contexts"][0] - entry["whole"]["contexts"][0]
        return found

    @cached_property
    def row_starts(self) -> np.ndarray:
        """int64 [context + 1]: the rows of context i are row_starts[i] to row_starts[i + 1]."""
        return np.searchsorted(self.contexts_of, np.arange(self.n_contexts + 1))

    def rows_of_context(self, context: int) -> slice:
        """The rows of a context, in the order of their positions."""
        if not 0 <= context < self.n_contexts:
            raise RecordingError(f"Context {context} is asked for; {self.folder} holds 0 to {self.n_contexts - 1}.")
        return slice(int(self.row_starts[context]), int(self.row_starts[context + 1]))

    def norms(self, site: str, roles: Collection[Role] | None = None) -> Norms:
        """Mean square, median and largest norm over all rows, or over those of some roles, such as the patches of images.

        What `exclude` left out, as <bos>, is not among them.

        Raises:
            RecordingError: the recording does not hold roles, or no row of these.
        """
        self.width(site)
        if roles is not None:
            norms = self.row_norms(site)[np.isin(self.row_roles, list(roles))]
            if not len(norms):
                raise RecordingError(f"{self.folder} holds no row that is {' or '.join(role.name.lower() for role in roles)}.")
            return Norms(float((norms.astype(np.float64) ** 2).mean()), lower_median(lambda: [norms], len(norms)), norms.max())
        rows = [entry["rows"][1] - entry["rows"][0] for entry in self.entries]
        squares = [entry["mean_square_norm"][site] for entry in self.entries]
        largest = max(entry["max_norm"][site] for entry in self.entries)
        median = lower_median(lambda: (self.reader(i).small(f"norms/{site}") for i in range(len(self.entries))), self.n_rows)
        return Norms(float(np.average(squares, weights=rows)), median, largest)

    def row_norms(self, site: str) -> np.ndarray:
        """float32 [row]: the norm of every row."""
        self.width(site)
        return self._whole(f"norms/{site}")

    def sinks(self, site: str, times: float = 10.0) -> np.ndarray:
        """Rows whose norm is more than `times` the median: attention sinks and the like, which can decide a mean alone."""
        return np.flatnonzero(self.row_norms(site) > times * self.norms(site).median)

    @property
    def outlier_rule(self) -> dict | None:
        """The rule that flags rows of huge norm, with its sample and thresholds; None for a recording without one."""
        return self.manifest.get("outliers")

    def outliers(self, site: str) -> np.ndarray:
        """bool [row]: which rows the recording's rule flags at a site. They are stored like all others."""
        self.width(site)
        return flagged(self.row_norms(site), self.outlier_rule, site, self.row_roles if self.has_roles else None)

    def n_outliers(self, site: str) -> int:
        """How many rows the rule flags at a site, as the journal counted them."""
        self.width(site)
        return sum(entry.get("outliers", {}).get(site, 0) for entry in self.entries)

    def outlier_rows(self, index: int, sites: tuple[str, ...]) -> np.ndarray:
        """int64: rows of entry `index`, counted from its first, that are flagged at any of the sites."""
        found = [np.empty(0, np.int64)]
        for site in sites if self.outlier_rule else ():
            if self.entries[index].get("outliers", {}).get(site, 0):
                norms, roles = self.reader(index).small(f"norms/{site}"), self._roles_of(index)
                found.append(np.flatnonzero(flagged(norms, self.outlier_rule, site, roles)))
        return np.unique(np.concatenate(found))

    def _roles_of(self, index: int) -> np.ndarray | None:
        """uint8 [row] of entry `index`; None where the recording does not hold them."""
        if not self.has_roles:
            return None
        small = self.reader(index).small
        first = self.entries[index].get("whole", self.entries[index])["contexts"][0]
        return small("roles")[small("rows/context") - first, small("rows/position")]

    def shuffled(
        self,
        site: str | tuple[str, ...],
        batch_size: int,
        seed: int = 0,
        epochs: int | None = None,
        memory_bytes: float = MEMORY_BYTES,
        outliers: bool = False,
    ) -> Batches:
        """Batches float32 [batch_size width] in a seeded random order, without end unless `epochs` is given.

        Given several sites, a batch is a tuple of tensors whose rows belong to the same tokens. Rows that the recording's rule
        flags at any of the sites are left out, and counted in `left_out`, unless `outliers` is set. See `Batches`.
        """
        for name in (site,) if isinstance(site, str) else site:
            self.width(name)
        return Batches(self, site, batch_size, seed, epochs, memory_bytes, outliers)

    def verify(self, on_progress: Callable[[int, int, dict], None] | None = None) -> list[str]:
        """Read every byte of every shard; what fails its checksum, in words. Empty means that all is as it was sealed."""
        return [fault.text for faults in self.faults(on_progress).values() for fault in faults]

    def faults(self, on_progress: Callable[[int, int, dict], None] | None = None) -> dict[int, list[Fault]]:
        """Read every byte of every shard; by index in `entries`, what fails its checksum."""
        found: dict[int, list[Fault]] = {}
        total, done = sum(entry["bytes"] for entry in self.entries), 0
        for i, entry in enumerate(self.entries):
            try:
                faults = self.reader(i).faults()
            except RecordingError as error:
                faults = [Fault(str(error).removesuffix(" " + WAY_OUT))]
            if faults:
                found[i] = faults
            if self.mirror and not self.mirror.keep:
                self._readers.pop(i, None)
                self.mirror.let_go(entry)
            done += entry["bytes"]
            if on_progress:
                on_progress(done, total, {"damaged": len(found)})
        return found

    def _must_know(self, what: str) -> None:
        imported = self.manifest.get("imported", {})
        if what in imported.get("unknown", ()):
            raise RecordingError(
                f"The {what} of {self.folder} are unknown: it was imported from {imported['from']}, which does not say them.\n"
                "  Activations can be read and trained on; for what needs text, harvest with the model itself."
            )

    def _whole(self, name: str) -> np.ndarray:
        return np.concatenate([self.reader(i).small(name) for i in range(len(self.entries))])
