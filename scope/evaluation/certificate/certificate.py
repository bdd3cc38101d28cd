"""A certificate and its file beside the dictionary, so that the check is made once.

A file can be damaged or edited. A certificate that is incomplete, or whose verdict does not follow from its own numbers, is
ignored.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from scope.errors import ScopeError
from scope.evaluation.certificate.verdict import judge, shown
from scope.models.face import Model
from scope.provenance import ModelId
from scope.result import Result
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.typed_json import read_json, typed
from scope.whole_files import write_whole

FILE, SCHEMA = "certificate.json", 1
ELSEWHERE = Path("runs/certificates")
"""Folder for certificates of dictionaries in read-only places or on the hub."""


@dataclass(frozen=True)
class Certificate(Result):
    """Whether a dictionary `fits` a model, the verdict in words (`said`), and the numbers behind it.

    `measured` is the dictionary as it is: l0, fvu, cosine, length_bias, tokens, outliers (left out for their norm).
    `declared` are the numbers that its files state: l0 (a number, or the two ends of a range), fvu, and `from` where.
    `null` is the fvu of a random dictionary of equal L0. `tried` are other readings, best first, each with name, site, remedy,
    explains, l0, fvu; `here` is the dictionary as it is on the tokens of these. `notes` are remarks for the reader;
    `provenance` names model, dictionary, site, rule, versions, and the `text` if it is the training's or else, as
    `text_missing`, the training's that was not to be read. On disk, certificate.json is {"schema", "certificates":
    {key: these fields}}, the one made last at the end; a pack keeps that one, without `tried`, as health["certificate"].
    """

    bars = ("name", "fvu")

    fits: bool
    said: str
    measured: dict[str, Any]
    declared: dict[str, Any]
    null: dict[str, float]
    tried: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    here: dict[str, Any] = field(default_factory=dict)

    def to_frame(self):
        """A row for the dictionary as it is, what its files declare, the null, and each other reading, as a pandas table."""
        import pandas as pd

        rows = [("as it is", self.measured), ("declared", self.declared), ("random dictionary", self.null)]
        rows += [(str(one.get("name")), one) for one in self.tried]
        return pd.DataFrame([{"name": name, "l0": one.get("l0"), "fvu": one.get("fvu")} for name, one in rows])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """One line: measured beside declared and baseline."""
        m, d = self.measured, self.declared
        l0 = f" (declared {shown(d['l0'])})" if d.get("l0") is not None else ""
        error = f" (declared {d['fvu']:.3f})" if d.get("fvu") is not None else ""
        place = f" of {self.provenance['text']}" if self.provenance.get("text") else ""
        return (
            f"{self.said} L0 {m['l0']:.1f}{l0}, FVU {m['fvu']:.3f}{error}, {self.null['fvu']:.3f} with a random dictionary of "
            f"equal L0, on {m['tokens']:,} {self.provenance.get('unit', 'tokens')}{place}"
        )


def key_of(model: Model, sae: SAE, rules: str | None, sampled: bool = False) -> str | None:
    """The key of a certificate: model, dictionary, site and rules. None without rules or without a hash of the model's weights;
    then nothing is kept. `sampled` takes the hash that version 0.1 gave to large models."""
    identity = ModelId.of(model.provenance)
    made = identity.weights_sampled if sampled else identity.weights_sha256
    return f"{made}-{parameters_sha256(sae)[:24]}-{sae.site}-{rules[:16]}" if made and rules else None


def file_for(where: Path | str | None) -> Path | None:
    """certificate.json beside the dictionary, or a file in runs/certificates if that cannot be written; None for one in
    memory."""
    if where is None:
        return None
    path = Path(where).expanduser()
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    if folder is not None and os.access(folder, os.W_OK) and "snapshots" not in folder.parts:
        return folder / FILE
    return ELSEWHERE / f"{hashlib.sha256(str(where).encode()).hexdigest()[:24]}.json"


def read(where: Path | str) -> Certificate | None:
    """The latest certificate of the dictionary at `where`; None if there is none, or none of this version."""
    return _checked(next(reversed(_all(file_for(where))[0].values()), None))


def find(where: Path | str | None, *keys: Callable[[], str | None]) -> tuple[Certificate | None, str]:
    """(the certificate of the first of these keys, or None; why the file was ignored, if it was). A key is made when it is
    needed, for those of earlier versions take longer than to read the file."""
    file = file_for(where)
    kept, damage = _all(file)
    key = next((key for make_key in keys if (key := make_key()) in kept), None) if kept else None
    if key is None:
        return None, damage
    found = _checked(kept[key])
    return found, "" if found else f"The certificate in {file} is damaged, or its verdict does not follow from its numbers"


def _all(file: Path | None) -> tuple[dict[str, Any], str]:
    """(certificates by key, what is wrong with the file)."""
    if file is None or not file.exists():
        return {}, ""
    damage = f"{file} is damaged"
    try:
        content = typed(read_json(file), dict[str, Any], file)
        if content.get("schema") != SCHEMA:
            return {}, ""  # of another version
        return typed(content.get("certificates"), dict[str, Any], file), ""
    except ScopeError:
        return {}, damage


def _checked(record: Any) -> Certificate | None:
    """A certificate that is complete and whose verdict follows from its numbers, in the words of this version; else None."""
    if not isinstance(record, dict) or set(record) != {f.name for f in fields(Certificate)}:
        return None
    try:
        found = Certificate(**record)
        fits, said, _, tried = judge(
            found.measured, found.declared, found.null, found.tried, found.here, bool(found.provenance.get("text_missing"))
        )
        found.line()
        whole = isinstance(found.notes, list) and isinstance(found.provenance, dict)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError):
        return None  # values that are no numbers
    return replace(found, said=said) if whole and found.fits is fits and found.tried == tried else None


def keep(where: Path | str | None, key: str | None, certificate: Certificate) -> None:
    file = file_for(where)
    if file is None or key is None:
        return
    content = {k: v for k, v in _all(file)[0].items() if k != key} | {key: asdict(certificate)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"schema": SCHEMA, "certificates": content}, indent=1) + "\n")
    except OSError:
        return  # a full or read-only disk costs only a second check
