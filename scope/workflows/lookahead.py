"""`scope.lookahead`: which latents of an infilling model fire in the middle because of the suffix."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.errors import DictionaryError
from scope.progress import OnProgress
from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings, resolve, sae_of_lab


@dataclass(frozen=True, kw_only=True)
class FindLookahead(ModelSettings):
    """What to test on which text. Each field is also a flag of `scope lookahead`."""

    sae: str
    """SAE of an infilling model: a folder that `scope train` wrote, a lab (a folder with dictionary/), or any that
    `scope features` takes."""

    corpus: str = "bundled"
    """Text as the model was made for, such as a folder of code: as in `scope harvest --corpus`."""

    floor: str | None = None
    """Model that reads the same token ids beside it. By default the base of an adapter; "none" for no such model."""

    pack: Path | None = None
    """Feature pack of the SAE, whose latents' pages are to show the result."""

    n: int = 400
    """Examples."""

    form: str = "psm"
    """Order of the parts: psm, spm or spm_joint."""

    suffixes: int = 3
    """Other suffixes that each example is read with."""

    donors: Literal["documents", "elsewhere"] = "documents"
    """Where they come from: other documents, or elsewhere in the same one, which keeps its topic."""

    middle: int = 32
    """Tokens of a middle at most."""

    context: int = 256
    """Tokens of an example at most; prefix and suffix share what the middle leaves."""

    permutations: int = 999
    """Permutations of the suffixes, which give the null."""

    text_field: str = "text"
    """JSONL field or column that holds the text."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the model's."""

    seed: int = 0
    """Random seed for cuts, exchanged suffixes and permutations."""

    out: Path | None = None
    """Write the result here as JSON; `Lookahead.load` reads it."""

    html: Path | None = None
    """Write a page with the latents found here."""

    csv: Path | None = None
    """Write a row per tested latent here."""


def lookahead(
    config: FindLookahead | str | Path | None = None, *, on_progress: OnProgress | None = None, **settings: Any
) -> Any:
    """Find latents that fire in the middle because of the suffix, beside a null and the model without its adapter. Returns a
    `scope.features.pack.lookahead.Lookahead`; with `pack`, its pages show it.

    Raises:
        ConfigError: a setting that cannot be.
        DictionaryError, PackError, CheckpointError: what cannot be read, or what does not belong together.
        TokensError: the model was not made for infilling, or too little text.
    """
    from scope.activations.corpus.sources import open_corpus
    from scope.features.compare.lookahead import lookahead as test_latents
    from scope.features.pack.data import PackData
    from scope.features.pack.lookahead import FILE
    from scope.features.pack.write import add_file
    from scope.models.adapters import find_model
    from scope.models.load import load_model
    from scope.provenance import ModelId
    from scope.sae.files import parameters_sha256, read_sae

    job = resolve(FindLookahead, config, settings, first="sae")
    for file in (job.out, job.html, job.csv):
        if file:
            refuse_unwritable(file)
    sae = read_sae(sae_of_lab(job.sae), device=job.device)
    if job.pack and PackData.open(job.pack).manifest.owner != parameters_sha256(sae):
        raise DictionaryError(f"{job.pack} shows another SAE than {job.sae}. Give the pack that was made from it.")
    model, floor = job.load_model(sae.provenance), job.floor
    if floor is None:
        places = find_model(job.model or ModelId.of(sae.provenance.get("model")).name or "bundled", job.adapter, job.revision)
        floor = places.base_name if places.adapter else "none"
    result = test_latents(
        model,
        sae,
        (document.text for document in open_corpus(job.corpus, job.text_field).documents(job.seed)),
        job.n,
        form=job.form,
        suffixes=job.suffixes,
        donors=job.donors,
        middle=job.middle,
        context=job.context,
        floor=None if floor == "none" else load_model(floor, dtype=job.dtype, device=job.device),
        permutations=job.permutations,
        corpus=job.corpus,
        seed=job.seed,
        any_model=job.any_model,
        on_progress=on_progress,
    )
    if job.pack:
        add_file(job.pack, FILE, result.to_json().encode(), {})
    if job.out:
        result.save(job.out)
    if job.html:
        result.to_html(job.html)
    if job.csv:
        write_whole(job.csv, result.to_frame().to_csv(index=False))
    return result
