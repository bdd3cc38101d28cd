"""Documentation and sources of installed Python packages as text, read without importing the packages."""

import ast
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from scope.activations.errors import CorpusError

DOCUMENTED = ("stdlib", "numpy", "pandas", "torch", "streamlit", "h5py", "plotly", "transformers")
"""Packages read by default; all are dependencies of this project."""

_SKIPPED = {
    "tests",
    "test",
    "testing",
    "_vendor",
    "vendored",
    "site-packages",
    "__pycache__",
    "lib2to3",
    "idlelib",
    "turtledemo",
}


def package_root(package: str) -> Path:
    """The folder of an installed package; "stdlib" is a name too.

    Raises:
        CorpusError: no such package is installed.
    """
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise CorpusError(f"No package named {package} is installed in {sys.prefix}, so there is no documentation to read.")
    return Path(spec.origin).parent


def package_files(package: str) -> Iterator[Path]:
    """The .py files of an installed package in the order of their paths, tests and vendored copies left out.

    Raises:
        CorpusError: no such package is installed.
    """
    return _python_files(package_root(package))


def _python_files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as listing:
        entries = sorted(((e.name + "/" * e.is_dir(), e.path) for e in listing), key=lambda e: e[0])
    for name, path in entries:
        if name.endswith(".py"):
            yield Path(path)
        elif name.endswith("/") and name[:-1] not in _SKIPPED:
            yield from _python_files(Path(path))


def docstrings(package: str, at_least: int = 200) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring under that name) of everything in a package whose docstring has `at_least` characters."""
    for path in package_files(package):
        tree = _parse(path)
        if tree is None:
            continue
        module = f"{package}.{path.stem}" if package != "stdlib" else path.stem
        for name, node in _definitions(tree, module):
            doc = ast.get_docstring(node, clean=False)
            if doc and len(doc) >= at_least:
                yield name, f"{name}\n\n{inspect.cleandoc(doc)}"


def without_name(text: str) -> str:
    """A docstring as `docstrings` gives it without the qualified name above it: inherited ones are then the same text."""
    first, _, rest = text.partition("\n\n")
    return rest if rest and all(part.isidentifier() for part in first.split(".")) else text


def sources(package: str, at_least: int = 400, at_most: int = 200_000) -> Iterator[tuple[str, str]]:
    """(file name, its text) of a package's sources."""
    for path in package_files(package):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if at_least <= len(text) <= at_most:
            yield f"{package}/{path.name}", text


def _parse(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files with bad escapes are not our business
        try:
            return ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
        except (SyntaxError, ValueError, RecursionError):
            return None


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _definitions(child, f"{name}.{child.name}")
