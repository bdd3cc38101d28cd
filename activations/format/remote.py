"""Recordings in an object store: shards are made in a staging folder, sent whole, and only then listed there.

`s3://bucket/recording`, `gs://…`, or anything else that fsspec opens. A shard that was sent in part is in no journal and is
sent again. Readers fetch shards into a local folder and check them like any other.
"""

import fnmatch
import hashlib
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from scope.activations.errors import RecordingError
from scope.activations.format.files import WAY_OUT, write_whole
from scope.activations.format.shard_entry import ShardEntry

from scope.errors import ScopeError
from scope.typed_json import parse_json
from scope.whole_files import file_aside, settle_file

FETCHED = Path("runs/fetched")
"""Folder for shards that were read from a store."""

_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "cos", "r2"}
"""Stores without folders, where makedirs would create a bucket, possibly of a misspelt name."""

_TRIES, _PAUSE = 3, 0.5  # attempts, and seconds before the second one; doubled each time


def address(place: str | Path) -> str | None:
    """The address of a store, also if a Path has removed a slash from it; None for a local folder."""
    parts = re.fullmatch(r"([a-z][a-z0-9+.-]+):/(/?)(.+)", str(place))
    if not parts or Path(place).exists():
        return None
    return (
        f"{parts[1]}://{parts[3]}" if parts[2] or parts[1] not in ("file", "local") else f"{parts[1]}:///{parts[3].lstrip('/')}"
    )


def folder_for(url: str, below: Path) -> Path:
    """The local folder for a recording in a store."""
    name = url.rstrip("/").rsplit("/", 1)[-1] or "recording"
    return below / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:8]}"


class Remote:
    """A recording's folder in a store.

    Raises:
        RecordingError: unknown kind of store, missing package, or the store cannot be reached.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise RecordingError(f"{self.url} needs a package that is not installed: {error}.") from None
        except ValueError as error:
            kinds = "s3://, gs://, az://, sftp://, file://"
            raise RecordingError(
                f"{self.url} cannot be opened: {error}.\n  Give a folder, or one of {kinds} and the like."
            ) from None
        except Exception as error:  # every store raises its own kinds
            raise RecordingError(f"{self.url} cannot be opened: {_message(error)}.") from None

    def sizes(self) -> dict[str, int]:
        """Names and sizes of the recording's files in the store."""

        def listed() -> dict[str, int]:
            self.fs.invalidate_cache()
            try:
                listing = self.fs.ls(self.root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            return {f["name"].rstrip("/").rsplit("/", 1)[-1]: int(f["size"] or 0) for f in listing if f["type"] == "file"}

        return self._retry("list", "", listed)

    def push(self, path: Path) -> None:
        """Send a file.

        Raises:
            RecordingError: the store refuses, or reports another size afterwards.
        """
        there, expected = f"{self.root}/{path.name}", path.stat().st_size
        local = "file" in _protocols(self.fs)  # object stores show complete files only; a folder needs a rename
        aside = f"{self.root}/.{path.name}.{secrets.token_hex(6)}.part" if local else there

        def send() -> None:
            if not _BUCKETS & set(_protocols(self.fs)):
                self.fs.makedirs(self.root, exist_ok=True)
            self.fs.put_file(str(path), aside)
            self.fs.invalidate_cache()
            arrived = int(self.fs.size(aside))
            if arrived != expected:
                raise OSError(f"{arrived} of {expected} bytes arrived")
            if local:
                settle_file(Path(aside), Path(there))

        self._retry("send", path.name, send)

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path, whole or not at all."""

        def bring() -> None:
            with file_aside(path) as aside:
                self.fs.get_file(f"{self.root}/{name}", str(aside))

        path.parent.mkdir(parents=True, exist_ok=True)
        self._retry("fetch", name, bring)

    def begin(self, folder: Path) -> None:
        """Make manifest and journals in the staging folder equal to those in the store.

        Raises:
            RecordingError: the place holds something else, or its manifest is damaged.
        """
        names = self.sizes()
        folder.mkdir(parents=True, exist_ok=True)
        others = [name for name in names if not name.startswith(("shard-", "manifest.", "journal."))]
        if "manifest.json" not in names and others:
            raise RecordingError(
                f"{self.url} is no recording and not empty; it holds {', '.join(sorted(others)[:3])}.\n"
                "  Give a new place to --out."
            )
        whole = "manifest.json" in names and _is_json(self._read("manifest.json"))
        if "journal.jsonl" in names and not whole:
            raise RecordingError(
                f"{self.url} has a journal and {'a damaged' if 'manifest.json' in names else 'no'} manifest.json.\n"
                "  Restore it from a copy, or record into another place."
            )
        if whole:
            self.pull(folder, "manifest.json", replace=True)
            self.pull(folder, "journal*.jsonl", replace=True)
        for path in folder.iterdir():  # files that the store does not have must not be continued
            listing = path.name == "manifest.json" or path.name.startswith("journal")
            if (listing and path.name not in names) or (not whole and path.suffix != ".lock"):
                path.unlink()

    def pull(self, folder: Path, pattern: str, replace: bool = False) -> None:
        """Copy the small files that match to a folder; existing ones if they are longer in the store or `replace` is set."""
        for name, nbytes in self.sizes().items():
            path = folder / name
            if fnmatch.fnmatchcase(name, pattern) and (replace or not path.exists() or path.stat().st_size < nbytes):
                write_whole(path, self._read(name))

    def _read(self, name: str) -> bytes:
        return self._retry("fetch", name, lambda: self.fs.cat_file(f"{self.root}/{name}"))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

        def rm() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

        self._retry("remove", name, rm)

    def _retry(self, what: str, name: str, act):
        """Call `act`, and again after a pause if it fails.

        Raises:
            RecordingError: every attempt failed.
        """
        for number in range(_TRIES):
            try:
                return act()
            except RecordingError:
                raise
            except Exception as error:
                failed = error
                if isinstance(error, PermissionError):
                    break
                if number + 1 < _TRIES:
                    time.sleep(_PAUSE * 2**number)
        raise RecordingError(
            f"{self.url} does not let us {what} {name}: {_message(failed)}.\n"
            "  Files that arrived are kept. Check the address, your permissions and the network, then repeat the command."
        ) from failed


class Mirror:
    """A recording in a store, for reading: manifest and journal are copied, each shard is fetched on first use.

    Without `keep`, callers `release` each shard after reading it.

    Raises:
        RecordingError: there is no recording, or the store cannot be reached.
    """

    def __init__(self, url: str, below: Path = FETCHED, keep: bool = True):
        self.remote, self.folder, self.keep = Remote(url), folder_for(url, below), keep
        names = self.remote.sizes()
        self.bytes = names
        if "manifest.json" not in names:
            raise RecordingError(
                f"There is no recording in {url}, which has no manifest.json.\n  To make one: scope harvest --out {url}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("manifest.json", "journal.jsonl"):
            if name in names:
                self.remote.pull(self.folder, name, replace=True)

    def check(self, entry: ShardEntry) -> None:
        """Check that the store holds a complete shard.

        Raises:
            RecordingError: it is missing or incomplete.
        """
        nbytes = self.bytes.get(entry.file)
        if nbytes != entry.bytes:
            problem = "is missing" if nbytes is None else f"has {nbytes} bytes"
            raise RecordingError(f"{entry.file} {problem} in {self.remote.url}; {entry.bytes} were sealed. {WAY_OUT}")

    def fetch(self, entry: ShardEntry) -> None:
        """Copy a shard to the local folder if it is not there.

        Raises:
            RecordingError: the store lacks it or holds only a part, or there is no room for it.
        """
        self.check(entry)
        path = self.folder / entry.file
        if path.exists() and path.stat().st_size == entry.bytes:
            return
        free = shutil.disk_usage(self.folder).free
        if free < entry.bytes:
            raise RecordingError(
                f"{entry.file} of {self.remote.url} has {entry.bytes:,} bytes; {free:,} are free in {self.folder}.\n"
                "  Make room there; the folder may be a link to another disk."
            )
        self.remote.fetch(entry.file, path)

    def release(self, entry: ShardEntry) -> None:
        """Remove the local copy of a shard, unless copies are kept."""
        if not self.keep:
            (self.folder / entry.file).unlink(missing_ok=True)


def _protocols(fs) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _is_json(data: bytes) -> bool:
    try:
        parse_json(data, "")
    except ScopeError:
        return False
    return True


def _message(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
