"""Plain words: a reminder of the worst patterns in what people read first. CONTRIBUTING.md says how the code reads."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [f for top in ("activations", "scope", "app") for f in sorted((ROOT / top).rglob("*.py"))]

NOT_YET: set[str] = set()
"""Rooms whose words are still being rewritten."""

FRAGMENT = re.compile(r"Of (the|a|an|what|which|each|every|all|how|one|two|those|it|its|UMAP)\b")
"""No sentence and no noun phrase: "Of the noise." """
CLAUSE = re.compile(r"(What|That which|Whether|How|Where|Who|Why|When|Which)\b(?!.*\?$)")
"""A noun made of a clause: "What is told of the dictionary." A question is none."""
WHAT_IS = re.compile(r"(What (is|are|was|were)|That which)\b")
"""The same in a help, where "Where the model runs" and "Whether to ask" are usual."""
METAPHOR = re.compile(r"\b(bones|shel(f|ves)|workshops?|desks?|gauges?|nobody|strangers?)\b|\b(in|of|at first) sight\b", re.I)
VAGUE = {"told", "said", "kept", "found", "made", "here", "own", "mine", "asked", "given"}
"""Names that say what happened to a value, not what it is."""


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def room_of(file: Path) -> str:
    parts = file.relative_to(ROOT).parts
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] == "scope" else parts[0]


def first_lines() -> Iterator[tuple[Path, int, str]]:
    for file in FILES:
        doc = ast.get_docstring(tree(file))
        if doc:
            yield file, 1, doc.splitlines()[0]


def helps() -> Iterator[tuple[Path, int, str]]:
    """The strings under the fields of a class: where it is a config or a command, they are the helps of its flags."""
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                for field, text in zip(node.body, node.body[1:], strict=False):
                    if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                        yield file, text.lineno, " ".join(str(text.value.value).split())


def refusals() -> Iterator[tuple[Path, int, str]]:
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                parts = [c.value for c in ast.walk(node.exc) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
                yield file, node.lineno, " ".join(parts)


def names() -> Iterator[tuple[Path, int, str]]:
    """Functions and classes of modules and classes, and the parameters of such functions."""
    for file in FILES:
        for node in [*tree(file).body, *(n for c in tree(file).body if isinstance(c, ast.ClassDef) for n in c.body)]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield file, node.lineno, node.name
            if isinstance(node, ast.FunctionDef):
                for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                    yield file, node.lineno, arg.arg


def wrong(places: Iterator[tuple[Path, int, str]], *patterns: re.Pattern) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{line}: {text[:110]}"
        for file, line, text in places
        if room_of(file) not in NOT_YET and (any(p.match(text) if p is not METAPHOR else p.search(text) for p in patterns))
    ]


def test_the_first_line_of_a_module_is_a_sentence_or_names_a_thing():
    found = wrong(first_lines(), FRAGMENT, CLAUSE)
    assert not found, "\n".join(found)


def test_a_help_is_a_sentence_or_names_a_thing():
    found = wrong(helps(), FRAGMENT, WHAT_IS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("places", [first_lines, helps, refusals], ids=lambda f: f.__name__)
def test_a_text_uses_the_words_of_the_field_instead_of_a_metaphor(places):
    found = wrong(places(), METAPHOR)
    assert not found, "\n".join(found)


def test_a_name_says_what_a_value_is():
    found = wrong(
        names(),
        re.compile(r"_?(" + "|".join(VAGUE) + r")$"),
        re.compile(r"_?(bones|shelf|shelved|workshop|desk|gauge)s?$", re.I),
    )
    assert not found, "\n".join(found)


def test_the_rooms_that_are_left_out_exist():
    assert {room_of(file) for file in FILES} >= NOT_YET
