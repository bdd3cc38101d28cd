"""SAELens' table of published SAEs (pretrained_saes.yaml in its package), read without importing SAELens, which takes seconds.

The table has 42,000 lines. Releases are told apart by its lines, and one is parsed when it is asked for.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from scope.errors import DictionaryError
from scope.typed_json import typed

FILE = "pretrained_saes.yaml"
_GEMMA = re.compile(r"(?:google/)?((?:code|recurrent|shield)?gemma-(?:[\d.]+-)?[\d.]+[bm](?:-it|-pt)?)", re.IGNORECASE)
_WIDTH_OF = {"2b": 2304, "9b": 3584, "27b": 4608}
_HEADS_OF = {"2b": 2048, "9b": 4096}
_GEMMA_SCOPE = re.compile(r"gemma-scope-(2b|9b|27b)-(?:pt|it)-(res|mlp|att|transcoders)/.*width_(\d+)([km])", re.IGNORECASE)
_NOT_READ = {
    "temporal": "temporal SAEs, which read several tokens at once",
    "mntss_clt_layer_transcoder": "layers of a cross-layer transcoder, which predict no site by themselves",
}
"""SAELens' name of a conversion -> what it converts, for those that scope does not read."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One SAE of the table: its names, and where its files are on the hub."""

    release: str
    id: str
    repo: str
    path: str
    model: str
    """Hub id, where it is a Gemma."""

    neuronpedia: str | None = None
    l0: float | None = None
    conversion: str | None = None

    @property
    def name(self) -> str:
        return f"{self.release}/{self.id}"

    @property
    def place(self) -> str:
        return f"{self.repo}/{self.path}"


@dataclass(frozen=True, kw_only=True)
class _Row:
    id: str
    path: str | int
    neuronpedia: str | None = None
    l0: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Release:
    repo_id: str
    model: str
    saes: list[_Row]
    conversion_func: str | None = None


def hub_model(name: str) -> str:
    """The hub id of a Gemma that is named as TransformerLens and Neuronpedia do (gemma-2-2b); any other name as it is."""
    found = _GEMMA.fullmatch(name)
    return f"google/{found[1]}" if found else name


def is_gemma(model: str) -> bool:
    return _GEMMA.fullmatch(model) is not None


def not_read(conversion: str | None) -> str | None:
    """What a release holds, in words, where scope does not read it."""
    return _NOT_READ.get(conversion or "")


def releases() -> list[str]:
    """The names of all releases."""
    return list(_sections())


def release_of(name: str) -> str | None:
    """The release of this name, whatever its case; None where there is none."""
    return {release.lower(): release for release in _sections()}.get(name.lower())


def model_of(release: str) -> str:
    """The model of a release, without parsing its list of SAEs."""
    return _model(_head(release, "model"), _head(release, "repo_id"))


def summary(release: str) -> tuple[int, str, str | None]:
    """(SAEs of a release, their repository, what they are if scope does not read them), without parsing the list."""
    n = len(re.findall(r"^ *- id:", _sections()[release], re.MULTILINE))
    return n, _head(release, "repo_id"), not_read(_head(release, "conversion_func"))


@cache
def published(release: str) -> tuple[Published, ...]:
    """The SAEs of a release.

    Raises:
        DictionaryError: SAELens' table is not as this version knows it.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is written in C, and five times as fast
    way_out = "Install the version of SAELens that constraints.txt names."
    try:
        read = yaml.load(_sections()[release], Loader=loader)
    except yaml.YAMLError as error:
        raise DictionaryError(f"{_file()} is damaged at {release} ({error}). {way_out}") from None
    row = typed(read, _Release, f"{release} in {_file()}", DictionaryError, way_out)
    model = _model(row.model, row.repo_id)
    return tuple(
        Published(
            release=release,
            id=sae.id,
            repo=row.repo_id,
            path=str(sae.path),
            model=model,
            neuronpedia=sae.neuronpedia,
            l0=sae.l0,
            conversion=row.conversion_func,
        )
        for sae in row.saes
    )


def published_in(repo: str) -> list[Published]:
    """The SAEs in a repository of the hub, whatever the case of its name; those with a page on Neuronpedia come first."""
    found = [sae for release in _of_repo().get(repo.lower(), ()) for sae in published(release)]
    return sorted(found, key=lambda sae: sae.neuronpedia is None)


def published_at(path: str) -> Published | None:
    """The SAE whose files lie at a path that ends as one on the hub does: a repository of Gemma Scope and the folder in it."""
    found = re.search(r"(?:^|/|--)(gemma-scope-[\w-]+)(?:/snapshots/\w+)?/(.+?)/?$", path)
    if not found:
        return None
    return next((sae for sae in published_in(f"google/{found[1]}") if sae.path == found[2]), None)


def neuronpedia_ids() -> dict[str, str]:
    """Neuronpedia's id in lower case (gemma-2-2b/12-gemmascope-res-16k) -> the release that the SAE is in."""
    return _neuronpedia()


def size_of(repo: str, path: str) -> int | None:
    """Bytes of the weights, where the name of a Gemma Scope says them: five float32 arrays."""
    found = _GEMMA_SCOPE.search(f"{repo}/{path}")
    if not found:
        return None
    size, part, digits, unit = found.groups()
    latents = 2 ** round(math.log2(int(digits) * (1000 if unit == "k" else 1_000_000)))
    width = (_HEADS_OF if part == "att" else _WIDTH_OF).get(size)
    return None if width is None else 4 * (latents * (2 * width + 2) + width)


def _model(model: str, repo: str) -> str:
    """The table calls the model of gemma-scope-9b-it-res gemma-2-9b; its SAEs are those of gemma-2-9b-it."""
    tuned = re.search(r"gemma-scope-\w+-it-", repo) and not model.endswith("-it")
    return hub_model(f"{model}-it" if tuned else model)


def _head(release: str, field: str) -> str:
    found = re.search(rf"^  {field}:[ ]*(\S+)[ ]*$", _sections()[release], re.MULTILINE)
    return found[1].strip("'\"") if found else ""


@cache
def _of_repo() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for release in _sections():
        found.setdefault(_head(release, "repo_id").lower(), []).append(release)
    return found


@cache
def _neuronpedia() -> dict[str, str]:
    ids = re.compile(r"^ +(?:- )?neuronpedia: *(\S+) *$", re.MULTILINE)
    return {found.strip("'\"").lower(): name for name, text in _sections().items() for found in ids.findall(text)}


@cache
def _sections() -> dict[str, str]:
    """Release -> its lines of the table."""
    try:
        parts = re.split(r"^([^\s#][^\n]*):[ \t]*$", _file().read_text("utf-8"), flags=re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise DictionaryError(
            f"{_file()}, which names the published SAEs, cannot be read ({error}). Install sae-lens."
        ) from None
    return {name.strip("'\""): text for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _file() -> Path:
    spec = find_spec("sae_lens")  # finds the package and runs nothing of it
    if spec is None or spec.origin is None:
        raise DictionaryError(
            "Names of published SAEs are those of SAELens, which is not installed here.\n"
            "  Install it (pip install sae-lens), or give a hub id with the folder in it, or a folder."
        )
    return Path(spec.origin).with_name(FILE)
