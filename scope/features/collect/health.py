"""The evaluation report, certificate and training curve in a dictionary's folder, for the pack."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from scope.errors import PackError
from scope.evaluation.certificate.certificate import read as kept_certificate
from scope.typed_json import parse_json, read_bytes, read_typed, typed

_CURVE_POINTS = 400


def find_health(dictionary: Path, evaluation: Path | None = None, certificate: Any = None) -> dict[str, Any] | None:
    """{"evaluation": report, "certificate": ..., "training": rows of the log}, of what there is; None if there is nothing.

    A report that was named must be there; one that merely lies in the folder must be readable. `certificate` is what was just
    found, a dataclass; without it, the one that was last kept in the folder, if it is whole.

    Raises:
        PackError: the report is missing or no JSON.
    """
    health: dict[str, Any] = {}
    report = evaluation or dictionary / "evaluation.json"
    if evaluation or report.exists():
        health["evaluation"] = read_typed(report, dict[str, Any], PackError, "To make it again: scope evaluate DICTIONARY")
    fits = certificate or kept_certificate(dictionary)
    if fits:
        health["certificate"] = {name: value for name, value in asdict(fits).items() if name not in ("tried", "here")}
    log = dictionary / "log.jsonl"
    if log.exists():
        health["training"] = _curve(log)
    return health or None


def _curve(log: Path) -> list[dict[str, Any]]:
    """At most 400 rows, evenly taken; a last line torn by a crash is left out."""
    rows = []
    for line in read_bytes(log, PackError).splitlines():
        try:
            rows.append(typed(parse_json(line, log, PackError), dict[str, Any], log, PackError))
        except PackError:
            continue
    step = max(1, -(-len(rows) // _CURVE_POINTS))
    return rows[::-1][::step][::-1]
