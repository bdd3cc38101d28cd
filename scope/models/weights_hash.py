"""The identity of a checkpoint's weights: a hash over every byte, remembered for files that did not change since.

Hashing takes about a second for each gigabyte and core: 4 s for the 5 GB of a Gemma 2 2B in one file (16 s from a busy disk),
half of that in two files, which are hashed side by side. The hash of a file above 64 MiB is kept in the user's cache folder
beside the file's size, times and inode; while those are the same, the file is not read again.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scope.errors import ScopeError
from scope.provenance import SAMPLED
from scope.typed_json import read_typed
from scope.whole_files import file_sha256, write_json

_REMEMBERED_FROM = 64 * 2**20  # bytes: smaller files are hashed in a moment
_SETTLED = 2 * 10**9  # ns: a file that changed more recently may change again at the same time of the clock
_SAMPLED_FROM = 2**30  # bytes of weights from which version 0.1 looked at samples
_MOST = 1000  # files that are remembered


def hash_files(files: Iterable[Path]) -> str:
    """sha256 over the sha256 of each file, in the order of their names; files of one name, as of a model whose parts lie in
    several folders, in the order of theirs."""
    files, digest = sorted(set(files), key=lambda f: f.name), hashlib.sha256()
    memory = _Memory() if any(os.path.getsize(f) >= _REMEMBERED_FROM for f in files) else None
    with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
        named = zip((f.name for f in files), pool.map(memory.sha256 if memory else file_sha256, files), strict=True)
        for _, hexadecimal in sorted(named):
            digest.update(bytes.fromhex(hexadecimal))
    if memory:
        memory.write()
    return digest.hexdigest()


def sampled_hash(files: Iterable[Path]) -> str | None:
    """The rule of version 0.1 for a gigabyte or more, None for less: name, size, beginning and 256 blocks of each file. Tensors
    between the blocks are not looked at; it only recognises what that version recorded."""
    files, digest = sorted(set(files), key=lambda f: (f.name, os.path.getsize(f), str(f))), hashlib.sha256()
    if sum(os.path.getsize(f) for f in files) < _SAMPLED_FROM:
        return None
    for file in files:
        size = os.path.getsize(file)
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as opened:
            digest.update(opened.read(2**22))
            for i in range(256):
                opened.seek(size * i // 256)
                digest.update(opened.read(2**12))
    return f"{SAMPLED}{digest.hexdigest()}"


@dataclass(frozen=True)
class _Entries:
    files: dict[str, tuple[list[int], str]]
    """Path -> (state, sha256)."""


class _Memory:
    """Hashes of files, by path and what the system says of them."""

    def __init__(self):
        self.path = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "scope" / "file_sha256.json"
        self.known, self.new = self._read(), {}

    def _read(self) -> dict[str, tuple[list[int], str]]:
        try:
            return read_typed(self.path, _Entries).files
        except ScopeError:  # missing or damaged: what is not remembered is computed
            return {}

    def sha256(self, file: Path) -> str:
        path, state = str(file.resolve()), _state(file)
        known = self.known.get(path)
        if known and known[0] == state and re.fullmatch("[0-9a-f]{64}", known[1]):
            return known[1]
        began = time.time_ns()
        value = file_sha256(file)
        if _state(file) == state and began - max(state[1:3]) > _SETTLED:
            self.new[path] = (state, value)
        return value

    def write(self) -> None:
        """Add what is new. A folder that cannot be written to costs only a second computation."""
        if not self.new:
            return
        kept = {path: entry for path, entry in self._read().items() if path not in self.new} | self.new
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"files": dict(list(kept.items())[-_MOST:])}, indent=None)
        except OSError:
            return


def _state(file: Path) -> list[int]:
    """What changes when a file is written: size, times of content and entry, and the inode of a file put in its place."""
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
