"""The contexts of text that a workflow runs a model on: of a corpus, of a recording, or held out from one."""

from pathlib import Path
from typing import Any

from scope.errors import ConfigError


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
