"""The folder of a monitor: monitor.json, weights.safetensors, card.md and score.py, written whole and read back checked."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.monitor import scorer
from scope.monitor.card import card
from scope.monitor.labelled import MonitorError
from scope.monitor.monitor import SCHEMA, Monitor
from scope.typed_json import read_bytes, read_typed
from scope.whole_files import file_sha256, whole_folder, write_json, write_whole

FILE, WEIGHTS, CARD, SCORER = "monitor.json", "weights.safetensors", "card.md", "score.py"
_AGAIN = "Fit it again with scope monitor fit, or copy the folder again."
_LARGEST = 2**31


def refuse_existing(folder: Path) -> None:
    """
    Raises:
        ConfigError: something is there, which is not written over.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and is not written over. Give another --out, or remove it first.")


def save(monitor: Monitor, weights: dict[str, Tensor], folder: Path) -> Monitor:
    """Write the folder whole; the monitor comes back with the hash of its weights.

    Raises:
        ConfigError: the folder is there already.
    """
    from safetensors.torch import save as to_bytes

    refuse_existing(folder)
    with whole_folder(folder) as aside:
        write_whole(aside / WEIGHTS, to_bytes(weights))
        monitor = replace(monitor, weights_sha256=file_sha256(aside / WEIGHTS))
        write_json(aside / FILE, monitor.to_json())
        write_whole(aside / CARD, card(monitor))
        shutil.copyfile(scorer.__file__, aside / SCORER)
    return monitor


def read(folder: Path) -> tuple[Monitor, dict[str, Tensor]]:
    """A monitor and its weights.

    Raises:
        MonitorError: no monitor, a damaged one, or one of a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not (folder / FILE).is_file():
        raise MonitorError(
            f"{folder} is no monitor: it has no {FILE}.\n  Make one: scope monitor fit LABELLED.jsonl --out {folder}"
        )
    monitor = read_typed(folder / FILE, Monitor, MonitorError, _AGAIN)
    if monitor.schema != SCHEMA:
        raise MonitorError(f"{folder / FILE} has schema {monitor.schema}; this version reads {SCHEMA}. {_AGAIN}")
    if monitor.aggregation not in ("max", "mean", "last"):
        raise MonitorError(f"{folder / FILE} is damaged: there is no aggregation {monitor.aggregation[:40]!r}. {_AGAIN}")
    if not monitor.scores or None in (monitor.test_fpr, monitor.test_tpr):
        raise MonitorError(f"{folder / FILE} is damaged: it has no scores of the monitor itself. {_AGAIN}")
    data = read_bytes(folder / WEIGHTS, MonitorError, _AGAIN, _LARGEST)
    if file_sha256(folder / WEIGHTS) != monitor.weights_sha256:
        raise MonitorError(f"{folder / WEIGHTS} is not the file that {FILE} was written with. {_AGAIN}")
    try:
        weights = load(data)
    except (SafetensorError, ValueError) as error:
        raise MonitorError(f"{folder / WEIGHTS} is damaged: {error}. {_AGAIN}") from None
    if problem := _misfit(weights, monitor):
        raise MonitorError(f"{folder / WEIGHTS} is damaged: {problem}. {_AGAIN}")
    return monitor, weights


def _misfit(weights: dict[str, Tensor], monitor: Monitor) -> str:
    """What contradicts itself in the arrays of a monitor; empty if nothing does."""
    weight, bias, encoder = (weights.get(name) for name in ("weight", "bias", "W_enc"))
    if weight is None or bias is None or weight.dim() != 2 or weight.shape[1] != 1 or bias.shape != (1,):
        return "it has no weight [feature 1] and bias [1]"
    if encoder is None:
        return ""
    if encoder.dim() != 2 or weights.get("b_enc", torch.empty(0)).shape != encoder.shape[1:]:
        return "its encoder and bias do not belong together"
    n = encoder.shape[1]
    if monitor.top_k:
        ids = weights.get("latents")
        bad = ids is None or len(ids) != len(weight) or not ((ids >= 0) & (ids < n)).all() or monitor.top_k > n
        return "its latents are not of its encoder" if bad else ""
    gates = [name for name in ("threshold", "r_mag", "b_mag") if name in weights]
    if (
        gates not in (["threshold"], ["r_mag", "b_mag"])
        or any(weights[name].shape != (n,) for name in gates)
        or n != len(weight)
    ):
        return "its thresholds are not of its encoder"
    return ""
