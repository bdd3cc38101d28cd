"""Several processes on one pack: each encodes its share of the contexts and measures its share of the directions.

What a process finishes lies in the building folder, on a disk that all see, one file a chunk; the first process adds the chunks
up in their order. Chunks do not depend on who made them, so the pack is that of a single process to the last bit, and one that
was begun by some processes can be finished by any other number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scope.activations.harvest.ranks import ProcessRank
from scope.errors import PackError
from scope.features.collect.build_folder import BuildFolder, Chunk, join, until
from scope.features.collect.first_pass import encode, spans
from scope.features.collect.scoring import PLAN, Blocks, Scoring
from scope.features.collect.source import Source
from scope.models.face import Model
from scope.progress import OnProgress
from scope.sae.base import SAE


def encode_share(
    sae: SAE,
    source: Source,
    building: BuildFolder,
    chunk_tokens: int,
    ranks: ProcessRank,
    on_progress: OnProgress | None = None,
) -> None:
    """Encode the chunks that fall to this process and keep them; those that lie there already are left."""
    mine = [(n, a, b) for n, (a, b) in enumerate(spans(source, chunk_tokens)) if ranks.owns(n)]
    done, total = 0, sum(int(source.keep[a:b].sum()) for _, a, b in mine)
    for number, a, b in mine:
        if building.load(number, a) is None:
            building.save(number, a, encode(sae, source, a, b))
        done += int(source.keep[a:b].sum())
        if on_progress:
            on_progress(done, total, {"process": f"{ranks.rank + 1} of {ranks.world}"})


def missing_chunk(building: BuildFolder, ranks: ProcessRank) -> Callable[[int, int], Chunk | None]:
    """What the first process does about a chunk that is not there: waits where another one makes it; None to make it itself."""

    def missing(number: int, first_context: int) -> Chunk | None:
        return None if ranks.owns(number) else until(lambda: building.load(number, first_context))

    return missing


def assist(
    model: Model, sae: SAE, source: Source, identity: dict[str, Any], out: Path, chunk_tokens: int, ranks: ProcessRank
) -> None:
    """What every process but the first does; returns when its share is done.

    Raises:
        PackError: the first process did not begin, or builds something else.
    """
    building = join(out, identity, source.contexts.shape[1], source.n_tokens)
    if building is None:
        raise PackError(f"The first process has not begun to build {out}; did it stop? Give the same command again.")
    try:
        encode_share(sae, source, building, chunk_tokens, ranks)
        plan = until(lambda: building.load_arrays(PLAN) if building.open else {})
        if plan:
            blocks = Blocks(model, sae, building, ranks)
            scoring = Scoring.of_arrays(plan)
            for number in range(scoring.n_blocks):
                if ranks.owns(number) and building.open:
                    blocks.of(scoring, number)
    except FileNotFoundError:
        if building.open:
            raise  # otherwise the first process is done, and has cleared up
