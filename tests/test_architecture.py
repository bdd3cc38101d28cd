"""Who may import whom: every import of the tree, deferred ones too, held against the table of CONTRIBUTING.md."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {"scope.shapes", "scope.errors", "scope.versions", "scope.chance"}
MODELS, SAE = BASE | {"scope.models"}, BASE | {"scope.sae"}
MAY_IMPORT = {
    "activations": set(),
    "scope.shapes": set(),
    "scope.errors": set(),
    "scope.chance": set(),
    "scope.versions": set(),
    "scope.models": BASE,
    "scope.sae": BASE,
    "scope.evaluation": MODELS | SAE | {"activations"},
    "scope.steering": MODELS | SAE,
    "scope.training": SAE | {"scope.evaluation.metrics"},
    "scope.features": MODELS | SAE | {"activations", "scope.evaluation.metrics", "scope.evaluation.kept"},
    "scope.pretrain": MODELS | {"activations"},
    "scope.lab": MODELS | SAE | {"scope.features", "scope.steering", "scope.evaluation.certificate"},
    "scope.cli": {"activations", "scope"},
    "scope": {"activations", "scope"},  # scope/__init__.py, the public face: names loaded on first use
    "app.components": {
        *("scope.errors", "scope.features.store", "scope.features.feature", "scope.features.text", "scope.features.index"),
        *("scope.steering", "scope.models.sampling"),
    },
    "app": MODELS | SAE | {"app", "activations", "scope.features", "scope.steering"},
}
"""Room -> what its files may import besides the room itself. A file belongs to the longest name that begins its own."""

FILES = sorted(f for top in ("activations", "scope", "app") for f in (ROOT / top).rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(file: Path, on_load: bool = False) -> list[tuple[int, str]]:
    """(line, full name) of everything imported anywhere in a file; `from a import b` is a.b where that is a module.

    `on_load` asks only for what is imported as soon as the file is, not within functions or for type checkers.
    """
    here = module_of(file).split(".")
    package = here if file.name == "__init__.py" else here[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = []
    for node in tree.body if on_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                path = ROOT / Path(*full.split("."))
                found.append((node.lineno, full if path.is_dir() or path.with_suffix(".py").exists() else source))
    return found


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(module: str) -> str:
    return max((room for room in MAY_IMPORT if within(module, room)), key=len)


def ours(name: str) -> bool:
    return name.split(".")[0] in ("activations", "scope", "app", "tests", "notebooks")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_what_its_room_may(file):
    room = room_of(module_of(file))
    allowed = MAY_IMPORT[room] | ({room} if room != "scope" else set())
    wrong = [f"line {line}: {name}" for line, name in imports(file) if ours(name) and not any(within(name, a) for a in allowed)]
    assert not wrong, f"{file.relative_to(ROOT)} belongs to {room}, which may import {sorted(allowed)}; it imports {wrong}"


def test_only_the_app_knows_streamlit():
    knowing = [module_of(f) for f in FILES for _, name in imports(f) if within(name, "streamlit")]
    assert [m for m in knowing if not within(m, "app")] == []


def test_no_file_imports_in_a_circle():
    """Between rooms the table allows none; within a room, a method may still fetch a function that knows its class."""
    modules = {module_of(f): f for f in FILES}
    graph = {m: {n for _, n in imports(f, on_load=True) if n in modules and n != m} for m, f in modules.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_is_blinded_to_the_shape_check():
    """`from __future__ import annotations` turns signatures into strings, which the shape check then passes over."""
    assert [module_of(f) for f in FILES for _, name in imports(f) if within(name, "__future__")] == []


def test_the_table_is_the_one_in_the_book():
    book = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = [line.split("**")[1] for line in book.splitlines() if line.startswith("| **")]
    assert sorted(told) == sorted(room.replace(".", "/") for room in MAY_IMPORT if room not in BASE | {"scope"})
