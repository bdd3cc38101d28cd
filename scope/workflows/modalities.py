"""`scope.modalities`: does a latent of a SigLIP mean a word in pictures and in texts alike?"""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from scope.progress import OnProgress
from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings, resolve
from scope.workflows.text import PictureSettings


@dataclass(frozen=True, kw_only=True)
class CompareModalities(ModelSettings, PictureSettings):
    """What to check on which pictures. Each field is also a flag of `scope modalities`."""

    sae: Path
    """SAE of `vision.hook_pooled` of a SigLIP."""

    corpus: str = "scenes:400"
    """Pictures with texts: as in `scope harvest --corpus`."""

    text_field: str = "text"
    """Field or column that holds the text beside a picture."""

    word: tuple[str, ...] = ()
    """Words to check; by default those that stand in 5 to 95 of a hundred texts."""

    pictures: int = 400
    """Pictures to read at most."""

    draws: int = 40
    """Exchanges of the pictures, and of the texts, that chance is measured on."""

    seed: int = 0
    """Random seed for the halves and the exchanges."""

    csv: Path | None = None
    """Write a row a word here."""

    out: Path | None = None
    """Write everything here as JSON, with what it was made from."""

    html: Path | None = None
    """Write the table here as a page of its own."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the model's."""


def modalities(config: CompareModalities | Any = None, *, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Which latents of an SAE tell a word in pictures, and whether these tell it in texts too, beside chance. Returns a
    `scope.circuits.modalities.Modalities`.

    Raises:
        ConfigError: a model that is no SigLIP, or an SAE of another site.
        EditError: too few pictures, or a word that stands in too few texts.
        CorpusError, PictureError: pictures that cannot be read. DictionaryError: an SAE that does not fit.
    """
    from scope.circuits.modalities import modalities as in_memory
    from scope.html_page import html_page
    from scope.sae.files import read_sae
    from scope.workflows.text import corpus_for

    job = resolve(CompareModalities, config, settings, first="sae")
    for file in filter(None, (job.csv, job.out, job.html)):
        refuse_unwritable(file)
    sae = read_sae(job.sae, job.device)
    model = job.load_model(sae.provenance, pictures=True)
    corpus = corpus_for(model, job.corpus, [sae.site], job.text_field, job)
    documents = list(islice((d for d in corpus.documents(0) if d.picture is not None), job.pictures))
    pictures, texts = [d.picture for d in documents], [d.text for d in documents]
    how = {"draws": job.draws, "any_model": job.any_model, "seed": job.seed, "on_progress": on_progress}
    found = in_memory(model, sae, pictures, texts, job.word or None, **how)
    found = replace(found, provenance={**found.provenance, "corpus": corpus.identity})
    if job.out:
        found.to_json(job.out)
    if job.csv:
        write_whole(job.csv, found.to_frame().to_csv(index=False))
    if job.html:
        write_whole(job.html, html_page("Words in pictures and in texts", found._repr_html_()))
    return found
