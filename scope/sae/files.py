"""Dictionaries on disk: saved in SAELens' layout with a scope.json beside it, loaded from that, plain SAELens, or
Gemma Scope."""

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from scope.errors import ConfigError, DictionaryError
from scope.sae.base import SAE
from scope.sae.formats import gemma_scope, sae_lens
from scope.sae.kinds import KINDS

MANIFEST = "scope.json"
SCHEMA = 1


def save_sae(sae: SAE, folder: Path | str) -> Path:
    """Write a dictionary; scope.json goes last and names the hash of the weights, so a torn folder is known as one.

    The dictionary must be one of raw activations: `sae.fold` what it was trained on beforehand.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    sae_lens.write(sae, folder)
    sae.provenance["weights_sha256"] = file_hash(folder / sae_lens.WEIGHTS)
    manifest = {
        "schema": SCHEMA,
        "kind": sae.kind,
        "site": sae.site,
        "config": asdict(sae.config),
        "provenance": sae.provenance,
    }
    sae_lens.write_json(folder / MANIFEST, manifest)
    return folder


def load_sae(folder_or_id: Path | str, device: str = "cpu") -> SAE:
    """A dictionary in float32, from a folder, a params.npz, or a hub id followed by the folder within its repository
    (google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82).

    Raises:
        DictionaryError: nothing there, a damaged or torn folder, a form that cannot be read.
        ConfigError: a device that this machine does not have.
    """
    path = Path(folder_or_id).expanduser()
    if path.is_dir():
        sae = _from_folder(path)
    elif path.is_file() and path.suffix == ".npz":
        sae = gemma_scope.read(path)
    elif path.exists():
        raise DictionaryError(f"{path} is no dictionary. Give a folder, or a params.npz.")
    else:
        sae = _from_hub(str(folder_or_id))
    try:
        return sae.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch says either of a device that is not there
        raise ConfigError(f"Device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def _from_folder(folder: Path) -> SAE:
    if (folder / MANIFEST).exists():
        return _ours(folder)
    if (folder / sae_lens.CONFIG).exists():
        sae = sae_lens.read(folder)
        sae.provenance["weights_sha256"] = file_hash(folder / sae_lens.WEIGHTS)
        return sae
    if (folder / "params.npz").exists():
        sae = gemma_scope.read(folder / "params.npz", str(folder.resolve()))
        sae.provenance["weights_sha256"] = file_hash(folder / "params.npz")
        return sae
    unfinished = folder / "checkpoint.safetensors"
    if unfinished.exists():
        raise DictionaryError(f"{folder} holds a training run that has not finished. Give its `scope train` command again.")
    raise DictionaryError(
        f"{folder} holds no dictionary: neither {sae_lens.CONFIG} with {sae_lens.WEIGHTS}, nor params.npz.\n"
        f"  It holds: {', '.join(sorted(p.name for p in folder.iterdir())[:12]) or 'nothing'}"
    )


def _ours(folder: Path) -> SAE:
    manifest = sae_lens.read_json(folder / MANIFEST)
    if manifest.get("schema") != SCHEMA or manifest.get("kind") not in KINDS:
        raise DictionaryError(
            f"{folder / MANIFEST} has schema {manifest.get('schema')} and kind {manifest.get('kind')!r}; "
            f"this version reads schema {SCHEMA} and {', '.join(KINDS)}."
        )
    sae = sae_lens.read(folder)
    found, said = file_hash(folder / sae_lens.WEIGHTS), manifest.get("provenance", {}).get("weights_sha256")
    if found != said:
        raise DictionaryError(
            f"The weights in {folder} are not what {MANIFEST} describes (sha256 {found[:12]}, expected {str(said)[:12]}).\n"
            f"  Copy the folder again, or delete {MANIFEST} to read it as a plain SAELens folder."
        )
    sae.config = config_from(manifest["kind"], manifest["config"], folder)
    if (sae.config.d_in, sae.config.d_sae) != tuple(sae.W_enc.shape):
        raise DictionaryError(f"{folder / MANIFEST} and the weights disagree about the sizes of the dictionary.")
    sae.site, sae.provenance = manifest["site"], manifest["provenance"]
    return sae


def config_from(kind: str, values: dict[str, Any], where: Path | str):
    """A kind's config from JSON; fields of other versions are refused by name."""
    config = KINDS[kind].config
    unknown = set(values) - {f.name for f in fields(config)}
    if unknown:
        raise DictionaryError(f"{where} has settings of another version: {', '.join(sorted(unknown))}.")
    try:
        return config(**values)
    except (ConfigError, TypeError) as error:
        raise DictionaryError(f"The settings in {where} cannot be: {error}") from None


def _from_hub(name: str) -> SAE:
    parts = name.strip("/").split("/")
    if len(parts) < 3 or name.startswith((".", "/", "~")):
        raise DictionaryError(
            f"There is no folder {name}.\n"
            "  Give a folder that `scope train` wrote, a SAELens folder, a params.npz, or a hub id and the folder in it:\n"
            "  google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
        )
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(repo, f"{inside}/{file}"))

    try:
        try:
            npz = fetch("params.npz")
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            fetch(sae_lens.WEIGHTS)
            return _from_folder(fetch(sae_lens.CONFIG).parent)
        sae = gemma_scope.read(npz, name)
        sae.provenance["weights_sha256"] = file_hash(npz)
        return sae
    except (RepositoryNotFoundError, LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise DictionaryError(
            f"There is no folder {name}, and it could not be fetched from the hub as {inside} in {repo}:\n"
            f"  {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None


def file_hash(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
