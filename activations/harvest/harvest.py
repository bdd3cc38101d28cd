"""`harvest`: run a model over a corpus and record what flows past its sites, in shards that survive whatever happens.

Every shard is a pure function of the manifest and its number: an interrupted run, given again, makes the same bytes as one
that was left alone, and a run with a larger budget the same as one that had it from the start.
"""

import fnmatch
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from scope.activations.config import STAGING, HarvestConfig
from scope.activations.corpus.contexts import TextTokenizer, maker_of
from scope.activations.corpus.inputs import InputMaker, Recorder
from scope.activations.corpus.sources import Corpus
from scope.activations.corpus.survey import Survey, survey
from scope.activations.errors import RecordingError, UnknownSiteError
from scope.activations.format import manifest as recording
from scope.activations.format.files import only_writer
from scope.activations.format.hdf5 import ITEM_BYTES
from scope.activations.format.remote import Remote, address, folder_for
from scope.activations.format.shard_writer import size
from scope.activations.harvest.ranks import Ranks, held, is_held, only_rank, refuse_strangers, wait_for_manifest
from scope.activations.harvest.run import OnProgress, Run
from scope.activations.read.store import ActivationStore

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
        UnknownSiteError: a pattern that matches no site.
        CorpusError: the corpus holds no text.
        RecordingError: the context is longer than the model reads, the disk has less room than what is still to be recorded,
            something else lies there, or another process is writing it; activations are NaN or Inf.
    """
    maker = maker_of(tokenizer)
    sites = match_sites(config.sites, recorder.sites())
    longest = getattr(getattr(recorder, "cfg", None), "n_ctx", None)
    if longest and config.context > longest:
        raise RecordingError(
            f"Contexts of {config.context} tokens do not fit: this model reads {longest} at most.\n"
            f"  Give --context {longest} or less."
        )
    config = replace(config, sites=tuple(sites))
    per_token = sum(width * ITEM_BYTES[config.dtype] + 4 for width in sites.values()) + 20
    tokens = recording.contexts_for(config.tokens, config.context) * config.context
    folder, remote = _places(out, staging)
    if remote:
        remote.begin(folder)
    _refuse_writers(folder)
    there = recording.continues(folder, _manifest(sites, maker, corpus, config, provenance))
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
        ranks=Ranks.of_environment().world,
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


def _places(out: str | Path, staging: Path) -> tuple[Path, Remote | None]:
    """The folder in which shards are made, and the store to which they go, if they do."""
    url = address(out)
    return (folder_for(url, staging), Remote(url)) if url else (Path(out), None)


def _refuse_writers(folder: Path) -> None:
    if Ranks.of_environment().leads and is_held(folder / "recording.lock"):
        with only_writer(folder):  # raises, and says who
            pass


def match_sites(patterns: Sequence[str], known: dict[str, int]) -> dict[str, int]:
    """The sites that names and globs mean, in the model's order, with their widths.

    Raises:
        UnknownSiteError: a pattern that matches nothing; the message lists the nearest sites.
    """
    if not patterns:
        raise UnknownSiteError("No site is given. Name one, such as blocks.3.hook_resid_post, or a glob, or all.")
    wanted: set[str] = set()
    for pattern in patterns:
        found = known if pattern == "all" else [s for s in known if s == pattern or fnmatch.fnmatchcase(s, pattern)]
        if not found:
            near = get_close_matches(pattern, known, n=6, cutoff=0.3) or list(known)[:6]
            raise UnknownSiteError(
                f"This model has no site {pattern}.\n  Nearest: {', '.join(near)}\n  It has: {', '.join(families(known))}\n"
                "  Globs and `all` work too."
            )
        wanted.update(found)
    return {site: width for site, width in known.items() if site in wanted}


def families(known: Sequence[str] | dict[str, int]) -> list[str]:
    """The sites with their numbers of blocks drawn together: blocks.0-3.hook_resid_post."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for site in known:
        found = re.fullmatch(r"(.*?\.)(\d+)(\..*)", site)
        numbers.setdefault((found[1], found[3]) if found else (site, ""), []).append(int(found[2]) if found else 0)
    spans = {key: f"{min(n)}-{max(n)}" if len(n) > 1 else f"{n[0]}" for key, n in numbers.items()}
    return [f"{before}{spans[before, after]}{after}" if after else before for before, after in numbers]


def harvest(
    recorder: Recorder,
    tokenizer: TextTokenizer | InputMaker,
    corpus: Corpus,
    config: HarvestConfig,
    out: str | Path,
    provenance: dict,
    on_progress: OnProgress | None = None,
    planned: Plan | None = None,
    staging: Path = STAGING,
) -> ActivationStore | None:
    """Record `config.tokens` tokens of a corpus into `out`, or what is still missing there. Stop it at any time.

    `out` is a folder, or an address such as s3://bucket/recording, for which shards are made in a folder below `staging`.
    Under torchrun each process makes its share of the shards; all but rank 0 return None, rank 0 when all is done. `planned`
    spares what `plan` has done already.

    Raises:
        UnknownSiteError: a site that the model does not have.
        CorpusError: the corpus holds no text.
        RecordingError: `out` holds something else, is being written, or its disk is full; activations are NaN or Inf.
    """
    ranks, maker = Ranks.of_environment(), maker_of(tokenizer)
    folder, remote = _places(out, staging)
    if ranks.leads:
        planned = planned or plan(recorder, tokenizer, corpus, config, out, provenance, timed=False, staging=staging)
    sites = match_sites(config.sites, recorder.sites())
    config = replace(config, sites=tuple(sites))
    manifest = _manifest(sites, maker, corpus, config, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    with only_rank(folder, ranks):
        if planned and ranks.leads:
            refuse_strangers(folder, ranks)
            manifest["outliers"] = planned.survey.rule(config.outlier_times) if planned.survey else None
            recorded = recording.begin(folder, manifest)
            if remote:
                remote.push(folder / recording.MANIFEST)
        else:
            recorded = wait_for_manifest(folder, manifest, ranks, remote)
        Run(recorder, maker, corpus, config, folder, recorded, on_progress, ranks, remote).run()
    return ActivationStore.open(out) if ranks.leads else None


def _manifest(sites: dict[str, int], maker: InputMaker, corpus: Corpus, config: HarvestConfig, provenance: dict) -> dict:
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
