"""How well the shuffled reader mixes, beside independent draws: python -m tests.benchmarks.mixing

Reads nothing: the order of the rows is computed for a recording of 4 million rows that need not exist.
"""

from types import SimpleNamespace

import numpy as np
from scope.activations.read.shuffle import MEMORY_BYTES
from scope.activations.read.shuffle_order import Order

ROWS, DOCUMENT, BATCH, SHARD, ICC = 1 << 22, 1024, 4096, 65_536, 0.2


def measure(width: int, memory_bytes: int, n_sites: int = 1) -> dict[str, float]:
    """Same-document pairs of a batch over those of independent draws, documents in a batch, pairs of neighbouring rows over
    those of independent draws, and the variance of a batch's mean over that of independent rows, where rows of one document
    correlate with 0.2."""
    entries = [SimpleNamespace(rows=(a, a + SHARD), n_rows=SHARD) for a in range(0, ROWS, SHARD)]
    segment_rows = min(256, max(8, 65_536 // (2 * width)))
    sites = {f"site {i}": width for i in range(n_sites)}
    store = SimpleNamespace(entries=entries, sites=sites, dtype="bfloat16", segment_rows=segment_rows, n_rows=ROWS)
    store.starts = [e.rows[0] for e in entries]
    order = Order(store, tuple(sites), seed=0, memory_bytes=memory_bytes, outliers=True)
    pairs, documents, n, neighbours = 0.0, 0, 0, 0
    for rows in order.of_epoch(0):
        full = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)
        for batch in full:
            counts = np.bincount(batch // DOCUMENT)
            pairs += float((counts * (counts - 1)).sum()) / (BATCH * (BATCH - 1))
            documents += int((counts > 0).sum())
            neighbours += int((np.diff(np.sort(batch)) == 1).sum())
            n += 1
    same = pairs / n
    independent = (DOCUMENT - 1) / (ROWS - 1)
    return {
        "segment": segment_rows,
        "pools": order.n_pools,
        "pairs": same / independent,
        "documents": documents / n,
        "neighbours": neighbours / n / (BATCH * (BATCH - 1) / ROWS),
        "variance": 1 + (BATCH - 1) * same * ICC,
    }


if __name__ == "__main__":
    print("sites width  memory    segment pools  same-document pairs  documents/batch  neighbours  variance of the mean")
    settings = (1, 2304, 1 << 36), (1, 2304, 755_000_000), (1, 2304, MEMORY_BYTES), (1, 256, MEMORY_BYTES)
    for n_sites, width, memory in (*settings, (8, 2304, MEMORY_BYTES), (8, 2304, 8 * MEMORY_BYTES)):
        m = measure(width, memory, n_sites)
        place = f"{n_sites:5d} {width:5d}  {memory / 1e6:6.0f} MB {m['segment']:7.0f} {m['pools']:5.0f}"
        print(
            f"{place}  {m['pairs']:19.2f}  {m['documents']:15.0f}  {m['neighbours']:10.2f}  {m['variance']:20.2f}", flush=True
        )
