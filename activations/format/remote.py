"""A recording in an object store: shards are made in a staging folder, sent whole, and only then listed there.

`s3://bucket/recording`, `gs://…`, or anything else that fsspec opens. What is half sent is in no journal and is sent
again; what is read is fetched shard by shard into a folder here and held against its checksums like any other.
"""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from scope.activations.errors import RecordingError
from scope.activations.format.files import WAY_OUT, write_whole

from scope.whole_files import settle_file

FETCHED = Path("runs/fetched")
"""Where shards are kept that were read from a store."""

_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "cos", "r2"}
"""Stores without folders: to make one there is to make a bucket, of a name that may be misspelt."""

_TRIES, _PAUSE = 3, 0.5  # a store that says no is asked again after 0.5 s, then 1 s


def address(place: str | Path) -> str | None:
    """The address that is meant, also where a Path has eaten a slash of it; None for a folder here."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/(/?)(.+)", str(place))
    if not found or Path(place).exists():
        return None
    return (
        f"{found[1]}://{found[3]}" if found[2] or found[1] not in ("file", "local") else f"{found[1]}:///{found[3].lstrip('/')}"
    )


def folder_for(url: str, below: Path) -> Path:
    """The folder here that stands for a recording there."""
    name = url.rstrip("/").rsplit("/", 1)[-1] or "recording"
    return below / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:8]}"


class Remote:
    """A recording's folder in a store.

    Raises:
        RecordingError: no such kind of store, its package is missing, or it cannot be reached.
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
        except Exception as error:  # each store has its own; all mean that it cannot be reached
            raise RecordingError(f"{self.url} cannot be opened: {_said(error)}.") from None

    def sizes(self) -> dict[str, int]:
        """Every file of the recording there, with its bytes."""

        def listed() -> dict[str, int]:
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self.root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            return {f["name"].rstrip("/").rsplit("/", 1)[-1]: int(f["size"] or 0) for f in found if f["type"] == "file"}

        return self._again("list", "", listed)

    def push(self, path: Path) -> None:
        """Send a file under its name. What a failed attempt leaves is in no journal, and the next one writes over it.

        Raises:
            RecordingError: the store refuses, or has another size afterwards.
        """
        there, expected = f"{self.root}/{path.name}", path.stat().st_size
        local = "file" in _protocols(self.fs)  # object stores show a file when it is whole; a mounted folder needs a rename
        aside = f"{there}.part" if local else there

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

        self._again("send", path.name, send)

    def fetch(self, name: str, path: Path) -> None:
        """Bring a file here, whole or not at all."""
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")

        def bring() -> None:
            try:
                self.fs.get_file(f"{self.root}/{name}", str(aside))
                settle_file(aside, path)
            finally:
                aside.unlink(missing_ok=True)

        path.parent.mkdir(parents=True, exist_ok=True)
        self._again("fetch", name, bring)

    def begin(self, folder: Path) -> None:
        """Have manifest and journals in the staging folder as they are there; what is there decides.

        Raises:
            RecordingError: another thing lies there, or the manifest is damaged.
        """
        names = self.sizes()
        folder.mkdir(parents=True, exist_ok=True)
        strangers = [name for name in names if not name.startswith(("shard-", "manifest.", "journal."))]
        if "manifest.json" not in names and strangers:
            raise RecordingError(
                f"{self.url} is no recording and not empty; it holds {', '.join(sorted(strangers)[:3])}.\n"
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
        for path in folder.iterdir():  # what the store has lost, or never had, is not to be gone on with
            listing = path.name == "manifest.json" or path.name.startswith("journal")
            if (listing and path.name not in names) or (not whole and path.suffix != ".lock"):
                path.unlink()

    def pull(self, folder: Path, pattern: str, replace: bool = False) -> None:
        """Bring here the small files that match; one that is here stays, unless the other is longer, or `replace` is set."""
        for name, nbytes in self.sizes().items():
            path = folder / name
            if fnmatch.fnmatchcase(name, pattern) and (replace or not path.exists() or path.stat().st_size < nbytes):
                write_whole(path, self._read(name))

    def _read(self, name: str) -> bytes:
        return self._again("fetch", name, lambda: self.fs.cat_file(f"{self.root}/{name}"))

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""

        def rm() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

        self._again("remove", name, rm)

    def _again(self, what: str, name: str, act):
        """Do it, and again after a pause where the store fails.

        Raises:
            RecordingError: it failed every time.
        """
        for number in range(_TRIES):
            try:
                return act()
            except RecordingError:
                raise
            except Exception as error:  # every store raises its own kinds
                failed = error
                if isinstance(error, PermissionError):
                    break
                if number + 1 < _TRIES:
                    time.sleep(_PAUSE * 2**number)
        raise RecordingError(
            f"{self.url} does not let us {what} {name}: {_said(failed)}.\n"
            "  What had arrived is kept. Look at the address, your rights and the network, then give the same command again."
        ) from failed


class Mirror:
    """A recording in a store, for reading: its manifest and journal here, each shard fetched when it is first asked for.

    Without `keep`, whoever has read a shard is to `let_go` of it.

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

    def must_have(self, entry: dict) -> None:
        """
        Raises:
            RecordingError: the store lacks a shard, or has half of it.
        """
        there = self.bytes.get(entry["file"])
        if there != entry["bytes"]:
            had = "is missing" if there is None else f"has {there} bytes"
            raise RecordingError(f"{entry['file']} {had} in {self.remote.url}; {entry['bytes']} were sealed. {WAY_OUT}")

    def have(self, entry: dict) -> None:
        """See that a shard is here.

        Raises:
            RecordingError: the store lacks it, has half of it, or the disk has no room for it.
        """
        self.must_have(entry)
        path = self.folder / entry["file"]
        if path.exists() and path.stat().st_size == entry["bytes"]:
            return
        free = shutil.disk_usage(self.folder).free
        if free < entry["bytes"]:
            raise RecordingError(
                f"{entry['file']} of {self.remote.url} has {entry['bytes']:,} bytes; {free:,} are free in {self.folder}.\n"
                "  Make room there; the folder may be a link to another disk."
            )
        self.remote.fetch(entry["file"], path)

    def let_go(self, entry: dict) -> None:
        """Remove the copy of a shard here, unless copies are to be kept."""
        if not self.keep:
            (self.folder / entry["file"]).unlink(missing_ok=True)


def _protocols(fs) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _said(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
