"""Says what a folder or file is (recording, SAE, pack, lab, checkpoint, adapter, saved result) and what to type next."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.errors import ConfigError, ScopeError
from scope.sae.hub.releases import published_at
from scope.typed_json import parse_json, read_bytes

_LARGEST = 4 * 2**20
_DEEPEST = 4
_LISTED = 500


@dataclass(frozen=True)
class Described:
    """What lies at a path: its kind in a word or two, what is in it, and a command or line that uses it ("" for none)."""

    path: Path
    kind: str
    content: str
    next: str


def info(path: str | Path) -> Described:
    """What lies at a path.

    Raises:
        ConfigError: there is nothing, or nothing that is known.
    """
    path = Path(path).expanduser()
    if not path.exists():
        beside = [p.name for p in sorted(path.parent.iterdir())[:8]] if path.parent.is_dir() else []
        there = f"\n  {path.parent} holds: {', '.join(beside)}" if beside else ""
        raise ConfigError(f"There is nothing at {path}.{there}\n  What was made here: scope list")
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        what = "folder" if path.is_dir() else "file"
        names = [p.name for p in sorted(path.iterdir())[:8]] if path.is_dir() else []
        holds = f" It holds: {', '.join(names)}." if names else ""
        raise ConfigError(
            f"{path} is no {what} that scope knows.{holds}\n  Known are recordings, SAEs, packs, labs, checkpoints, adapters, "
            "indexes of pages, interventions, trainings and saved results.\n  What lies below a folder: scope list FOLDER"
        )
    return found


def list_folder(folder: str | Path = "runs") -> list[Described]:
    """Everything below a folder that `info` knows, a lab before its parts.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}. Make a first one with scope demo, or name another: scope list FOLDER")
    found: list[Described] = []
    for path in _below(folder, 0):
        one = _of_folder(path) if path.is_dir() else _of_file(path)
        if one is not None:
            found.append(one)
        if len(found) == _LISTED:
            break
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.name.startswith(".") or path.is_symlink():
            continue
        whole = path.is_dir() and _of_folder(path)
        if path.is_dir() or path.suffix in (".json", ".safetensors", ".npz"):
            yield path
        if path.is_dir() and depth < _DEEPEST and (not whole or whole.kind in ("lab", "saved runs")):
            yield from _below(path, depth + 1)


def _of_folder(path: Path) -> Described | None:
    names = set(os.listdir(path))
    if {"dictionary", "pack"} <= names:
        parts = [one.content for name in ("dictionary", "pack") if (one := _of_folder(path / name))]
        return Described(path, "lab", "; ".join(parts), f'scope app {path}   or in Python: lab = scope.open("{path}")')
    if "manifest.json" in names and (found := _of_manifest(path, _object(path / "manifest.json"))) is not None:
        return found
    if "intervention.json" in names:
        about = _object(path / "intervention.json")
        edits = ", ".join(str(row.get("edit")) for row in about.get("sheet") or [] if isinstance(row, dict)) or "edits"
        model = (about.get("model") or {}).get("model") if isinstance(about.get("model"), dict) else None
        forms = [name for name in ("hook.py", "control_vector.gguf") if name in names]
        content = f"{edits}, of {model}; with {', '.join(forms) or 'no further form'}"
        return Described(path, "intervention", content, f"scope steer --intervention {path}   to read: {path / 'card.md'}")
    if "index.json" in names and "shards" in names:
        return Described(path, "index of pages", _pages(_object(path / "index.json")), f"scope pages search {path} QUESTION")
    if "scope.json" in names or ("cfg.json" in names and "sae_weights.safetensors" in names):
        return _sae(path, names)
    if "params.npz" in names:
        return _npz(path / "params.npz")
    if "adapter_config.json" in names:
        config = _object(path / "adapter_config.json")
        base = config.get("base_model_name_or_path") or "a model that it does not name"
        content = f"{config.get('peft_type') or 'PEFT'} adapter of {base}"
        return Described(path, "adapter", content, f"scope diff {base} {path}")
    if "config.json" in names and any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        config = _object(path / "config.json")
        text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
        layers = text.get("num_hidden_layers")
        sizes = f", {layers} layers of width {text.get('hidden_size')}" if layers else ""
        kind = config.get("model_type") or "unnamed model"
        return Described(path, "checkpoint", f"{kind}{sizes}", f"scope harvest --model {path} --out runs/recording")
    if "training.json" in names:
        return Described(path, "training", "not finished: it has no weights yet", f"scope runs {path.parent}")
    if {"monitor.json", "weights.safetensors"} <= names:
        monitor = _object(path / "monitor.json")
        content = f"{monitor.get('method')} for {monitor.get('positive')!r} at {monitor.get('site')}"
        return Described(path, "monitor", content, f'scope monitor run {path} --text "a text"')
    if path.suffix == ".steering":
        n = sum(name.endswith(".json") for name in names)
        return Described(path, "saved runs", f"{n} steering runs of {path.stem}", f"scope app {path.with_suffix('')}")
    return None


def _of_manifest(path: Path, manifest: dict[str, Any]) -> Described | None:
    if manifest.get("format") == "activations" or {"config", "corpus", "layout"} <= manifest.keys():
        config, model = manifest.get("config") or {}, (manifest.get("model") or {}).get("model")
        sites = ", ".join(config.get("sites") or manifest.get("layout", {}).get("sites") or ["activations"])
        shards = len(list(path.glob("shard-*.h5")))
        content = f"{sites} of {model}, {shards} files, {_gigabytes(path)}"
        return Described(path, "recording", content, f"scope train {path} --out runs/dictionary")
    if {"d_sae", "site", "n_tokens"} <= manifest.keys():
        place = " -> ".join(filter(None, (manifest["site"], manifest.get("site_out"))))
        model = (manifest.get("model") or {}).get("model")
        content = f"features of {manifest['d_sae']:,} latents at {place} of {model}, {manifest['n_tokens']:,} tokens"
        return Described(path, "pack", content, f"scope app {path}")
    if {"weights", "sites", "groups"} <= manifest.keys():
        who = [(manifest.get("provenance") or {}).get(name) or {} for name in ("base", "tuned")]
        content = " -> ".join(str(one.get("model") or "a model") for one in who)
        return Described(path, "comparison of models", content, f'in Python: scope.diffing.result.Diff.load("{path}")')
    return None


def _sae(path: Path, names: set[str]) -> Described:
    manifest = _object(path / "scope.json") if "scope.json" in names else {}
    config = manifest.get("config") or _object(path / "cfg.json")
    kind = manifest.get("kind") or config.get("architecture") or "SAE"
    site = (
        manifest.get("site") or config.get("hook_name") or (config.get("metadata") or {}).get("hook_name") or "no stated site"
    )
    model = (
        ((manifest.get("provenance") or {}).get("model") or {}).get("model") or config.get("model_name") or "no stated model"
    )
    content = f"{kind}, {config.get('d_sae') or 0:,} latents at {site} of {model}"
    pack = path.parent / "pack"
    if (pack / "manifest.json").exists():
        return Described(path, "SAE", content, f"scope steer --sae {path}")
    where = "evaluated" if "evaluation.json" in names else "not evaluated yet"
    return Described(path, "SAE", f"{content}; {where}", f"scope evaluate {path}   then: scope features {path} --out {pack}")


def _npz(path: Path) -> Described:
    known = published_at(str((path if path.is_dir() else path.parent).absolute()))
    if known is not None:
        content = f"Gemma Scope's params.npz, by its path {known.name} of {known.model}"
        return Described(path, "SAE", content, f"scope features {path} --corpus bundled")
    content = "Gemma Scope's params.npz, which names neither model nor site"
    way_on = f"scope evaluate {path} --model MODEL --site blocks.LAYER.hook_resid_post --corpus bundled"
    return Described(path, "SAE", content, way_on)


def _of_file(path: Path) -> Described | None:
    if path.name == "params.npz":
        return _npz(path)
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    if path.suffix != ".json":
        return None
    content = _object(path)
    if "sweep" in content and "runs" in content:
        return Described(path, "saved sweep", f"{len(content['sweep'])} strengths", _replay(path))
    if {"edits", "arms", "prompts"} <= content.keys():
        edits = ", ".join(str(row.get("edit")) for row in content.get("sheet") or [] if isinstance(row, dict))
        return Described(path, "saved steering run", edits or "edits", _replay(path))
    if "arms" in content and "counted" in content:
        fvu = ((content.get("arms") or {}).get("sae") or {}).get("fvu")
        scores = f"FVU {fvu:.3f}" if isinstance(fvu, float) else "scores"
        return Described(path, "evaluation", scores, f'in Python: scope.evaluation.result.Evaluation.load("{path}")')
    if {"partners", "correlation"} <= content.keys():
        share = content.get("share")
        matched = f"{share:.0%} of the latents have a partner" if isinstance(share, float) else "latents matched"
        return Described(path, "match of two SAEs", matched, f'in Python: scope.features.compare.partners.Match.load("{path}")')
    if {"own", "null", "suffixes"} <= content.keys():
        return Described(path, "suffix look-ahead", str(content.get("site")), "")
    return None


def _of_safetensors(path: Path) -> Described | None:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(size), path) if size <= _LARGEST else {}
    except (OSError, ScopeError):
        return None
    about = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(about, dict):
        return None
    if "direction" in about:
        return Described(path, "direction", about["direction"][:200], f"scope steer --direction {path}")
    if "memory" in about:
        return Described(path, "memory of a text", "", f'in Python: scope.circuits.memory_result.Memory.load("{path}")')
    return None


def _pages(manifest: dict[str, Any]) -> str:
    pages = manifest.get("pages") or manifest.get("n_pages")
    n = len(pages) if isinstance(pages, list) else pages
    return f"{n} pages" if isinstance(n, int) else "pages"


def _replay(path: Path) -> str:
    beside = path.parent / "dictionary"
    return f"scope steer --sae {beside if beside.is_dir() else 'DICTIONARY'} --replay {path}"


def _gigabytes(path: Path) -> str:
    size = sum(p.stat().st_size for p in path.glob("shard-*.h5"))
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where it is none or cannot be read."""
    try:
        value = parse_json(read_bytes(path, ConfigError, "", 64 * 2**20), path)
    except ScopeError:
        return {}
    return value if isinstance(value, dict) else {}
