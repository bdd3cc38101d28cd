"""Plans a harvest before the model runs: sites, size, disk space, time, and the manifest."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from scope.activations.config import STAGING, HarvestConfig
from scope.activations.corpus.contexts import TextTokenizer, maker_of
from scope.activations.corpus.inputs import InputMaker, Recorder
from scope.activations.corpus.sources import Corpus
from scope.activations.corpus.survey import Survey, survey
from scope.activations.errors import RecordingError
from scope.activations.format import manifest as recording
from scope.activations.format.continuing import contexts_for, continues
from scope.activations.format.hdf5 import ITEM_BYTES
from scope.activations.format.remote import Remote, address, folder_for
from scope.activations.harvest.ranks import ProcessRank, n_readable
from scope.activations.harvest.scan import Scan, TriesDocuments, scan

from scope.progress import OnProgress, size
from scope.sites import match_sites
from scope.typed_json import as_json
from scope.whole_files import is_held, only_writer

_UNTRIED = ("hub", "scenes", "pages")  # kinds of corpora
_SEGMENT_BYTES = 65_536  # read and checked at once while shuffling; smaller reads are slow on disks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size and duration of a harvest. Bytes are an upper bound, as if no token were excluded."""

    sites: dict[str, int]
    tokens: int
    recorded: int
    """Tokens that are recorded already."""

    bytes_per_token: int
    nbytes: int
    free: int | None
    """Free bytes at the destination; None if a store does not report them."""

    survey: Survey | None
    """Measurements on the first contexts of the corpus; None if they were not needed."""

    context: int
    ranks: int = 1
    scan: Scan | None = None
    """The result of trying the documents that are still to be recorded; None where they were not tried."""

    @property
    def seconds(self) -> float | None:
        """Estimated seconds for the remaining tokens, at the speed of the survey on every rank."""
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
    on_scan: OnProgress | None = None,
) -> Plan:
    """Sites, size, disk space and time of a harvest. Everything that can be checked before work begins is checked here.

    Where `timed`, documents that may be unusable, such as pictures, are tried too; `on_scan` reports how far that is. Those of
    the hub are not, which would be fetched twice, nor those that are drawn.

    Raises:
        UnknownSite: a pattern matches no site.
        CorpusError: the corpus holds no text, or documents that cannot be used where such are to be refused.
        RecordingError: the context is too long for the model, the disk is too small, `out` holds something else, or
            activations are NaN or Inf.
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
    tokens = contexts_for(config.tokens, config.context) * config.context
    folder, remote = places(out, staging)
    if remote:
        remote.begin(folder)
    _refuse_writers(folder)
    exists = continues(folder, new_manifest(sites, maker, corpus, config, provenance))
    recorded = recording.read_recording(folder) if exists else None
    done = recorded.n_contexts * config.context if recorded else 0
    left = 0 if recorded and recorded.exhausted else max(0, tokens - done)
    again = recorded.n_contexts - sum(map(n_readable, recorded.entries)) if recorded else 0  # moved aside by repair
    left += again * config.context
    tokens = max(tokens, done) if again else tokens
    free = _room(folder, remote, left, per_token, config.shard_rows)
    look = left and (timed or not exists)
    tried = None
    if left and timed and isinstance(maker, TriesDocuments) and corpus.identity.get("kind") not in _UNTRIED:
        cursor = recorded.entries[-1].cursor if recorded and recorded.entries else None
        documents, first = corpus.documents(config.seed), cursor.documents if cursor else 0
        tried = scan(maker, documents, config.context, -(-left // config.context), first, on_progress=on_scan)
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
        scan=tried,
    )


def _room(folder: Path, remote: Remote | None, left: int, per_token: int, shard_rows: int) -> int | None:
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    needed = left * per_token
    if remote:
        needed = min(needed, 2 * shard_rows * per_token)  # one is being made, one sent
    if needed > free:
        raise RecordingError(
            f"{left:,} tokens at {per_token:,} bytes need {size(needed)} more{' for staging' if remote else ''}; "
            f"{size(free)} are free in {place}.\n"
            f"  {'Give a smaller --shard-rows, or another disk to --staging.' if remote else _SMALLER}"
        )
    return None if remote else free


_SMALLER = "Lower --tokens, record fewer sites, or give another disk to --out."


def places(out: str | Path, staging: Path) -> tuple[Path, Remote | None]:
    """The folder in which shards are made, and the store that they are sent to, if any."""
    url = address(out)
    return (folder_for(url, staging), Remote(url)) if url else (Path(out), None)


def _refuse_writers(folder: Path) -> None:
    if ProcessRank.of_environment().leads and is_held(folder, recording.LOCK):
        with only_writer(folder, recording.LOCK):  # raises
            pass


def chosen(config: HarvestConfig, recorder: Recorder) -> dict[str, int]:
    """The sites that a config names, with their widths, in the order of the model.

    Raises:
        UnknownSite: a pattern matches no site.
    """
    known = recorder.sites()
    return {site: known[site] for site in match_sites(config.sites, known)}


def new_manifest(
    sites: dict[str, int], maker: InputMaker, corpus: Corpus, config: HarvestConfig, provenance: dict
) -> recording.Manifest:
    """The manifest that a new recording would have, without its outlier rule."""
    batch = config.batch_contexts * config.context
    widest = max(sites.values()) * ITEM_BYTES[config.dtype]
    return recording.Manifest(
        format=recording.FORMAT,
        version=recording.WITH_ROLES if maker.stores_roles else recording.VERSION,
        model=as_json(provenance),
        tokenizer=as_json(maker.identity),
        corpus=as_json(corpus.identity),
        config=recording.RecordedConfig(**vars(config)),
        layout=recording.Layout(
            widths=sites,
            contexts_per_shard=max(1, round(config.shard_rows / batch)) * config.batch_contexts,
            segment_rows=min(256, max(8, _SEGMENT_BYTES // widest)),
            packing=maker.packing,
        ),
        versions=recording.versions(),
        outliers=None,
    )
