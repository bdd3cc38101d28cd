"""What a harvest will make and what it needs, before the model runs: sites, size, room, time, and the manifest."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scope.activations.config import STAGING, HarvestConfig
from scope.activations.corpus.contexts import TextTokenizer, maker_of
from scope.activations.corpus.inputs import InputMaker, Recorder
from scope.activations.corpus.sources import Corpus
from scope.activations.corpus.survey import Survey, survey
from scope.activations.errors import RecordingError
from scope.activations.format import manifest as recording
from scope.activations.format.hdf5 import ITEM_BYTES
from scope.activations.format.remote import Remote, address, folder_for
from scope.activations.format.row_bytes import size
from scope.activations.harvest.ranks import ProcessRank, held

from scope.sites import match_sites
from scope.whole_files import is_held, only_writer

_SEGMENT_BYTES = 65_536  # what is read and checked at once while shuffling; below it a disk loses most of its speed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a harvest will make, before it runs. Bytes are those of a recording without any token excluded."""

    sites: dict[str, int]
    tokens: int
    recorded: int
    """Tokens that are there already."""

    bytes_per_token: int
    nbytes: int
    free: int | None
    """Bytes free where it goes; None for a store that does not say."""

    survey: Survey | None
    """The first look at the corpus; None where nothing had to be looked at."""

    context: int
    ranks: int = 1

    @property
    def seconds(self) -> float | None:
        """An estimate of the time that the rest takes: the model alone, as fast as in the survey on each of the ranks."""
        left = max(0, self.tokens - self.recorded)
        return left / self.survey.tokens_per_second / self.ranks if self.survey else None


def plan(
    recorder: Recorder,
    tokenizer: TextTokenizer | InputMaker,
    corpus: Corpus,
    config: HarvestConfig,
    out: str | Path,
    provenance: dict,
    timed: bool = True,
    staging: Path = STAGING,
) -> Plan:
    """Sites, size, room and time. Whatever can be refused before work begins is refused here.

    Raises:
        UnknownSite: a pattern matches no site.
        CorpusError: the corpus holds no text.
        RecordingError: the context is longer than the model reads, the disk has less room than what is still to be recorded,
            something else lies there; activations are NaN or Inf.
        FolderInUse: another process is writing there.
    """
    maker = maker_of(tokenizer)
    sites = chosen(config, recorder)
    longest = getattr(getattr(recorder, "cfg", None), "n_ctx", None)
    if longest and config.context > longest:
        raise RecordingError(
            f"Contexts of {config.context} tokens do not fit: this model reads {longest} at most.\n"
            f"  Give --context {longest} or less."
        )
    config = replace(config, sites=tuple(sites))
    per_token = sum(width * ITEM_BYTES[config.dtype] + 4 for width in sites.values()) + 20
    tokens = recording.contexts_for(config.tokens, config.context) * config.context
    folder, remote = places(out, staging)
    if remote:
        remote.begin(folder)
    _refuse_writers(folder)
    there = recording.continues(folder, new_manifest(sites, maker, corpus, config, provenance))
    recorded = recording.read_recording(folder) if there else None
    done = recorded.n_contexts * config.context if recorded else 0
    left = 0 if recorded and recorded.exhausted else max(0, tokens - done)
    again = recorded.n_contexts - sum(map(held, recorded.entries)) if recorded else 0  # what repair moved aside
    left += again * config.context
    tokens = max(tokens, done) if again else tokens
    free = _room(folder, remote, left, per_token, config.shard_rows)
    look = left and (timed or not there)
    return Plan(
        sites=sites,
        tokens=tokens,
        recorded=tokens - left,
        bytes_per_token=per_token,
        nbytes=tokens * per_token,
        free=free,
        survey=survey(recorder, maker, corpus, tuple(sites), config, config.seed, timed) if look else None,
        context=config.context,
        ranks=ProcessRank.of_environment().world,
    )


def _room(folder: Path, remote: Remote | None, left: int, per_token: int, shard_rows: int) -> int | None:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    needed = left * per_token
    if remote:
        needed = min(needed, 2 * shard_rows * per_token)  # one being made, one being sent
    if needed > free:
        raise RecordingError(
            f"{left:,} tokens at {per_token:,} bytes need {size(needed)} more{' for staging' if remote else ''}; "
            f"{size(free)} are free in {there}.\n"
            f"  {'Give a smaller --shard-rows, or another disk to --staging.' if remote else _SMALLER}"
        )
    return None if remote else free


_SMALLER = "Lower --tokens, record fewer sites, or give another disk to --out."


def places(out: str | Path, staging: Path) -> tuple[Path, Remote | None]:
    """The folder in which shards are made, and the store to which they go, if they do."""
    url = address(out)
    return (folder_for(url, staging), Remote(url)) if url else (Path(out), None)


def _refuse_writers(folder: Path) -> None:
    if ProcessRank.of_environment().leads and is_held(folder, recording.LOCK):
        with only_writer(folder, recording.LOCK):  # raises, and names the process
            pass


def chosen(config: HarvestConfig, recorder: Recorder) -> dict[str, int]:
    """The sites that a config names, with their widths, in the order of the model.

    Raises:
        UnknownSite: a pattern matches no site.
    """
    known = recorder.sites()
    return {site: known[site] for site in match_sites(config.sites, known)}


def new_manifest(sites: dict[str, int], maker: InputMaker, corpus: Corpus, config: HarvestConfig, provenance: dict) -> dict:
    """The manifest that a new recording would have."""
    batch = config.batch_contexts * config.context
    widest = max(sites.values()) * ITEM_BYTES[config.dtype]
    made = {
        "format": recording.FORMAT,
        "version": recording.WITH_ROLES if maker.stores_roles else recording.VERSION,
        "model": provenance,
        "tokenizer": maker.identity,
        "corpus": corpus.identity,
        "config": asdict(config),
        "layout": {
            "widths": sites,
            "contexts_per_shard": max(1, round(config.shard_rows / batch)) * config.batch_contexts,
            "segment_rows": min(256, max(8, _SEGMENT_BYTES // widest)),
            "packing": maker.packing,
        },
        "versions": recording.versions(),
    }
    return json.loads(json.dumps(made))  # as it will be read back: tuples are lists
