"""The pictures on which a certificate measures an SAE of a model that reads them: some of what it was trained on, if possible.

That is the corpus of the training, or the small pictures of its recording. Where neither is on this machine, or the small ones
show less than the model sees, the numbers that the SAE declares are not held against it.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from scope.activations.corpus.document import Document
from scope.activations.corpus.inputs import Inputs
from scope.activations.corpus.roles import RULES, left_out_by
from scope.activations.corpus.sources import lines_of, open_corpus
from scope.activations.errors import CorpusError
from scope.activations.pictures.fields import PictureFields
from scope.activations.pictures.sources import open_pictures
from scope.activations.read.store import ActivationStore
from scope.errors import ConfigError, ScopeError
from scope.evaluation.certificate.training_text import TOKENS, Text
from scope.models.face import VisionModel
from scope.models.pictures.inputs import THUMBNAIL, InputOptions
from scope.sae.base import SAE
from scope.sae.claims import Provenance, TextFrom

MOST = 128
"""Pictures of the check."""

_AT_ONCE, _FEWEST = 8, 64  # pictures that are made into inputs at once; rows that are worth a measurement
_SCENES = f"scenes:{MOST}"


@dataclass(frozen=True)
class _Pictures:
    documents: Iterator[Document]
    place: str
    prompt: str | None = None
    missing: str = ""
    """What the SAE was trained on, where these are not quite that."""


def training_pictures(model: VisionModel, sae: SAE) -> Text:
    """Some of the pictures that the SAE was trained on, if its provenance leads to them; else synthetic scenes.

    Raises:
        ConfigError: too few of its rows are on them.
    """
    provenance = Provenance.of(sae.provenance)
    recording, source = provenance.recording or {}, provenance.text_from or TextFrom()
    corpus, rules = recording.get("corpus"), (*RULES, *left_out_by(recording.get("rows", "all")))
    if isinstance(corpus, Mapping):
        with contextlib.suppress(ScopeError, OSError):
            pictures = _recorded(model, corpus, source) if source.recording else _read(corpus, source)
            inputs = None if pictures is None else _rows(model, sae, pictures, rules, source.queries)
            if pictures is not None and inputs is not None:
                return Text(inputs, pictures.place, pictures.missing, pictures.place if pictures.missing else "", rules)
    name = str(corpus.get("name") or corpus.get("kind") or "") if isinstance(corpus, Mapping) else ""
    inputs = _rows(model, sae, _Pictures(open_pictures(_SCENES).documents(), _SCENES), rules, source.queries)
    if inputs is None:
        raise ConfigError(
            f"Hardly any row of synthetic scenes counts at {sae.site}, so there is nothing to measure a certificate on.\n"
            "  Give inputs: certify(model, sae, tokens=model.inputs_for([site]).stream(documents, context).take(n))."
        )
    return Text(inputs, _SCENES, name or "pictures that its files do not name", "synthetic scenes", rules)


def _rows(model: VisionModel, sae: SAE, pictures: _Pictures, rules: tuple[str, ...], queries: bool) -> Inputs | None:
    """Inputs of as many pictures as have `TOKENS` rows that count, at most `MOST`; None if hardly any counts."""
    options = InputOptions(prompt=pictures.prompt or "", bad_pictures="skip", queries=queries)
    maker = model.inputs_for([sae.site, *(() if sae.autoencodes else (sae.site_out,))], options)
    stream = maker.stream(pictures.documents, maker.context_for(None))
    parts: list[Inputs] = []
    rows = n = 0
    while rows < TOKENS and n < MOST:
        packed = stream.take(_AT_ONCE)
        if len(packed):
            parts.append(packed)
            rows, n = rows + int(packed.counted(rules).sum()), n + len(packed)
        if packed.exhausted:
            break
    return Inputs.joined(parts) if rows >= _FEWEST else None


def _read(corpus: Mapping[str, Any], source: TextFrom) -> _Pictures | None:
    """The corpus of a training beside a running model; None if it is another by now, or one of the hub."""
    if source.corpus is None or corpus.get("kind") == "hub":
        return None
    if source.queries:
        opened = lines_of(open_corpus(source.corpus, source.text_field))
        same = json.loads(json.dumps(opened.identity)) == corpus
        return _Pictures(opened.documents(0), source.corpus) if same else None
    fields = {name: corpus.get(f"{name}_field") for name in ("picture", "text", "question", "answer")}
    try:
        opened = open_pictures(source.corpus, PictureFields(**fields))
    except CorpusError:  # a text tower reads text without pictures too
        opened = open_corpus(source.corpus, source.text_field)
    if json.loads(json.dumps(opened.identity)) != corpus:
        return None
    return _Pictures(opened.documents(0), source.corpus, source.prompt)


def _recorded(model: VisionModel, corpus: Mapping[str, Any], source: TextFrom) -> _Pictures | None:
    """The pictures of a recording: drawn again if they are synthetic, else the small ones that it holds."""
    if not Path(source.recording or "").is_dir():
        return None
    store = ActivationStore.open(str(source.recording))
    if store.manifest.corpus != corpus or not store.has_roles:
        return None
    prompt = store.manifest.tokenizer.get("prompt")
    if corpus.get("kind") in ("scenes", "pages"):
        opened = open_pictures(f"{corpus['kind']}:{corpus['n']}")
        if json.loads(json.dumps(opened.identity)) == corpus:
            return _Pictures(opened.documents(store.manifest.config.seed), str(source.recording), prompt)
    facts = store.document_facts[: 2 * MOST]
    shrunk = any(max(f.get("width", 0), f.get("height", 0)) > THUMBNAIL for f in facts)
    sees_less = shrunk and model.cfg.pictures.size > THUMBNAIL
    missing = f"{corpus.get('name') or corpus.get('kind')} in full size" if sees_less else ""
    place = f"small pictures of {source.recording}" if shrunk else str(source.recording)
    return _Pictures(_small(store), place, prompt, missing)


def _small(store: ActivationStore) -> Iterator[Document]:
    """Documents of a recording, with its small pictures."""
    names = zip(store.document_names, store.document_facts, strict=True)
    for number, (name, facts) in enumerate(islice(names, 2 * MOST)):
        if "skipped" not in facts:
            texts = {key: str(facts.get(key, "")) for key in ("question", "answer")}
            yield Document(name, str(facts.get("text", "")), picture=store.thumbnail(number), **texts)
