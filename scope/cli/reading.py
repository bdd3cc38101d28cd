"""Where a training reads from: a recording, or a model that runs beside it."""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from scope.errors import ConfigError


def match_recorded(pattern: str | None, sites: Sequence[str], where: str) -> list[str]:
    """The sites of a recording that names and globs, with commas between, mean.

    Raises:
        ConfigError: none is given and there are several, or one matches nothing.
    """
    if pattern is None:
        if len(sites) == 1:
            return list(sites)
        raise ConfigError(f"{where} holds several sites; say which with --site.\n  It holds: {', '.join(sites)}")
    wanted = set()
    for one in pattern.split(","):
        found = [s for s in sites if one.strip() in (s, "all") or fnmatch.fnmatchcase(s, one.strip())]
        if not found:
            raise ConfigError(f"{where} holds no activations of {one.strip()}.\n  It holds: {', '.join(sites)}")
        wanted.update(found)
    return [s for s in sites if s in wanted]


def bytes_to_shuffle(sites: Sequence[str], widths: dict[str, int], every: Sequence[str], megabytes: int) -> int:
    """Memory for the rows of some sites such that their order is that of the widest site read alone with `megabytes`.

    The order depends on how many rows are held, so sites of one width come in the order in which each would come alone.
    """
    return (megabytes << 20) * sum(widths[s] for s in sites) // max(widths[s] for s in every)


class Recorded:
    """Batches of a recording that know where their rows lie."""

    def __init__(self, store, sites: Sequence[str], batch_size: int, seed: int, memory_bytes: int):
        self.store, self.sites = store, tuple(sites)
        self.batches = store.shuffled(self.sites if len(sites) > 1 else sites[0], batch_size, seed, memory_bytes=memory_bytes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)

    def where(self, row: int, n: int) -> str:
        """In words, what row `row` of the last batch, of n, is: its number in the recording and its shard."""
        epoch, at = divmod(self.batches.row - n + row, self.batches.n_rows)
        for rows in self.batches.order(epoch):
            if at < len(rows):
                number = int(rows[at])
                entry = next(e for e in self.store.entries if number < e["rows"][1])
                return f"row {number:,} of the recording, row {number - entry['rows'][0]:,} of its shard {entry['file']}"
            at -= len(rows)
        return "a row of the recording"


def provenance(store, site: str) -> dict[str, Any]:
    """Where the activations of a dictionary come from: the model, the recording, the site."""
    manifest = store.manifest
    recording = {"corpus": manifest.get("corpus"), "config": manifest.get("config"), "tokens": store.n_rows}
    recording |= {key: manifest[key] for key in ("left_out", "imported") if key in manifest}
    return {"model": manifest.get("model") or manifest.get("provenance") or {}, "site": site, "recording": recording}


def live_provenance(model, batches, site: str, tokens: int) -> dict[str, Any]:
    """As `provenance`, of a model that runs beside the training."""
    config = asdict(batches.config) | {
        "exclude": list(batches.config.exclude),
        "seed": batches.seed,
        "sites": list(batches.sites),
    }
    shuffled = {"contexts_held": batches.contexts}
    return {
        "model": model.provenance,
        "site": site,
        "recording": {"corpus": batches.corpus.identity, "config": config | shuffled, "tokens": tokens, "stored": False},
    }
