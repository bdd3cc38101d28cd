"""`JsonResult`: what the results of commands share that are a frozen dataclass and one JSON file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, TypeVar

from scope.errors import ScopeError
from scope.result import Result
from scope.typed_json import read_typed

R = TypeVar("R", bound="JsonResult")


class JsonResult(Result):
    """Base of a frozen dataclass that is saved as JSON. If it has a field `schema`, its default is the one that is read."""

    error: ClassVar[type[ScopeError]]
    """What `load` raises."""

    way_out: ClassVar[str]
    """How to make the result again."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def load(cls: type[R], file: str | Path) -> R:
        """Read what `save` wrote as JSON.

        Raises:
            ScopeError: it cannot be read, is damaged, or was written by a newer version.
        """
        result = read_typed(Path(file), cls, cls.error, cls.way_out)
        schema = getattr(cls, "schema", None)
        if getattr(result, "schema", None) != schema:
            raise cls.error(f"{file} has schema {result.schema}; this version reads {schema}.\n  {cls.way_out}")
        if damage := result.damage():
            raise cls.error(f"{file} is damaged: {damage}.\n  {cls.way_out}")
        return result

    def damage(self) -> str:
        """What contradicts itself in values that are each of the right type; empty if nothing does."""
        return ""
