"""Making a pack from a model, a dictionary and text."""

from typing import Any

from scope.renamed import warn

_MOVED = {"CollectConfig": "config", "collect": "collect_pack"}


def __getattr__(name: str) -> Any:
    """Notebooks of version 0.1.0 import these from here."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    warn(f"{__name__}.{name}", f"{__name__}.{_MOVED[name]}.{name}")
    return getattr(import_module(f"{__name__}.{_MOVED[name]}"), name)
