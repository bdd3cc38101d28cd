"""Versions of packages, as recorded beside results; never compared."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str = "scope-workbench") -> str:
    """The installed version, or "source" when run from a tree that was not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"
