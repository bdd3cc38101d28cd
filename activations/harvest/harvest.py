"""`harvest`: run a model over a corpus and record the activations at its sites, in shards that survive whatever happens.

Every shard is a pure function of the manifest and its number: an interrupted and repeated run makes the same bytes as an
uninterrupted one, and an extended recording equals one that was made at once.
"""

from dataclasses import replace
from pathlib import Path

from scope.activations.config import STAGING, HarvestConfig
from scope.activations.corpus.contexts import TextTokenizer, maker_of
from scope.activations.corpus.inputs import InputMaker, Recorder
from scope.activations.corpus.sources import Corpus
from scope.activations.format.continuing import begin
from scope.activations.format.manifest import MANIFEST
from scope.activations.harvest.plan import Plan, chosen, new_manifest, places, plan
from scope.activations.harvest.ranks import ProcessRank, only_rank, refuse_other_runs, wait_for_manifest
from scope.activations.harvest.run import Run
from scope.activations.read.store import ActivationStore

from scope.progress import OnProgress


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
    """Record `config.tokens` tokens of a corpus into `out`, or those still missing there. It can be stopped at any time.

    `out` is a folder, or an address such as s3://bucket/recording, for which shards are made in a folder below `staging`.
    Under torchrun each process makes its share of the shards; all but rank 0 return None, rank 0 when all is done. `planned`
    avoids planning again.

    Raises:
        UnknownSite: the model does not have a site.
        CorpusError: the corpus holds no text.
        RecordingError: `out` holds something else, or its disk is full; activations are NaN or Inf.
        FolderInUse: another process is writing there.
    """
    ranks, maker = ProcessRank.of_environment(), maker_of(tokenizer)
    folder, remote = places(out, staging)
    if ranks.leads:
        planned = planned or plan(recorder, tokenizer, corpus, config, out, provenance, timed=False, staging=staging)
    sites = chosen(config, recorder)
    config = replace(config, sites=tuple(sites))
    manifest = new_manifest(sites, maker, corpus, config, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    with only_rank(folder, ranks):
        if planned and ranks.leads:
            refuse_other_runs(folder, ranks)
            rule = planned.survey.rule(config.outlier_times) if planned.survey else None
            recorded = begin(folder, replace(manifest, outliers=rule))
            if remote:
                remote.push(folder / MANIFEST)
        else:
            recorded = wait_for_manifest(folder, manifest, ranks, remote)
        Run(recorder, maker, corpus, config, folder, recorded, on_progress, ranks, remote).run()
    return ActivationStore.open(out) if ranks.leads else None
