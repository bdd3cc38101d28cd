"""Text that every machine has: the documentation and the sources of installed Python packages, read without importing them."""

import ast
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from activations.errors import CorpusError

DOCUMENTED = ("stdlib", "numpy", "pandas", "torch", "streamlit", "h5py", "plotly", "transformers")
"""Packages whose documentation is read when none are named: what an installation of this project brings along."""

_SKIPPED = {"tests", "test", "testing", "_vendor", "vendored", "site-packages", "__pycache__", "lib2to3", "idlelib", "turtledemo"}


def package_files(package: str) -> list[Path]:
    """The .py files of an installed package in a fixed order, tests and vendored copies left out; "stdlib" is a name too.

    Raises:
        CorpusError: no such package is installed.
    """
    if package == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
    else:
        try:
            spec = find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.origin:
            raise CorpusError(f"No package named {package} is installed in {sys.prefix}, so there is no documentation to read.")
        root = Path(spec.origin).parent
    files = [f for f in root.rglob("*.py") if not _SKIPPED & set(f.relative_to(root).parts[:-1])]
    return sorted(files, key=lambda f: f.relative_to(root).as_posix())


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
