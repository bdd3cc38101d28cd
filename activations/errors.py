"""Errors of recordings and corpora. Each message states the problem, the possible values, and a way out."""

from typing import Any

from scope.errors import ScopeError
from scope.renamed import warn


class ActivationsError(ScopeError):
    """Base class of errors about recordings and corpora."""


class CorpusError(ActivationsError):
    """Text that is missing, empty, or in a form that cannot be read."""


class RecordingError(ActivationsError):
    """A recording that is missing, damaged, or made from something else."""


class CorpusWarning(UserWarning):
    """A part of what was given as a corpus is not read."""


class HolesWarning(UserWarning):
    """A recording is read without shards that `scope recording repair` moved aside, or that its journal does not list."""


def __getattr__(name: str) -> Any:
    if name != "UnknownSiteError":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from scope.errors import UnknownSite

    warn(f"{__name__}.{name}", "scope.errors.UnknownSite")
    return UnknownSite
