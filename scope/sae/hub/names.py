"""An SAE by name: where its files are on the hub, and what the name says about it.

    gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical          a release of SAELens and the id in it
    google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82         a hub id and the folder in it
    gemma-2-2b/12-gemmascope-res-16k, also with /12345                    an id of Neuronpedia, and the number of a latent
    https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/12345    an address there, or one of a folder on the hub

`@REVISION` behind the repository, the release or the whole name is a branch, tag or commit of the hub. Upper and lower case
count only where nothing in SAELens' table has that name. A name asks nothing of the network.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scope.errors import DictionaryError
from scope.sae.hub.releases import (
    Published,
    is_gemma,
    model_of,
    neuronpedia_ids,
    not_read,
    published,
    published_in,
    release_of,
    releases,
)

WEIGHTS = ("params.npz", "params.safetensors", "sae_weights.safetensors", "ae.pt", "sae.safetensors")
"""A name may end in the file instead of its folder."""

EXAMPLES = (
    "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical (SAELens' name)",
    "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82 (hub id and folder)",
    "gemma-2-2b/12-gemmascope-res-16k (Neuronpedia's id)",
)
_HUB_PAGE = re.compile(r"([^/]+)/([^/]+)/(?:tree|blob|resolve)/([^/]+)/(.+)")
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class SaeName:
    """What a name says."""

    name: str
    repo: str
    folder: str
    revision: str | None = None
    published: Published | None = None
    """Its row of SAELens' table, where it has one."""

    latent: int | None = None

    @property
    def place(self) -> str:
        """The hub id with the folder in it."""
        return f"{self.repo}/{self.folder}"

    @property
    def lab(self) -> Path:
        """Where the pack of this SAE is kept, whichever of its names is given."""
        words = "-".join(filter(None, (self.repo.rpartition("/")[2], self.folder, self.revision)))
        return Path("runs") / re.sub(r"[^\w.-]+", "-", words)


class NoSuchName(DictionaryError):
    """A text is no name of an SAE, nor like one."""


def is_name(text: str) -> bool:
    """Whether a text names a published SAE of SAELens' table."""
    try:
        return find_name(text).published is not None
    except DictionaryError:
        return False


def name_where_no_folder_is(text: str) -> SaeName | None:
    """What a text says where nothing lies at it as a path and it names a published SAE; else None.

    Raises:
        DictionaryError: it begins as such a name, or is like one; see `find_name`.
    """
    if Path(text).expanduser().exists():
        return None
    try:
        name = find_name(text)
    except NoSuchName:
        return None
    return name if name.published is not None or (name.lab / "pack").is_dir() else None


def find_name(text: str) -> SaeName:
    """What the name of an SAE says.

    Raises:
        DictionaryError: no name at all; an unknown release or id, with the nearest; only the first part of a name, with what
            can follow; an SAE of another model than Gemma, or of a kind that scope does not read.
    """
    path, revision = _path_of(text)
    parts = path.strip("/").split("/")
    if not path or path.startswith((".", "/", "~")) or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise _nothing(text)
    if parts[-1] in WEIGHTS:
        parts.pop()
    for place, part in enumerate(parts):
        if "@" in part:
            parts[place], _, revision = part.partition("@")
    if not parts or not all(parts) or revision == "":
        raise _nothing(text)
    if (release := release_of(parts[0])) is not None:
        return _of_release(text, release, parts[1:], revision)
    if sources := [name for name in neuronpedia_ids() if name.startswith(f"{parts[0].lower()}/")]:
        return _of_neuronpedia(text, parts, revision, sources)
    return _of_repository(text, parts, revision)


def _path_of(text: str) -> tuple[str, str | None]:
    """(what follows the host, a revision in it), of an address; any other text as it is."""
    text = text.strip()
    bare = re.match(r"(www\.)?neuronpedia\.org/|huggingface\.co/|hf\.co/", text, re.IGNORECASE)
    if not bare and not re.match(r"https?:/", text, re.IGNORECASE):
        return text, None
    parts = urlsplit(f"https://{text}" if bare else re.sub(r":/+", "://", text, count=1))  # a Path has one slash there
    host, path = (parts.hostname or "").lower().removeprefix("www."), unquote(parts.path).strip("/")
    if host == "neuronpedia.org":
        return path.removeprefix("api/feature/"), None
    hubs = {"huggingface.co", "hf.co", urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname}
    if host not in hubs:
        raise DictionaryError(
            f"{text} is no address of an SAE: its host is neither neuronpedia.org nor a hub (huggingface.co, or HF_ENDPOINT).\n"
            f"{_ways()}"
        )
    page = _HUB_PAGE.fullmatch(path)
    return (f"{page[1]}/{page[2]}/{page[4]}", page[3]) if page else (path, None)


def _of_release(text: str, release: str, rest: list[str], revision: str | None) -> SaeName:
    if not is_gemma(model_of(release)):
        raise _other_model(release, rest)
    rows = published(release)
    if (why := not_read(rows[0].conversion)) is not None:
        raise DictionaryError(f"{release} holds {why}; scope does not read them.\n{_ways()}")
    found, latent = _row({row.id: row for row in rows}, rest)
    if found is None:
        raise _unknown(text, release, "/".join(rest), [row.id for row in rows])
    return SaeName(name=text, repo=found.repo, folder=found.path, revision=revision, published=found, latent=latent)


def _of_neuronpedia(text: str, parts: list[str], revision: str | None, sources: list[str]) -> SaeName:
    """`sources` are all of that model."""
    source = "/".join(parts[:2]).lower()
    if source in sources:
        release = neuronpedia_ids()[source]
        ids = {row.neuronpedia.lower(): row.id for row in published(release) if row.neuronpedia}
        return _of_release(text, release, [*ids[source].split("/"), *parts[2:]], revision)
    sets = sorted({name.partition("/")[2].partition("-")[2] for name in sources}, key=natural)
    if len(parts) == 1 or parts[1].lower() in sets:
        layers = [
            name for name in sources if len(parts) > 1 and name.partition("-")[0] and name.endswith(f"-{parts[1].lower()}")
        ]
        what = f"On Neuronpedia {'/'.join(parts)} is {'a set' if layers else 'a model'} with several SAEs. Say which"
        shown = sorted(layers, key=natural) if layers else [f"{parts[0]}/LAYER-{name}" for name in sets]
        raise DictionaryError(f"{what}:\n{_line('', shown, 2 * _SHOWN)}\n{_ways()}")
    near = difflib.get_close_matches(source, sources, 4, 0.5)
    raise DictionaryError(
        f"SAELens' table has no SAE that Neuronpedia calls {'/'.join(parts[:2])}.{_meant(near)}\n{_ways()}\n"
        "  If it has files on the hub, give their place: OWNER/REPOSITORY/FOLDER."
    )


def _of_repository(text: str, parts: list[str], revision: str | None) -> SaeName:
    rows = [row for row in published_in("/".join(parts[:2])) if is_gemma(row.model)] if len(parts) > 1 else []
    rest = parts[2:]
    if rows:
        by_path = {row.path: row for row in reversed(rows)}
        found, latent = _row(by_path, rest)
        if found is None:  # SAELens' own names of a folder, as canonical
            found, latent = _row({row.id: row for row in reversed(rows) if row.id not in by_path}, rest)
        if found is not None:
            return _of_release(
                text, found.release, [*found.id.split("/"), *([] if latent is None else [str(latent)])], revision
            )
        inner = "/".join(rest).lower()
        if not rest or any(path.lower().startswith(f"{inner}/") for path in by_path):
            raise _unknown(text, rows[0].repo, "/".join(rest), list(by_path))
    near = difflib.get_close_matches(parts[0].lower(), [release.lower() for release in releases()], 3, 0.8)
    if near or len(parts) < 3:
        near = near or difflib.get_close_matches("/".join(parts).lower(), _all_names(), 3, 0.6)
        whole = [name for name in ("/".join([release, *parts[1:]]) for release in near) if len(parts) > 1 and is_name(name)]
        raise _nothing(text, whole or near)
    return SaeName(name=text, repo="/".join(parts[:2]), folder="/".join(rest), revision=revision)


def _row(rows: dict[str, Published], rest: list[str]) -> tuple[Published | None, int | None]:
    """The row of a name within a release or repository, and the number of a latent behind it."""
    lower = {name.lower(): row for name, row in rows.items()}
    wanted = "/".join(rest)
    found = rows.get(wanted) or lower.get(wanted.lower())
    if found is None and len(rest) > 1 and re.fullmatch(r"[0-9]{1,9}", rest[-1]):
        return lower.get("/".join(rest[:-1]).lower()), int(rest[-1])
    return found, None


def near_folders(name: SaeName) -> str:
    """Folders of the same repository with a like name, as a question; "" where SAELens' table knows none."""
    return _meant(difflib.get_close_matches(name.folder, [row.path for row in published_in(name.repo)], 3, 0.6))


def _all_names() -> list[str]:
    return [release.lower() for release in releases()] + list(neuronpedia_ids())


def _unknown(text: str, within: str, wanted: str, ids: list[str]) -> DictionaryError:
    """The refusal of a release or repository with no id in it, with the first part of one, or with an unknown one."""
    parts = wanted.split("/") if wanted else []
    all_of_them = f"  All that it has: scope list releases {within}"
    for n in range(len(parts), -1, -1):
        begin = "".join(f"{part}/" for part in parts[:n])
        below = [name for name in ids if name.lower().startswith(begin.lower())]
        if below and (n or not parts):
            what = f"{within}/{begin}".rstrip("/")
            says = f"{what} holds {len(below):,} SAEs. Say which:"
            if n < len(parts):
                says = f"{what} has no {'/'.join(parts[n:])}. It has:"
            return DictionaryError(
                f"{says}\n{outline(below, len(begin))}\n  For example: {within}/{_typical(below)}\n{all_of_them}"
            )
    by_lower = {name.lower(): f"{within}/{name}" for name in ids}
    near = [by_lower[name] for name in difflib.get_close_matches(wanted.lower(), by_lower, 3, 0.6)]
    return DictionaryError(f"{within} has no {wanted}.{_meant(near)}\n{all_of_them}")


def outline(ids: list[str], skip: int = 0) -> str:
    """Ids by what they begin with, a line each: `layer_12: width_16k/average_l0_22, ...`; `skip` characters are left out."""
    groups: dict[str, list[str]] = {}
    for name in sorted(ids, key=natural):
        head, _, rest = name[skip:].partition("/")
        groups.setdefault(head, []).append(rest)
    if all(rest == [""] for rest in groups.values()):
        return _line("", list(groups), 2 * _SHOWN)
    return "\n".join(
        _line(f"{head}: " if any(rest) else head, [name for name in rest if name], 6) for head, rest in groups.items()
    )


def _line(head: str, names: list[str], most: int) -> str:
    left = f", … ({len(names):,})" if len(names) > most else ""
    return f"    {head}{', '.join(names[:most])}{left}"


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer_9 before layer_10, and width_524k before width_1m."""
    in_thousands = re.sub(r"(?<=_)(\d+)m(?=/|_|$)", r"\g<1>000k", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", in_thousands)]


def _typical(ids: list[str]) -> str:
    """One of a middle layer and, where there is one, 16k wide, for an example."""
    ordered = sorted([name for name in ids if "16k" in name] or ids, key=natural)
    return ordered[len(ordered) // 2]


def _other_model(release: str, rest: list[str]) -> DictionaryError:
    model, rows = model_of(release), {row.id: row for row in published(release)}
    row = _row(rows, rest)[0] or next(iter(rows.values()))
    return DictionaryError(
        f"{release} holds SAEs of {model}, and by name scope loads those of the Gemma family alone: scope list releases\n"
        "  Models that TransformerLens loads can be taken with lens:, and their SAEs by hub id and folder if in a format that "
        f"scope reads:\n  scope evaluate {row.place} --model lens:{model} --corpus bundled"
    )


def _meant(near: list[str]) -> str:
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _ways() -> str:
    return "  Names of published SAEs: scope list releases"


def _nothing(text: str, near: list[str] | None = None) -> DictionaryError:
    names = "\n    ".join(EXAMPLES)
    return (DictionaryError if near else NoSuchName)(
        f"There is no folder {text or '(an empty name)'}, and no published SAE has that name.{_meant(near or [])}\n"
        f"  Give a folder that `scope train` wrote or one in the format of SAELens, Gemma Scope, Gemma Scope 2, sparsify or "
        f"dictionary_learning, or a name:\n    {names}\n{_ways()}"
    )
