"""Dictionaries on disk: saved in SAELens' layout with a scope.json beside it; loaded from that and from every format in
`formats/`, from folders, files and the hub."""

import copy
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from scope.device import find_device
from scope.errors import ConfigError, DictionaryError
from scope.hub_files import fetch
from scope.renamed import warn
from scope.sae.base import SAE
from scope.sae.claims import Provenance
from scope.sae.formats import dictionary_learning, gemma_scope, gemma_scope_2, sae_lens, sparsify
from scope.sae.formats.arrays import build, fill, refuse_other_sizes
from scope.sae.formats.files import read_config
from scope.sae.hub.names import find_name, is_name, near_folders
from scope.sae.hub.neuronpedia import neuronpedia_id
from scope.sae.hub.releases import size_of
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.kinds import KINDS
from scope.sae.topk import TopKSAE
from scope.sae.transcoder import Transcoder
from scope.whole_files import file_sha256, write_json

MANIFEST = "scope.json"
SCHEMA = 1

_Reader = Callable[[Path, str | None], SAE]
FORMATS: dict[str, tuple[str, _Reader]] = {
    sae_lens.WEIGHTS: ("SAELens", lambda folder, named: sae_lens.read(folder)),
    gemma_scope.FILE: ("Gemma Scope", lambda folder, named: gemma_scope.read(folder / gemma_scope.FILE, named)),
    gemma_scope_2.WEIGHTS: ("Gemma Scope 2", gemma_scope_2.read),
    sparsify.WEIGHTS: ("sparsify", sparsify.read),
    dictionary_learning.WEIGHTS: ("dictionary_learning", lambda folder, named: dictionary_learning.read(folder)),
}
"""File that holds the weights -> (name of the format, what reads a folder and the name that it goes by)."""

_BESIDE = ("cfg.json", "config.json", MANIFEST, sae_lens.SPARSITY, sae_lens.SCALER, "eval_results.json")


class LocalFolderWarning(UserWarning):
    """A folder was read whose path is also the name of a published SAE."""


def save_sae(sae: SAE, folder: Path | str) -> Path:
    """Write a dictionary; scope.json goes last and names the hash of the weights, so a torn folder is known as one.

    The dictionary must be one of raw activations: `sae.fold` what it was trained on beforehand. Of a TopK or BatchTopK whose
    rows are still free, what is written has unit rows, so that it decides once loaded as it does now; itself it stays free.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    sae_lens.write_arrays(_competed(sae), folder)
    sae.provenance["weights_sha256"] = file_sha256(folder / sae_lens.WEIGHTS)
    manifest = {
        "schema": SCHEMA,
        "kind": sae.kind,
        "site": sae.site,
        "config": asdict(sae.config),
        "provenance": sae.provenance,
    }
    write_json(folder / MANIFEST, manifest)
    return folder


def _competed(sae: SAE) -> SAE:
    """The dictionary, or a copy with unit rows of a TopK whose rows are free: the files have no field for that."""
    if not (isinstance(sae, TopKSAE) and sae.free):
        return sae
    unit = copy.deepcopy(sae)
    unit.unit_decoder()
    return unit


def read_sae(folder_or_id: Path | str, device: str | torch.device = "cpu", site: str | None = None) -> SAE:
    """A dictionary in float32: from a folder that `scope train` wrote or one in the format of SAELens, Gemma Scope, Gemma
    Scope 2, dictionary_learning or sparsify; from the file in it that holds the weights; or by name: a release of SAELens and
    the id in it (gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical), a hub id and the folder in its repository, or
    an id of Neuronpedia (gemma-2-2b/12-gemmascope-res-16k); see `scope.sae.hub.names`.

    Whatever the format did beside its arrays is folded into them: it reads the site's activations as the model makes them.

    `device` may be "auto": cuda, else mps, else cpu. `site` is where it reads, for sources that do not say, as a params.npz
    outside of its release, or say what is wrong; of a transcoder "READS->WRITES".

    Raises:
        DictionaryError: nothing there, a damaged, torn or unfinished folder, a form that cannot be read, pickled objects.
        ConfigError: a device that this machine does not have.
    """
    path = Path(folder_or_id).expanduser()
    if path.is_dir():
        sae = _from_folder(path)
    elif path.is_file() and path.name in FORMATS:
        sae = _from_folder(path.parent)
    elif path.is_file() and path.suffix == ".npz":
        sae = gemma_scope.read(path)
        sae.provenance["weights_sha256"] = file_sha256(path)
    elif path.exists():
        raise DictionaryError(f"{path} is no dictionary. Give a folder, or one of {', '.join(FORMATS)}.")
    else:
        sae = _from_name(str(folder_or_id))
    if path.exists() and not path.is_absolute() and is_name(str(folder_or_id)):
        warnings.warn(
            f"{folder_or_id} is a folder here and the name of a published SAE; the folder is read. To fetch the published one, "
            "give the command where no such folder is.",
            LocalFolderWarning,
            stacklevel=2,
        )
    if site is not None:
        sae = _at(sae, site)
    sae.loaded_from = str(folder_or_id)
    if (source := neuronpedia_id(sae.provenance)) is not None:
        sae.provenance["neuronpedia"] = source
    return sae.to(find_device(device)).eval()


def _at(sae: SAE, site: str) -> SAE:
    """The dictionary at another site than its source says, or as the transcoder from the first to the second of two.

    Raises:
        DictionaryError: two sites of what cannot be a transcoder: its arrays are not those of one.
    """
    reads, arrow, writes = (part.strip() for part in site.partition("->"))
    if arrow:
        if not isinstance(sae, JumpReLUSAE | Transcoder) or not writes:
            raise DictionaryError(f"{site!r} names two sites, and a {sae.kind} is no transcoder. Give the one that it reads.")
        arrays = {name: p.detach() for name, p in sae.named_parameters()}
        known = {"provenance": sae.provenance, "loaded_from": sae.loaded_from}
        settings = {"k": sae.config.k} if isinstance(sae, Transcoder) else {}
        sae = build("transcoder", arrays, str(sae.loaded_from), reads, site_out=writes, **settings)
        vars(sae).update(known)
    sae.site = sae.provenance["site"] = reads
    return sae


def _from_folder(folder: Path, named: str | None = None) -> SAE:
    """`named` is what the folder is called where it was fetched from, if that says more than its path."""
    if (folder / MANIFEST).exists():
        return _ours(folder)
    weights = [file for file in FORMATS if (folder / file).exists()]
    if len(weights) > 1:
        raise DictionaryError(f"{folder} holds several dictionaries: {', '.join(weights)}. Give one of these files.")
    if weights:
        sae = FORMATS[weights[0]][1](folder, named)
        sae.provenance["weights_sha256"] = file_sha256(folder / weights[0])
        return sae
    there = sorted(p.name for p in folder.iterdir())
    if "checkpoint.safetensors" in there:
        raise DictionaryError(f"{folder} holds a training run that has not finished. Give its `scope train` command again.")
    cut = [name for name in there if name.endswith((".incomplete", ".part", ".tmp", ".crdownload"))]
    if cut:
        raise DictionaryError(f"{folder} holds a download that was interrupted ({', '.join(cut)}). Fetch it again.")
    beside = next((name for name in there if name in ("cfg.json", "config.json")), None)
    if beside:
        raise DictionaryError(f"{folder} holds {beside} but no {' and no '.join(FORMATS)}. Copy or fetch the whole folder.")
    raise DictionaryError(
        f"{folder} holds no dictionary: none of {', '.join(FORMATS)}.\n  It holds: {', '.join(there[:12]) or 'nothing'}"
    )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """scope.json."""

    schema: int
    kind: str
    site: str
    config: dict[str, Any]
    provenance: dict[str, Any]


def _ours(folder: Path) -> SAE:
    manifest = read_config(folder / MANIFEST, Manifest)
    kind = manifest.kind
    if manifest.schema != SCHEMA or kind not in KINDS:
        raise DictionaryError(
            f"{folder / MANIFEST} has schema {manifest.schema} and kind {kind!r}; "
            f"this version reads schema {SCHEMA} and {', '.join(KINDS)}."
        )
    expected = Provenance.of(manifest.provenance, folder / MANIFEST).weights_sha256
    _refuse_other_kind(kind, folder)
    arrays = sae_lens.stored(folder)
    actual = file_sha256(folder / sae_lens.WEIGHTS)
    if actual != expected:
        raise DictionaryError(
            f"The weights in {folder} are not what {MANIFEST} describes: sha256 {actual[:12]}, not {str(expected)[:12]}.\n"
            f"  Copy the folder again, or delete {MANIFEST} to read it as a plain SAELens folder."
        )
    config = config_from(kind, manifest.config, folder / MANIFEST)
    refuse_other_sizes(config, arrays, str(folder / MANIFEST), str(folder))
    sae = fill(kind, config, manifest.site, arrays, str(folder))
    sae.provenance = manifest.provenance | sae.provenance
    return sae


def _refuse_other_kind(kind: str, folder: Path) -> None:
    """Compare the manifest's kind with cfg.json, since the hash in the manifest covers the weights alone.

    Raises:
        DictionaryError: they name kinds that are not written alike.
    """
    if not (folder / sae_lens.CONFIG).exists():
        return
    named = read_config(folder / sae_lens.CONFIG, sae_lens.Config).architecture
    as_written = {"batch_topk": ("jumprelu",), "transcoder": ("jumprelu_transcoder", "jumprelu_skip_transcoder")}
    if named not in as_written.get(kind, (kind,)):
        raise DictionaryError(
            f"{folder / MANIFEST} says kind {kind}, and {sae_lens.CONFIG} beside it says architecture {named!r}.\n"
            f"  One of the two is of another dictionary. Copy the folder again, or delete {MANIFEST} to read it as a plain "
            "SAELens folder."
        )


def config_from(kind: str, values: dict[str, Any], where: Path | str):
    """A kind's config from JSON; fields of other versions are refused by name."""
    config = KINDS[kind].config
    unknown = set(values) - {f.name for f in fields(config)}
    if unknown:
        raise DictionaryError(f"{where} has settings of another version: {', '.join(sorted(unknown))}.")
    try:
        return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (ConfigError, TypeError) as error:
        raise DictionaryError(f"The settings in {where} cannot be: {error}") from None


def _from_name(text: str) -> SAE:
    """An SAE by a name that `scope.sae.hub.names` knows, from the hub or its cache."""
    name = find_name(text)
    wanted = [f"{name.folder}/{file}" for file in (*FORMATS, *_BESIDE)]
    way_out = "give a folder that holds the files"
    size = size_of(name.repo, name.folder)
    root = fetch(name.repo, wanted, DictionaryError, way_out, name=name.place, revision=name.revision, size=size)
    if not (root / name.folder).is_dir():
        raise DictionaryError(
            f"There is no folder {text} here, and {name.repo} has no dictionary in {name.folder}, or it was never fetched here "
            f"and the hub cannot be reached.{near_folders(name)}"
        )
    sae = _from_folder(root / name.folder, name.place)
    sae.provenance |= {"source": name.place, "revision": root.name}
    if name.published is not None:
        sae.provenance |= {"model": {"model": name.published.model}, "release": name.published.name}
    return sae


def parameters_sha256(sae: SAE) -> str:
    """SHA-256 over the names and float32 bytes of everything that decides what a dictionary computes: the same from whatever
    file it was read. Packs record it, and certificates are found by it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def __getattr__(name: str) -> Any:
    """Programs exported by version 0.1.0 import `load_sae` from here."""
    if name == "load_sae":
        warn("scope.sae.files.load_sae", "scope.load_sae")
        return read_sae
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
