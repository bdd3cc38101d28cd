"""`scope.collect_features`: a dictionary and a recording (or a corpus) in, a feature pack out."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.features.collect.config import CollectConfig
from scope.progress import OnProgress
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelSettings, resolve
from scope.workflows.text import PictureSettings

TOKENS, CONTEXT = 500_000, 256
"""Tokens of a corpus that are read, and tokens of a context, if no numbers are given."""

TEXT = "bundled"
"""The corpus on which a published SAE is read, if none is given."""


@dataclass(frozen=True, kw_only=True)
class CollectFeatures(ModelSettings):
    """Which dictionary's features to collect, on which text. Each field is also a flag of `scope features`."""

    dictionary: str
    """Folder that `scope train` wrote, a SAELens folder, a params.npz, or the name of a published SAE: SAELens' release with
    the id in it, a hub id with the folder in it, or Neuronpedia's id."""

    recording: Path | None = None
    """Recording to read, as `scope harvest` wrote it. Or give --corpus."""

    corpus: str | None = None
    """Text, or pictures for a model that reads them, to run the model on instead: a file, a folder, docs, bundled, or a hub
    data set. Of a published SAE by default bundled. Pictures are recorded first, into a folder beside the pack that is removed
    when the pack is complete."""

    site: str | None = None
    """Where the dictionary reads, e.g. blocks.2.hook_resid_post, for a file that does not say, as a params.npz; of a transcoder
    both of its sites, "blocks.2.ln2.hook_normalized->blocks.2.hook_mlp_out". None: as the dictionary says."""

    out: Path | None = None
    """Folder for the pack; an older pack there is replaced when the new one is complete. None: runs/pack, or of a published
    SAE a folder by its name, runs/NAME/pack."""

    context: int | None = None
    """Rows of a context, when a corpus is read. None: 256 tokens of text, <bos> included; of pictures, the patches of one and
    64 rows of text beside them."""

    fim: str | None = None
    """With --corpus: read its documents as infilling examples, as in psm:0.45,spm:0.45; the pack then has figures by role
    (prefix, suffix, middle, control), as one of a recording that was made with --fim."""

    fim_seed: int = 0
    """Random seed for where documents are cut with --fim."""

    evaluation: Path | None = None
    """Report of `scope evaluate` to keep in the pack. None: evaluation.json in the dictionary's folder, if there is one."""

    certificate: bool = True
    """First check on about 2,000 tokens that the dictionary fits this model and site; kept beside it, so made once."""

    config: CollectConfig = field(default_factory=CollectConfig)

    pictures: PictureSettings = field(default_factory=PictureSettings)


def collect_features(
    config: Any = None,
    *,
    on_progress: OnProgress | None = None,
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    on_plan: OnNote = silent,
    **settings: Any,
) -> Any:
    """Collect what the browser shows about each latent into a folder; returns the `Pack`.

    Stopped, the same call goes on where it stopped. Under torchrun all processes call it with the same settings; the first one
    returns the pack, the others None. `on_plan` is called with memory and disk that it needs, in words.

    Raises:
        ConfigError: a setting that cannot be.
        DictionaryError: the dictionary is damaged, or does not fit the model.
        PackError: the recording is another model's, `out` is no pack, or another process is building it.
    """
    from scope.activations.corpus.sources import open_corpus
    from scope.activations.harvest.ranks import ProcessRank
    from scope.activations.read.store import ActivationStore
    from scope.features.collect.collect_pack import collect
    from scope.features.collect.health import find_health
    from scope.features.face import Pack
    from scope.sae.files import read_sae
    from scope.sae.hub.names import find_name
    from scope.workflows.certificate import certified
    from scope.workflows.text import inputs_of_corpus, reads_pictures

    job = resolve(CollectFeatures, config, settings, first="dictionary")
    if job.fim and job.recording is not None:
        raise ConfigError("--fim is for a --corpus; a recording has the form in which `scope harvest --fim` made it.")
    name = find_name(job.dictionary) if not Path(job.dictionary).expanduser().exists() else None
    if name is not None and job.recording is None and job.corpus is None:
        job = replace(job, corpus=TEXT)
    out = job.out or (Path("runs/pack") if name is None else name.lab / "pack")
    if (job.recording is None) == (job.corpus is None):
        raise ConfigError("Give either --recording RECORDING or --corpus TEXT: the latents are read on its tokens.")
    ranks, folder = ProcessRank.of_environment(), Path(job.dictionary).expanduser()
    sae = read_sae(job.dictionary, job.device, job.site)
    folder = folder if name is None else name.lab
    find_health(folder, job.evaluation)  # a report that is not there is refused before the work
    store = None if job.recording is None else ActivationStore.open(job.recording)
    model = job.load_model(sae.provenance if store is None else {"model": store.manifest.model}, pictures=True)
    if store is None and reads_pictures(model):
        if ranks.world > 1:
            raise ConfigError(_RECORD_FIRST.format(corpus=job.corpus, site=sae.site))
        store = _recorded(model, sae.site, job, out, on_progress)
    certificate = certified(model, sae, job.dictionary, job.certificate, on_note, on_certificate) if ranks.leads else None
    described: dict[str, Any] = {}
    if store is None:
        context = job.context or CONTEXT
        n = -(-(job.config.tokens or TOKENS) // context)
        text = model, open_corpus(job.corpus), context, n, job.config.seed, job.fim, job.fim_seed
        inputs, described = inputs_of_corpus(*text)
        store = inputs if job.fim else inputs.to("cpu").tokens
    if ranks.leads:
        on_plan(_in_words(job.config, model, sae, store, ranks))
    made = collect(
        model,
        sae,
        store,
        job.config,
        out,
        on_progress if ranks.leads else None,
        health=find_health(folder, job.evaluation, certificate),
        corpus=described,
        dictionary=str(folder.resolve()) if name is None else name.place + (f"@{name.revision}" if name.revision else ""),
        ranks=ranks,
    )
    if made is None:
        return None
    if job.corpus is not None:
        for aside in out.absolute().parent.glob(f"{_aside(out)}*"):
            shutil.rmtree(aside, ignore_errors=True)
    _add_decay(model, sae, made, on_note, on_progress)
    return Pack.open(made.folder)


_RECORD_FIRST = """Several processes make a pack of pictures from a recording:
  torchrun ... -m scope.cli harvest --corpus {corpus} --site {site} --out RECORDING
  torchrun ... -m scope.cli features ... --recording RECORDING"""


def _aside(out: Path) -> str:
    """The beginning of the names of folders with pictures that are recorded for the pack alone."""
    return f".{out.name}.recording-"


def _recorded(model: Any, site: str, job: CollectFeatures, out: Path, on_progress: OnProgress | None) -> Any:
    """A recording of the corpus of pictures at a site, in float32.

    Raises:
        ActivationsError, ConfigError: the corpus cannot be recorded.
    """
    from scope.activations.config import HarvestConfig
    from scope.workflows.harvest import Harvest, harvest_of

    if job.fim:
        raise ConfigError(f"--fim is for text, and a {model.cfg.family_name} reads pictures. Leave it out.")
    config = HarvestConfig(sites=(site,), tokens=job.config.tokens or TOKENS, dtype="float32", seed=job.config.seed)
    harvest = Harvest(corpus=str(job.corpus), config=config, context=job.context, pictures=job.pictures)
    known = hashlib.sha256(repr((model.provenance, harvest)).encode()).hexdigest()[:12]
    return harvest_of(model, replace(harvest, out=str(out.with_name(f"{_aside(out)}{known}"))), on_progress)


def _add_decay(model: Any, sae: Any, pack: Any, on_note: OnNote, on_progress: OnProgress | None) -> None:
    """For the SAE of a state, how long its latents last, beside the model with its weights drawn again, into the pack."""
    import numpy as np
    import torch

    from scope.errors import ConfigError, TokensError
    from scope.evaluation.random_model import randomised
    from scope.features.compare.decay import decay
    from scope.features.pack.decay import FILE
    from scope.features.pack.write import add_file
    from scope.free_memory import free_memory
    from scope.models.griffin.shares import layer_of

    layer = layer_of(sae.site)
    if layer is None:
        return
    try:
        copied = sum(p.numel() * p.element_size() for part in model.blocks[: layer + 1] for p in part.parameters())
        free = free_memory(model.device)
        redrawn = randomised(model, layer + 1) if free is None or 2 * copied < free else None
    except ConfigError:  # of a streamed model the weights are not in memory
        redrawn = None
    if redrawn is None:
        on_note("The half-lives stand without those of a model with its weights drawn again: there is no room for a copy.")
    try:
        tokens = torch.from_numpy(np.asarray(pack.contexts, dtype=np.int64))
        result = decay(model, sae, tokens, redrawn=redrawn, on_progress=on_progress)
    except TokensError as error:
        on_note(f"No decay profiles: {error}")
        return
    add_file(pack.folder, FILE, result.to_json().encode(), {})
    on_note(str(result))


def _in_words(config: CollectConfig, model: Any, sae: Any, store: Any, ranks: Any) -> str:
    """Memory and disk that the pack needs while it is built."""
    from scope.activations.read.store import ActivationStore
    from scope.evaluation.certificate.verdict import middle
    from scope.features.collect.plan import plan
    from scope.progress import size
    from scope.sae.claims import claims_of

    tokens = getattr(store, "tokens", store)
    rows = int(store.n_rows) if isinstance(store, ActivationStore) else tokens.shape[0] * tokens.shape[1]
    n_ctx = int(tokens.shape[1])
    n_tokens = rows if config.tokens is None else min(rows, config.tokens)
    l0 = middle(claims_of(sae.provenance).get("l0"))
    needs = plan(sae.d_sae, sae.d_in, getattr(model.cfg, "d_vocab", 1), n_tokens, n_ctx, config, l0)
    shared = f", shared by {ranks.world} processes" if ranks.world > 1 else ""
    return (
        f"{n_tokens:,} tokens{shared}: at most {size(needs.peak)} of memory beside model and dictionary, "
        f"{size(needs.building)} of disk while it is built, about {size(needs.pack)} for the pack"
    )
