"""Who may import whom: every import of the tree, deferred and TYPE_CHECKING ones too, held against CONTRIBUTING.md's table."""

import ast
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {
    *("scope.shapes", "scope.errors", "scope.versions", "scope.null_seeds", "scope.fit", "scope.provenance", "scope.progress"),
    *(
        "scope.sites",
        "scope.free_memory",
        "scope.whole_files",
        "scope.typed_json",
        "scope.texts",
        "scope.escape",
        "scope.html_page",
        "scope.json_result",
        "scope.result",
        "scope.hub_files",
    ),
    *("scope.renamed", "scope.threads", "scope.device"),
}
"""The ground: types and functions that every room may use, and that know no room."""

DATA, MODELS, SAE = BASE | {"scope.activations"}, BASE | {"scope.models"}, BASE | {"scope.sae"}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    "scope.activations": BASE,
    "scope.models": DATA,
    "scope.sae": DATA,
    "scope.evaluation": DATA | MODELS | SAE,
    "scope.steering": DATA | MODELS | SAE | {"scope.evaluation.metrics"},
    "scope.training": DATA | SAE | {"scope.evaluation.metrics"},
    "scope.features": DATA | MODELS | SAE | {"scope.evaluation.metrics", "scope.evaluation.certificate.certificate"},
    "scope.circuits": DATA | MODELS | SAE | {"scope.steering"},
    "scope.diffing": DATA
    | MODELS
    | SAE
    | {"scope.evaluation.metrics", "scope.evaluation.splice", "scope.features.exports.tables"},
    "scope.retrieval": DATA | MODELS | SAE | {"scope.features", "scope.steering"},
    "scope.moderation": DATA | MODELS | SAE | {"scope.features", "scope.steering", "scope.circuits"},
    "scope.monitor": DATA | MODELS | SAE | {"scope.features.exports.strip"},
    "scope.pages": DATA | MODELS | SAE | {"scope.circuits.tables"},
    "scope.pretrain": DATA | MODELS | {"scope.retrieval", "scope.moderation"},
    "scope.workflows": {"scope"},
    "scope.lab": {"scope"},
    "scope.cli": {"scope"},
    "scope": {"scope"},  # scope/__init__.py, the public face: names loaded on first use
    "scope.app": {"scope"},
}
"""Room -> what its files may import besides the room itself. A file belongs to the longest name that begins its own."""

SCREENS = {"scope.cli", "scope.app"}
"""Rooms that draw or parse: nothing below imports them, and they import neither each other nor, but for the app, streamlit."""

MOST_FLOORS, MOST_FILES = 6, 15
MANY_FILES = {"scope/cli": 34, "scope/training": 16, "scope/workflows": 24}
"""Folders in which more files than that are right: a command or workflow a file; a stage of one loop a file."""

FILES = sorted(f for top in ("activations", "scope", "app") for f in (ROOT / top).rglob("*.py"))


def module_of(file: Path) -> str:
    """Import name of a file. The folders activations/ and app/ are scope.activations and scope.app."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "scope" else ("scope", *parts))


MODULES = {module_of(f): f for f in FILES}


@cache
def imports(file: Path) -> list[tuple[int, str]]:
    """(line, full name) of everything imported anywhere in a file; `from a import b` is a.b where that is a module."""
    here = module_of(file).split(".")
    package = here if file.name == "__init__.py" else here[:-1]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, full if (full := f"{source}.{a.name}") in MODULES else source) for a in node.names]
    return found


@cache
def graph() -> dict[str, set[str]]:
    return {m: {n for _, n in imports(f) if n in MODULES and n != m} for m, f in MODULES.items()}


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(module: str) -> str:
    return max((room for room in MAY_IMPORT if within(module, room)), key=len)


def ours(name: str) -> bool:
    return name.split(".")[0] in ("activations", "scope", "app", "tests", "notebooks")


def floors(graph: Mapping[str, Iterable[str]]) -> tuple[int, list[str]]:
    """The longest chain of imports, and a circle if there is one."""
    height: dict[str, int] = {}

    def visit(node: str, path: tuple[str, ...]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in height:
            for other in sorted(graph[node]):
                if circle := visit(other, (*path, node)):
                    return circle
            height[node] = 1 + max((height[other] for other in graph[node]), default=0)
        return []

    for node in graph:
        if circle := visit(node, ()):
            return 0, circle
    return max(height.values(), default=0), []


def inside(package: str) -> dict[str, set[str]]:
    """The graph of what lies directly in a package, its files and its folders: who imports whom."""
    depth = package.count(".") + 2

    def child(module: str) -> str:
        return ".".join(module.split(".")[:depth])

    members = [m for m in MODULES if m.startswith(f"{package}.")]
    found: dict[str, set[str]] = {child(m): set() for m in members}
    for m in members:
        found[child(m)] |= {child(n) for n in graph()[m] if n.startswith(f"{package}.")} - {child(m)}
    return found


PACKAGES = sorted(m for m, f in MODULES.items() if f.name == "__init__.py" and m != "scope")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_what_its_room_may(file):
    room = room_of(module_of(file))
    allowed = MAY_IMPORT[room] | ({room} if room != "scope" else set())
    wrong = [f"line {line}: {name}" for line, name in imports(file) if ours(name) and not any(within(name, a) for a in allowed)]
    assert not wrong, f"{file.relative_to(ROOT)} belongs to {room}, which may import {sorted(allowed)}; it imports {wrong}"


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_nothing_imports_a_room_that_draws(screen):
    wrong = [m for m, others in graph().items() if not within(m, screen) and any(within(n, screen) for n in others)]
    assert [m for m in wrong if not (m == "scope.cli.app" and screen == "scope.app")] == []


def test_only_the_app_knows_streamlit():
    knowing = [module_of(f) for f in FILES for _, name in imports(f) if within(name, "streamlit")]
    assert [m for m in knowing if not within(m, "scope.app")] == []


def test_no_file_imports_in_a_circle():
    """Imports within functions and for type checkers count too: a circle with a delay is a circle."""
    _, circle = floors(graph())
    assert not circle, " -> ".join(circle)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_has_at_most_six_floors_and_its_subfolders_import_one_way(package):
    height, circle = floors(inside(package))
    assert not circle, " -> ".join(circle)
    assert height <= MOST_FLOORS


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_holds_few_enough_files_to_read_at_a_glance(package):
    folder = MODULES[package].parent
    files = [f.name for f in folder.glob("*.py") if f.name != "__init__.py"]
    assert len(files) <= MANY_FILES.get(folder.relative_to(ROOT).as_posix(), MOST_FILES), sorted(files)


def test_nothing_is_blinded_to_the_shape_check():
    """`from __future__ import annotations` turns signatures into strings, which the shape check then passes over."""
    assert [module_of(f) for f in FILES for _, name in imports(f) if within(name, "__future__")] == []


def test_every_folder_of_code_is_installed_and_only_under_the_name_scope():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(project["packages"]) == sorted(m for m, f in MODULES.items() if f.name == "__init__.py")
    assert {name.split(".")[0] for name in project["packages"]} == {"scope"}


def test_the_table_is_the_one_in_the_book():
    book = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [line.split("**")[1] for line in book.splitlines() if line.startswith("| **")]
    assert sorted(rooms) == sorted(room.removeprefix("scope.") for room in MAY_IMPORT if room not in BASE | {"scope"})
