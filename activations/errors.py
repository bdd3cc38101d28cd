"""What recordings and corpora say when they refuse: what is wrong, what there is, and the way out."""

from typing import Any

from scope.errors import ScopeError
from scope.renamed import warn


class ActivationsError(ScopeError):
    """Base of the refusals of this room."""


class CorpusError(ActivationsError):
    """Text that is missing, empty, or in a form that cannot be read."""


class RecordingError(ActivationsError):
    """A recording that is missing, damaged, or made from something else."""


class HolesWarning(UserWarning):
    """A recording is read without the shards that `scope recording repair` moved aside."""


def __getattr__(name: str) -> Any:
    if name != "UnknownSiteError":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from scope.errors import UnknownSite

    warn(f"{__name__}.{name}", "scope.errors.UnknownSite")
    return UnknownSite
