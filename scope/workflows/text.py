"""The contexts that a workflow runs a model on, of text or of pictures: of a corpus, of a recording, or held out from one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """How a corpus of pictures is read. Each field is also a flag of the commands that read one."""

    picture_field: str | None = None
    """Field or column that holds pictures. None: image, picture, file_name, or the like."""

    question_field: str | None = None
    """Field or column that holds what is asked of a picture. None: question, prompt, prefix, or the like."""

    answer_field: str | None = None
    """Field or column that holds the answer. None: answer, suffix, label, or the like."""

    prompt: str = "caption en"
    """What a PaliGemma is asked of pictures whose corpus has no question; the text beside them is then the answer."""

    queries: bool = False
    """For a ColPali: read the corpus as texts, each line as a query."""

    bad_pictures: Literal["refuse", "skip"] = "refuse"
    """Pictures that cannot be read: refuse names them and does not begin, or ends the work at one that is found later; skip
    leaves them out, counted and named in the recording. They are tried before the model runs: decoded for half a minute, then
    for another only their headers; what that does not reach, and what is streamed from the hub, is tried when it is read."""


def reads_pictures(model: Any) -> bool:
    """Whether a model takes pictures."""
    from scope.models.face import VisionModel

    return isinstance(model, VisionModel)


def corpus_for(model: Any, spec: str, sites: Sequence[str], text_field: str, settings: PictureSettings) -> Any:
    """The corpus that a model reads for some sites: of pictures where it takes them, else of text.

    Raises:
        CorpusError: there is none, or it holds no pictures.
    """
    from scope.activations.corpus.sources import lines_of, open_corpus
    from scope.activations.errors import CorpusError
    from scope.activations.pictures.fields import PictureFields
    from scope.activations.pictures.sources import open_pictures

    if not reads_pictures(model):
        return open_corpus(spec, text_field)
    if settings.queries:
        return lines_of(open_corpus(spec, text_field))
    fields = PictureFields(
        picture=settings.picture_field,
        text=None if text_field == "text" else text_field,
        question=settings.question_field,
        answer=settings.answer_field,
    )
    try:
        return open_pictures(spec, fields)
    except CorpusError as error:
        if not all(site.startswith("text.") for site in sites):
            way_out = "\n  To read its texts as queries: --queries." if hasattr(model, "embed_queries") else ""
            raise CorpusError(f"{error}{way_out}") from None
        return open_corpus(spec, text_field)  # a text tower reads text without pictures too


def inputs_for(model: Any, sites: Sequence[str], settings: PictureSettings, fim: str | None = None, fim_seed: int = 0) -> Any:
    """What turns the documents of a corpus into a model's inputs for some sites.

    Raises:
        ConfigError: sites of several kinds of rows, or infilling of a model that reads pictures.
    """
    if not reads_pictures(model):
        if settings.queries:
            raise ConfigError("--queries is for a ColPali, and this model reads text as it is. Leave it out.")
        return maker(model.tokenizer, fim, fim_seed)
    if fim:
        raise ConfigError(f"--fim is for text, and a {model.cfg.family_name} reads pictures. Leave it out.")
    return model.inputs_for(sites, _options(settings))


def _options(settings: PictureSettings) -> Any:
    from scope.models.pictures.inputs import InputOptions

    return InputOptions(prompt=settings.prompt, bad_pictures=settings.bad_pictures, queries=settings.queries)


def maker(tokenizer: Any, fim: str | None, fim_seed: int = 0) -> Any:
    """What turns documents into contexts: the tokenizer alone, or with `fim` the maker of infilling examples.

    Raises:
        CorpusError: shares that cannot be, or a tokenizer without the marks of infilling.
    """
    from scope.activations.corpus.infill import FimMaker, FimShares

    return FimMaker(tokenizer, FimShares.parse(fim), fim_seed) if fim else tokenizer


def inputs_of_corpus(
    model: Any, corpus: Any, context: int, n: int, seed: int, fim: str | None = None, fim_seed: int = 0
) -> tuple[Any, dict[str, Any]]:
    """(contexts with documents and roles, what text they are) from a corpus that a seed orders.

    Raises:
        ConfigError: the model does not take contexts of that length.
        CorpusError: see `maker`.
    """
    from scope.activations.corpus.contexts import maker_of

    if not 2 <= context <= model.cfg.n_ctx:
        raise ConfigError(f"context is {context}; this model takes 2 to {model.cfg.n_ctx} tokens.")
    made = maker_of(maker(model.tokenizer, fim, fim_seed)).stream(corpus.documents(seed), context).take(n)
    described = {"corpus": corpus.identity, "context": context, "seed": seed}
    return made, described | ({"fim": fim, "fim_seed": fim_seed} if fim else {})


def contexts_of_corpus(model: Any, corpus: Any, context: int, n: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """(tokens [n context], the document of each token, what text it is) from a corpus that a seed orders.

    Raises:
        ConfigError: the model does not take contexts of that length.
    """
    import torch

    packed, described = inputs_of_corpus(model, corpus, context, n, seed)
    return torch.from_numpy(packed.tokens).long(), torch.from_numpy(packed.documents).long(), described


def contexts_of_recording(store: Any, folder: Path | str) -> tuple[Any, Any, dict[str, Any]]:
    """The same of all contexts of a recording; the documents are None where it does not know them."""
    import numpy as np
    import torch

    from scope.activations.errors import RecordingError

    described = {"corpus": store.manifest.corpus, "recording": str(folder), "context": store.context}
    try:
        documents = torch.from_numpy(np.asarray(store.documents)).long()
    except RecordingError:  # imported from elsewhere, without them
        documents = None
    return torch.from_numpy(np.asarray(store.tokens)).long(), documents, described


def contexts_held_out(store: Any, corpus: Any, tokenizer: Any, n: int) -> tuple[Any, Any, dict[str, Any]]:
    """The same of documents that follow the recording's last in its corpus, as infilling examples where it holds such.

    Raises:
        CorpusError: fewer than two contexts of text follow it.
    """
    import torch

    from scope.activations.errors import CorpusError
    from scope.activations.read.heldout import following

    recorded = store.manifest.tokenizer
    held_out = following(store, corpus, maker(tokenizer, recorded.get("fim"), recorded.get("fim_seed", 0)), n)
    if len(held_out) < 2:
        raise CorpusError(f"{corpus.spec} holds no two contexts of text after the recording's last document.")
    described = {"corpus": corpus.identity, "held_out": "documents after the recording's last", "context": store.context}
    return torch.from_numpy(held_out.tokens).long(), torch.from_numpy(held_out.documents).long(), described


def pictures_to_score(
    model: Any, site: str, spec: str, n: int, seed: int, settings: PictureSettings, store: Any = None
) -> tuple[Any, dict[str, Any]]:
    """(contexts of pictures with all that the model reads beside them, what they are) of a corpus; with a recording of it, of
    documents that follow the recorded ones.

    Raises:
        CorpusError: the recording is of another corpus, or fewer than two pictures follow it.
    """
    from dataclasses import replace
    from itertools import islice

    from scope.activations.corpus.roles import QUERIES
    from scope.activations.errors import CorpusError

    if store is not None and store.manifest.tokenizer.get("rows") == QUERIES:
        settings = replace(settings, queries=True)
    corpus = corpus_for(model, spec, [site], "text", settings)
    described, begin = {"corpus": corpus.identity, "seed": seed}, 0
    if store is not None:
        if store.manifest.corpus != corpus.identity:
            raise CorpusError(f"{store.folder} was made from another corpus than {spec}. Give the one it was made from.")
        seed, begin = store.manifest.config.seed, store.journal[-1].cursor.documents
        settings = replace(settings, prompt=str(store.manifest.tokenizer.get("prompt", settings.prompt)))
        described |= {"seed": seed, "held_out": "documents after the recording's last"}
    options = _options(settings)
    whole = hasattr(model, "prompt_maker") and not settings.queries
    made = model.prompt_maker(options) if whole else model.inputs_for([site], options)
    packed = made.stream(islice(corpus.documents(seed), begin, None), made.context).take(n)
    if len(packed) < 2:
        after = " after the recording's last document" if begin else ""
        raise CorpusError(f"{spec} holds no two pictures{after}. Give a corpus with more, or record fewer of its pictures.")
    return packed, described
