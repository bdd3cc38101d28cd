"""Neuronpedia's names: a source as MODEL/LAYER-SET, a latent in it by number, and the address of either."""

import re

from scope.errors import DictionaryError
from scope.sae.hub.releases import published_at

SITE = "https://www.neuronpedia.org"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def neuronpedia_id(provenance: object) -> str | None:
    """Neuronpedia's id of an SAE, by its provenance; None where it has no page there."""
    if not isinstance(provenance, dict):
        return None
    known = provenance.get("neuronpedia")
    if isinstance(known, str) and _ID.fullmatch(known):
        return known
    source = provenance.get("source")
    try:
        found = published_at(source) if isinstance(source, str) else None
    except DictionaryError:  # without SAELens' table
        found = None
    return None if found is None else found.neuronpedia


def neuronpedia_url(source: str, latent: int | None = None) -> str:
    """The page of a source (gemma-2-2b/12-gemmascope-res-16k), or of a latent in it."""
    return f"{SITE}/{source}" + ("" if latent is None else f"/{latent}")
