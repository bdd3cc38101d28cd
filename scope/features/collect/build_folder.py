"""The folder beside a pack in which it is built: sparse codes chunk by chunk, so that a stopped run goes on.

PACK.building/build.json        what is being made, and how far it is
PACK.building/codes-00000.npz   what fired in a chunk of contexts: about 10 bytes a firing; removed with the folder
PACK.building/plan.npz, scores-HASH-00000.npz   which output scores are wanted, and those of a block of latents
"""

import fcntl
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from scope.errors import PackError
from scope.features.collect.codes import Codes

_POLL = 0.2
PATIENCE = 900.0
"""Seconds in which the first process may still load its model, or another finish a chunk or a block."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """The codes of contexts first..last, the norms of their activations, and the share of tokens on which nothing fired."""

    codes: Codes
    norms: np.ndarray


class Workshop:
    """Chunks on disk, each written aside and renamed. One process at a time."""

    def __init__(self, folder: Path, n_ctx: int, total: int):
        self.folder, self.n_ctx, self.total = folder, n_ctx, total

    def file(self, number: int) -> Path:
        return self.folder / f"codes-{number:05d}.npz"

    def load(self, number: int, first_context: int) -> Chunk | None:
        """A chunk that an earlier run finished; None if there is none or it is damaged."""
        try:
            with self.file(number).open("rb") as f, np.load(f, allow_pickle=False) as saved:
                position = saved["position"].astype(np.int64) + first_context * self.n_ctx
                return Chunk(Codes(saved["feature"].astype(np.int32), position, saved["value"]), saved["norms"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, number: int, first_context: int, chunk: Chunk) -> None:
        codes, aside = chunk.codes, self.file(number).with_suffix(f".{os.getpid()}.tmp")
        small = np.uint16 if not len(codes) or codes.feature[-1] < 1 << 16 else np.int32
        local = (codes.position - first_context * self.n_ctx).astype(np.uint32)
        with aside.open("wb") as f:
            np.savez(f, feature=codes.feature.astype(small), position=local, value=codes.value, norms=chunk.norms)
        aside.rename(self.file(number))

    @property
    def open(self) -> bool:
        """Whether the pack is still being built."""
        return self.folder.exists()

    def load_arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Arrays that were kept under a name; None if there are none or they are damaged."""
        try:
            with (self.folder / f"{name}.npz").open("rb") as f, np.load(f, allow_pickle=False) as saved:
                return dict(saved)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save_arrays(self, name: str, **arrays: np.ndarray) -> None:
        aside = self.folder / f"{name}.{os.getpid()}.tmp"
        with aside.open("wb") as f:
            np.savez(f, **arrays)
        aside.rename(self.folder / f"{name}.npz")

    def report(self, done: int) -> None:
        """Say how far the building is, for those who look for the pack meanwhile."""
        state = json.loads((self.folder / "build.json").read_text())
        write_json(self.folder / "build.json", {**state, "done": done, "total": self.total})


@contextmanager
def workshop(out: Path, identity: dict[str, Any], n_ctx: int, total: int) -> Iterator[Workshop]:
    """The building folder of `out`, emptied first if it holds something else than `identity`; removed after success.

    Raises:
        PackError: another process is building the same pack.
    """
    folder = out.with_name(out.name + ".building")
    with _lock(out, out.with_name(folder.name + ".lock")) as lock:
        folder.mkdir(exist_ok=True)
        state = folder / "build.json"
        wanted = json.loads(json.dumps(identity))
        if _identity(state) != wanted:
            shutil.rmtree(folder)
            folder.mkdir()
            write_json(state, {"identity": wanted, "done": 0, "total": total})
        (folder / "plan.npz").unlink(missing_ok=True)  # of an earlier run
        yield Workshop(folder, n_ctx, total)
        shutil.rmtree(folder)
        os.unlink(lock.name)


def _lock(out: Path, file: Path) -> TextIOWrapper:
    """The lock file, open and held. One that its holder removed between the opening and the locking keeps nobody out: again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = file.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise PackError(f"{out} is being built by another process. Wait for it, or choose another --out.") from None
        if _is(lock, file):
            return lock
        lock.close()


def _is(lock: TextIOWrapper, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


def join(out: Path, identity: dict[str, Any], n_ctx: int, total: int) -> Workshop | None:
    """The building folder that another process opened for the same `identity`; None if none is opened in time."""
    folder, wanted = out.with_name(out.name + ".building"), json.loads(json.dumps(identity))
    same = until(lambda: _identity(folder / "build.json") == wanted or None)
    return Workshop(folder, n_ctx, total) if same else None


def until(found: Callable[[], Any]) -> Any:
    """What `found` returns once that is not None, or None after PATIENCE seconds."""
    ends = time.monotonic() + PATIENCE
    while (value := found()) is None and time.monotonic() < ends:
        time.sleep(_POLL)
    return value


def _identity(state: Path) -> dict[str, Any] | None:
    try:
        return json.loads(state.read_text())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(file: Path, value: Any) -> None:
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(value))
    aside.rename(file)
