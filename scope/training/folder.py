"""The folder of a training: the settings that decide its outcome, written at the beginning and compared at every later call."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scope.errors import ConfigError, DictionaryError
from scope.sae.base import SAE
from scope.sae.files import MANIFEST
from scope.sae.formats.files import read_json
from scope.sae.kinds import KINDS
from scope.training.config import TrainConfig
from scope.training.progress import LOG
from scope.typed_json import typed

RUN, CHECKPOINT, LOCK = "training.json", "checkpoint.safetensors", ".lock"

_FREE = {"save_every", "log_every"}
"""Settings that leave the result alone, so a run may be continued with others."""

_NOT_DESCRIBED = {"training", "versions", "weights_sha256", "preset", "text_from"}
"""Parts of an SAE's provenance that decide nothing: a recording may have been moved."""

_BESIDE = (LOG, "tensorboard", "wandb")
"""Files that may lie beside a description."""


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """The settings of a dictionary that lists of trainings show."""

    d_sae: int | None = None
    k: float | None = None
    target_l0: float | None = None
    l0_weight: float | None = None
    l1_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a training that are read by name."""

    steps: int | None = None
    seed: int = 0
    order_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """training.json. Its "from" is where the activations come from."""

    kind: str
    site: str = ""
    preset: str | None = None
    dictionary: DictionarySettings = DictionarySettings()
    training: TrainingSettings = TrainingSettings()


def read_description(folder: Path) -> tuple[Description, dict[str, Any]]:
    """The description of the training in a folder: what is read by name, and all of it.

    Raises:
        DictionaryError: it is damaged.
    """
    file, way_out = folder / RUN, "Copy it again, or give another --out."
    described = read_json(file)
    return typed(described, Description, file, DictionaryError, way_out), described


def describe(sae: SAE, config: TrainConfig) -> dict[str, Any]:
    """What decides the outcome of a run; kept in training.json and compared when a run goes on."""
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE}
    source = {k: v for k, v in sae.provenance.items() if k not in _NOT_DESCRIBED}
    return {
        "preset": sae.provenance.get("preset"),
        "kind": sae.kind,
        "site": sae.site,
        "dictionary": asdict(sae.config),
        "training": settings | {"order_seed": config.order},
        "from": source,
    }


def refuse_another(out: Path, described: dict[str, Any]) -> None:
    """
    Raises:
        ConfigError: `out` holds a training with other settings.
    """
    before = out / RUN
    if before.exists():
        then, now = _completed(read_description(out)[1]), _settled(_plain(described))
        parts = ("kind",) if then.get("kind") != now["kind"] else {*then, *now} - {"preset"}  # what it stands for is compared
        changed = differences(*({k: v for k, v in one.items() if k in parts} for one in (then, now)))
        if changed:
            raise ConfigError(
                f"{out} holds a training with other settings:\n  "
                + "\n  ".join(changed)
                + "\n  Give another --out, or the same settings."
            )


def refuse_undescribed(checkpoint: Path, folders: Sequence[Path]) -> None:
    """
    Raises:
        ConfigError: a checkpoint of a training whose settings were lost, so that nothing says whether it is this one's.
    """
    lost = [str(folder / RUN) for folder in folders if not (folder / RUN).exists()]
    if lost:
        raise ConfigError(
            f"{checkpoint} is of a training whose settings are gone: there is no {', '.join(lost)}.\n"
            "  Copy them again, give another --out, or delete the checkpoint to start anew."
        )


def refuse_foreign(out: Path, folders: Sequence[Path]) -> None:
    """`folders` are those of the dictionaries, `out` that of them all: its own where there is one.

    Raises:
        ConfigError: one of them holds something that no training made, or `out` is one dictionary's and is to hold several.
    """
    for folder in folders:
        if _is_ours(folder):
            continue
        if (folder / MANIFEST).exists() or (folder / "cfg.json").exists():
            raise ConfigError(f"{folder} holds a dictionary that was not trained there. Give another --out.")
        if foreign := _foreign(folder):
            raise ConfigError(f"{folder} holds what no training made: {_listed(foreign)}.\n  Give a new folder as --out.")
    if out in folders:
        return
    if _is_ours(out):
        raise ConfigError(f"{out} holds the training of one dictionary. Give a new folder as --out for several.")
    others = [path for path in _foreign(out) if not path.name.startswith("checkpoint") or path.is_dir()]
    others = [path for path in others if not path.is_dir() or _foreign(path)]
    if others and not any(_is_ours(path) for path in others):
        raise ConfigError(
            f"{out} holds what no training made: {_listed(others)}.\n"
            "  Give a new folder as --out; each dictionary gets one of its own in it."
        )


def _is_ours(folder: Path) -> bool:
    """Whether a training was begun in it."""
    return (folder / RUN).exists() and "training" in read_description(folder)[1]


def _foreign(folder: Path) -> list[Path]:
    """What is in it that a training which came no further than its folder would not leave there."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in there if not path.name.startswith((".", RUN)) and path.name not in _BESIDE]


def _listed(paths: Sequence[Path]) -> str:
    names = [path.name + "/" * path.is_dir() for path in paths[:6]]
    return ", ".join(names) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


def is_finished(out: Path) -> bool:
    """Whether `out` holds the dictionary of a training that has ended."""
    return (out / RUN).exists() and (out / MANIFEST).exists() and not (out / CHECKPOINT).exists()


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """One line for each setting that is not what it was."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        return [line for k in keys for line in differences(before.get(k), now.get(k), f"{path}.{k}" if path else k)]
    return [] if before == now else [f"{path}: {before} then, {now} now"]


def _completed(before: dict[str, Any]) -> dict[str, Any]:
    """A description with the settings that did not exist when it was written, at the values that stand for what was done then:
    the config's `UNSAID`, or else today's defaults."""
    kind = before["kind"]
    for part, config in (("training", TrainConfig), ("dictionary", KINDS[kind].config if kind in KINDS else None)):
        if config and part in before:
            defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING and f.name not in _FREE}
            once = config.UNSAID if part == "dictionary" else {}
            before[part] = _plain(defaults | once) | before[part]
    if before.get("training", {}).get("order_seed", 0) is None:
        before["training"]["order_seed"] = before["training"]["seed"]
    return _settled(before)


def _settled(described: dict[str, Any]) -> dict[str, Any]:
    """With the settings that others decide: rows that stay at norm 1 start there."""
    dictionary = described.get("dictionary") or {}
    if dictionary.get("decoder") == "unit" and dictionary.get("start_norm", 1.0) is None:
        return described | {"dictionary": dictionary | {"start_norm": 1.0}}
    return described


def _plain(value: Any) -> Any:
    """As it would come back from JSON."""
    return json.loads(json.dumps(value))
