"""`scope.harvest`: a model and a corpus in, a recording out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scope.activations.config import STAGING, HarvestConfig
from scope.device import find_device
from scope.progress import OnProgress
from scope.workflows.settings import ModelPlace, resolve
from scope.workflows.text import PictureSettings

_PIXEL_BYTES = 256 << 20  # of the pictures of a shard, which are in memory together
_STREAMED_TOKENS = 16_384  # a batch of a streamed model, if none is given: reading then costs less than computing


@dataclass(frozen=True, kw_only=True)
class Harvest(ModelPlace):
    """What to record, of which model and corpus. Each field is also a flag of `scope harvest`."""

    model: str = "bundled"
    """The model: bundled, a folder with a Hugging Face checkpoint of a Gemma, SigLIP, PaliGemma or ColPali, a hub id, or, for
    what TransformerLens loads, lens:gpt2 or lens:FOLDER."""

    corpus: str = "bundled"
    """The text: a .txt, .md, .jsonl, .json, .csv or .parquet file, packed or not, a folder of such files or of
    `datasets.save_to_disk`, docs:numpy,torch, bundled, or a hub data set owner/name, owner/name:split, owner/name:config:split.
    Chats are laid out by the model's template. For a model that reads pictures: a folder of them (with texts beside them, or a
    metadata.jsonl as `datasets` has it), or records with pictures in one of these forms."""

    out: str = "runs/recording"
    """Folder for the recording, or an address such as s3://bucket/recording, to which shards are sent whole."""

    config: HarvestConfig = field(default_factory=HarvestConfig)

    context: int | None = None
    """Rows of a context: <bos>, then text. None: 256; of pictures, the patches of one and 64 rows of text beside them."""

    batch_contexts: int | None = None
    """Contexts run at once. None: 16, or as many as hold 16,384 tokens with --streamed."""

    text_field: str = "text"
    """Field or column that holds the text, a chat, or token ids."""

    fim: str | None = None
    """Turn documents into fill-in-the-middle examples, as in psm:0.45,spm:0.45: the share of the documents for each order of
    prefix, suffix and middle (psm, spm, spm_joint). The rest stays plain text. With files:4 up to four documents that fit whole
    share a context, the file separator between them. For models with infilling, as CodeGemma."""

    fim_seed: int = 0
    """Random seed for where documents are cut with --fim."""

    compute_dtype: str = "auto"
    """What the model computes in: auto (bfloat16 on cuda, else float32), float32, bfloat16 or float16. --dtype is what is
    stored."""

    streamed: bool = False
    """Keep the weights on disk and read one block at a time, for a model larger than memory: each batch of 16,384 tokens, or
    of --batch-contexts, reads them once."""

    staging: Path = STAGING
    """Folder below which the shards for an address are made before they are sent."""

    pictures: PictureSettings = field(default_factory=PictureSettings)


def harvest(
    config: Harvest | str | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_scan: OnProgress | None = None,
    confirm: Callable[[Any], bool] | None = None,
    **settings: Any,
) -> Any:
    """Record activations of a model on a corpus; returns the recording, an `ActivationStore`.

    Stopped at any moment, the same call continues, and the recording is byte for byte that of an uninterrupted run. With more
    `tokens` it extends the recording. Without `sites` the residual stream after the middle layer is recorded.

    Pictures are tried first, for up to a minute, of which `on_scan` reports. `confirm` is called with the plan (sites, size,
    time, pictures that cannot be used) before work begins; if it returns False nothing is done and the result is None. Under
    torchrun only the first process plans and returns the recording.

    Raises:
        ConfigError, CheckpointError: a setting or a model that cannot be.
        ActivationsError: an unknown site, a corpus without text, a disk without room, a recording of something else.
    """
    if "site" in settings:  # as the flag is called
        settings["sites"] = settings.pop("site")
    job = resolve(Harvest, config, settings, first="model")
    if not job.streamed and find_device(job.device).type == "cpu":
        dtype = "float32" if job.compute_dtype == "auto" else job.compute_dtype
        refuse_without_room(job.model, dtype, job.revision, adapter=job.adapter)
    model = job.load_model(streamed=job.streamed, pictures=True)
    return harvest_of(model, job, on_progress, on_scan, confirm)


def harvest_of(
    model: Any,
    job: Harvest,
    on_progress: OnProgress | None = None,
    on_scan: OnProgress | None = None,
    confirm: Callable[[Any], bool] | None = None,
) -> Any:
    """`harvest` of a model that is loaded.

    Raises:
        ConfigError, ActivationsError: as there.
    """
    from scope.activations.harvest import harvest as room
    from scope.activations.harvest.ranks import ProcessRank
    from scope.sites import match_sites
    from scope.workflows.text import corpus_for, inputs_for, reads_pictures

    sites = job.config.sites or (middle_residual(model.sites()),)
    recorded: dict[str, Any] = {"sites": sites, "context": job.context or job.config.context}
    matched = match_sites(sites, model.sites())
    corpus = corpus_for(model, job.corpus, matched, job.text_field, job.pictures)
    inputs = inputs_for(model, matched, job.pictures, job.fim, job.fim_seed)
    if reads_pictures(model):
        recorded |= _picture_sizes(inputs, job)
    if job.batch_contexts is not None:
        recorded["batch_contexts"] = job.batch_contexts
    elif job.streamed:
        recorded["batch_contexts"] = max(1, _STREAMED_TOKENS // recorded["context"])
    asked = model, inputs, corpus, replace(job.config, **recorded), job.out, model.provenance
    planned = None
    if ProcessRank.of_environment().leads:
        planned = room.plan(*asked, staging=job.staging, on_scan=on_scan)
        if confirm is not None and not confirm(planned):
            return None
    return room.harvest(*asked, on_progress, planned, job.staging)


def _picture_sizes(inputs: Any, job: Harvest) -> dict[str, int]:
    """The rows of a context of pictures, and rows of a shard such that its pictures fit memory."""
    default = HarvestConfig()
    asked = job.context or (None if job.config.context == default.context else job.config.context)
    context, side = inputs.context_for(asked), inputs.identity.get("picture_size", 1)
    most = max(1, _PIXEL_BYTES // (3 * 4 * side * side)) * context
    return {"context": context, "shard_rows": min(job.config.shard_rows, most)}


def middle_residual(sites: dict[str, int]) -> str:
    """The residual stream after the middle layer: of a language model, or else of the tower that comes first."""
    residuals = [site for site in sites if site.endswith("hook_resid_post")]
    of_trunk = [site for site in residuals if site.startswith("blocks.")]
    tower = [site for site in residuals if site.split(".")[0] == residuals[0].split(".")[0]]
    residuals = of_trunk or tower
    return residuals[len(residuals) // 2]


def refuse_without_room(
    model: str, dtype: str, revision: str | None = None, free: int | None = None, adapter: str | None = None
) -> None:
    """Hold the size of a model's weights against the free memory before they are loaded. `free` bytes are by default what the
    system reports.

    Raises:
        ConfigError: the weights in `dtype` need more. The message says how large they are and what to do.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    import math

    from scope.errors import ConfigError
    from scope.free_memory import free_memory
    from scope.models.adapters import find_model
    from scope.models.checkpoints import language_files, read_config, weight_files
    from scope.models.families import family_of
    from scope.models.stored import stored_tensors

    item_bytes = {"float32": 4, "bfloat16": 2, "float16": 2}
    free = free_memory() if free is None else free
    if free is None or model.startswith("lens:") or dtype not in item_bytes:
        return
    folder = find_model(model, adapter, revision).base
    raw = read_config(folder)
    tensors = stored_tensors(weight_files(folder) | language_files(raw, folder)).values()
    needed = sum(math.prod(t.shape) for t in tensors if t.name != "lm_head.weight") * item_bytes[dtype]
    if needed > free:
        ways = ["--streamed to keep them on disk and read one block at a time"] if family_of(raw, model).streams else []
        ways += ["--compute-dtype bfloat16 for half of it"] if dtype == "float32" else []
        way_out = f"Add {', or '.join(ways)}." if ways else "A model that reads pictures is not streamed: take a smaller one."
        raise ConfigError(
            f"The weights of {model} take {needed / 1e9:.1f} GB as {dtype}; {free / 1e9:.1f} GB of memory are free.\n"
            f"  {way_out}"
        )
