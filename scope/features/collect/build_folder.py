"""The folder beside a pack in which it is built: sparse codes chunk by chunk, so that a stopped run can continue.

PACK.building/build.json        what is being made, and how far it is
PACK.building/codes-00000.npz   what fired in a chunk of contexts: about 10 bytes a firing; removed with the folder
PACK.building/plan.npz, scores-HASH-00000.npz   which output scores are wanted, and those of a block of latents
"""

import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope.errors import PackError
from scope.features.collect.codes import Codes
from scope.features.pack.manifest import BuildState
from scope.typed_json import read_typed
from scope.whole_files import beside, only_writer, whole_file, write_json

_POLL = 0.2
PATIENCE = 900.0
"""Seconds in which the first process may still load its model, or another finish a chunk or a block."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """The codes of some contexts, and the norms of their activations."""

    codes: Codes
    norms: np.ndarray


class BuildFolder:
    """Arrays on disk, each written whole. One process builds; others may add chunks and scores."""

    def __init__(self, folder: Path, n_ctx: int, total: int):
        self.folder, self.n_ctx, self.total = folder, n_ctx, total

    @property
    def open(self) -> bool:
        """Whether the pack is still being built."""
        return self.folder.exists()

    def load_arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Arrays that were saved under a name; None if there are none or they are damaged."""
        try:
            with (self.folder / f"{name}.npz").open("rb") as f, np.load(f, allow_pickle=False) as saved:
                return dict(saved)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save_arrays(self, name: str, **arrays: np.ndarray) -> None:
        with whole_file(self.folder / f"{name}.npz") as f:
            np.savez(f, **arrays)

    def load(self, number: int, first_context: int) -> Chunk | None:
        """A chunk that an earlier run finished; None if there is none or it is damaged."""
        saved = self.load_arrays(f"codes-{number:05d}")
        if saved is None or not {"feature", "position", "value", "norms"} <= set(saved):
            return None
        position = saved["position"].astype(np.int64) + first_context * self.n_ctx
        return Chunk(Codes(saved["feature"].astype(np.int32), position, saved["value"]), saved["norms"])

    def save(self, number: int, first_context: int, chunk: Chunk) -> None:
        codes = chunk.codes
        small = np.uint16 if not len(codes) or codes.feature[-1] < 1 << 16 else np.int32
        local = (codes.position - first_context * self.n_ctx).astype(np.uint32)
        arrays = {"feature": codes.feature.astype(small), "position": local, "value": codes.value, "norms": chunk.norms}
        self.save_arrays(f"codes-{number:05d}", **arrays)

    def report(self, done: int) -> None:
        """Record how far the building is, for those who look for the pack meanwhile."""
        identity = _identity(self.folder / "build.json")
        write_json(self.folder / "build.json", {"identity": identity, "done": done, "total": self.total})


@contextmanager
def begin(out: Path, identity: dict[str, Any], n_ctx: int, total: int) -> Iterator[BuildFolder]:
    """The building folder of `out`, emptied first if it holds something else than `identity`; removed after success.

    Raises:
        FolderInUse: another process is building the same pack.
    """
    folder, wanted = beside(out, ".building"), json.loads(json.dumps(identity))
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, doing="built"):
        if _identity(folder / "build.json") != wanted:
            for file in folder.iterdir():
                if file.name != ".lock":
                    file.unlink()
            write_json(folder / "build.json", {"identity": wanted, "done": 0, "total": total})
        (folder / "plan.npz").unlink(missing_ok=True)  # of an earlier run
        yield BuildFolder(folder, n_ctx, total)
        shutil.rmtree(folder)


def join(out: Path, identity: dict[str, Any], n_ctx: int, total: int) -> BuildFolder | None:
    """The building folder that another process opened for the same `identity`; None if none is opened in time."""
    folder, wanted = beside(out, ".building"), json.loads(json.dumps(identity))
    same = until(lambda: _identity(folder / "build.json") == wanted or None)
    return BuildFolder(folder, n_ctx, total) if same else None


def until(attempt: Callable[[], Any]) -> Any:
    """The result of `attempt` once that is not None, or None after PATIENCE seconds."""
    ends = time.monotonic() + PATIENCE
    while (value := attempt()) is None and time.monotonic() < ends:
        time.sleep(_POLL)
    return value


def _identity(state: Path) -> dict[str, Any] | None:
    try:
        return read_typed(state, BuildState, PackError).identity
    except PackError:
        return None
