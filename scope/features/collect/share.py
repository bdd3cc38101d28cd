"""Several processes on one pack: each encodes its share of the contexts and measures its share of the directions.

What a process finishes lies in the building folder, on a disk that all see, one file a chunk; the first process adds the chunks
up in their order. Chunks do not depend on who made them, so the pack is that of a single process to the last bit, and one that
was begun by some processes can be finished by any other number.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scope.activations.harvest.ranks import Ranks
from scope.errors import PackError
from scope.features.collect.build_folder import Chunk, Workshop, join
from scope.features.collect.passes import encode, spans
from scope.features.collect.scoring import Scoring, score_block
from scope.features.collect.source import Source

_POLL = 0.2
_PATIENCE = 900.0  # seconds in which the first process may still load its model, or another finish a chunk or a block
PLAN = "plan"


def encode_share(sae, source: Source, place: Workshop, chunk_tokens: int, ranks: Ranks, on_progress=None) -> None:
    """Encode the chunks that fall to this process and keep them; those that lie there already are left."""
    mine = [(n, a, b) for n, (a, b) in enumerate(spans(source, chunk_tokens)) if ranks.owns(n)]
    done, total = 0, sum(int(source.keep[a:b].sum()) for _, a, b in mine)
    for number, a, b in mine:
        if place.load(number, a) is None:
            place.save(number, a, encode(sae, source, a, b))
        done += int(source.keep[a:b].sum())
        if on_progress:
            on_progress(done, total, {"process": f"{ranks.rank + 1} of {ranks.world}"})


def missing_chunk(place: Workshop, ranks: Ranks) -> Callable[[int, int], Chunk | None]:
    """What the first process does about a chunk that is not there: waits where another one makes it; None to make it itself."""

    def missing(number: int, first_context: int) -> Chunk | None:
        return None if ranks.owns(number) else _until(lambda: place.load(number, first_context))

    return missing


def assist(model, sae, source: Source, identity: dict[str, Any], out: Path, chunk_tokens: int, ranks: Ranks) -> None:
    """What every process but the first does; returns when its share is done.

    Raises:
        PackError: the first process did not begin, or builds something else.
    """
    place = join(out, identity, source.contexts.shape[1], source.n_tokens, _PATIENCE)
    if place is None:
        raise PackError(f"The first process has not begun to build {out}; did it stop? Give the same command again.")
    try:
        encode_share(sae, source, place, chunk_tokens, ranks)
        plan = _until(lambda: place.load_arrays(PLAN) if place.open else {})
        if plan:
            blocks = Blocks(model, sae, place, ranks)
            scoring = Scoring.of_arrays(plan)
            for number in range(scoring.n_blocks):
                if ranks.owns(number) and place.open:
                    blocks.of(scoring, number)
    except FileNotFoundError:
        if place.open:
            raise  # otherwise the first process is done, and has cleared up


class Blocks:
    """Scores in blocks: from an earlier run, from another process, or measured now and kept."""

    def __init__(self, model, sae, place: Workshop, ranks: Ranks):
        self.model, self.sae, self.place, self.ranks = model, sae, place, ranks

    def announce(self, scoring: Scoring | None) -> None:
        """Tell the other processes what is to be measured."""
        if self.ranks.world > 1:
            nothing = Scoring(np.zeros(0, np.int64), np.zeros((0, 0), np.int64), 0.0, 0)
            self.place.save_arrays(PLAN, **(scoring or nothing).to_arrays())

    def of(self, scoring: Scoring, number: int) -> dict[str, np.ndarray]:
        name = f"scores-{_digest(scoring)}-{number:05d}"
        found = self.place.load_arrays(name)
        if found is None and not self.ranks.owns(number):
            found = _until(lambda: self.place.load_arrays(name))
        if found is None:
            found = score_block(self.model, self.sae, scoring, number)
            self.place.save_arrays(name, **found)
        return found


def _digest(scoring: Scoring) -> str:
    """Scores of other latents, tokens, lengths or prompts bear other names, so they are never taken for these."""
    digest = hashlib.sha256()
    for name, array in sorted(scoring.to_arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _until(found: Callable[[], Any], patience: float | None = None) -> Any:
    """What `found` gives once it gives something, or None when patience ends."""
    ends = time.monotonic() + (_PATIENCE if patience is None else patience)
    while (value := found()) is None and time.monotonic() < ends:
        time.sleep(_POLL)
    return value
