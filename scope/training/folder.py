"""The folder of a training: what decides its outcome, written once at the beginning and held against every later call."""

import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.files import MANIFEST
from scope.sae.formats.sae_lens import read_json
from scope.sae.kinds import KINDS
from scope.training.config import TrainConfig

RUN, CHECKPOINT = "training.json", "checkpoint.safetensors"

_FREE = {"save_every", "log_every"}
"""Settings that leave the result alone, so a run may be continued with others."""

_UNSAID = {
    "jumprelu": {"revive_after": None},
    "topk": {"decoder": "unit", "start_norm": 1.0},
    "batch_topk": {"decoder": "unit", "start_norm": 1.0},
}
"""Settings of a kind that were once not there, and what was so then, where that is not what is now their default."""


def describe(sae: SAE, config: TrainConfig) -> dict[str, Any]:
    """What decides the outcome of a run; kept in training.json and compared when a run goes on."""
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE}
    source = {k: v for k, v in sae.provenance.items() if k not in ("training", "versions", "weights_sha256", "preset")}
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
        ConfigError: `out` holds a training with other settings, or something that no training made.
    """
    before = out / RUN
    if before.exists():
        then, now = _completed(read_json(before)), _settled(_plain(described))
        parts = ("kind",) if then.get("kind") != now["kind"] else {*then, *now} - {"preset"}  # what it stands for is compared
        changed = differences(*({k: v for k, v in one.items() if k in parts} for one in (then, now)))
        if changed:
            raise ConfigError(
                f"{out} holds a training with other settings:\n  "
                + "\n  ".join(changed)
                + "\n  Give another --out, or the same settings."
            )
    elif (out / MANIFEST).exists() or (out / "cfg.json").exists():
        raise ConfigError(f"{out} holds a dictionary that was not trained there. Give another --out.")


def is_finished(out: Path) -> bool:
    """Whether the dictionary of a training lies in `out`, whole."""
    return (out / RUN).exists() and (out / MANIFEST).exists() and not (out / CHECKPOINT).exists()


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """One line for each setting that is not what it was."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        return [line for k in keys for line in differences(before.get(k), now.get(k), f"{path}.{k}" if path else k)]
    return [] if before == now else [f"{path}: {before} then, {now} now"]


def _completed(before: dict[str, Any]) -> dict[str, Any]:
    """A description with the settings that did not exist when it was written: what was so then is `_UNSAID`, or else what is
    now their default."""
    kind = before.get("kind")
    for part, config in (("training", TrainConfig), ("dictionary", KINDS[kind].config if kind in KINDS else None)):
        if config and part in before:
            defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING and f.name not in _FREE}
            once = _UNSAID.get(str(kind), {}) if part == "dictionary" else {}
            before[part] = _plain(defaults | once) | before[part]
    if before.get("training", {}).get("order_seed", 0) is None:
        before["training"]["order_seed"] = before["training"]["seed"]
    return _settled(before)


def _settled(described: dict[str, Any]) -> dict[str, Any]:
    """With what a dictionary's other settings decide: rows that are kept at norm 1 start there, said or not."""
    dictionary = described.get("dictionary") or {}
    if dictionary.get("decoder") == "unit" and dictionary.get("start_norm", 1.0) is None:
        return described | {"dictionary": dictionary | {"start_norm": 1.0}}
    return described


def _plain(value: Any) -> Any:
    """As it would come back from JSON."""
    return json.loads(json.dumps(value))
