"""The check of every signature while the tests run: beartype for types, jaxtyping for the shapes that share a name in a call.

jaxtyping's own import hook binds, checks and copies each call's arguments twice and builds its checks at import: half of the
suite's time. Here a check is built when a function is first called, and only signatures with shapes remember their sizes.
"""

import ast
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from inspect import isgeneratorfunction
from types import FunctionType
from typing import Any, get_args, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


def checked(target: Any) -> Any:
    """A function whose arguments and result are checked, or a dataclass whose __init__ is."""
    if isinstance(target, type):
        if is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target
    if not target.__annotations__:
        return target
    check, shaped = None, False

    @wraps(target)
    def wrapper(*args, **kwargs):
        nonlocal check, shaped
        if check is None:
            check, shaped = _check(target)
        if not shaped:
            return check(*args, **kwargs)
        with jaxtyped("context"):  # sizes of this call, apart from those of its caller
            return check(*args, **kwargs)

    return wrapper


def _check(function: FunctionType) -> tuple[Callable, bool]:
    """The function under beartype, and whether its signature has shapes."""
    hints = {name: _resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    if isgeneratorfunction(function):  # returned before its first item is made
        hints.pop("return", None)
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, hints
    twin.__module__, twin.__qualname__ = function.__module__, function.__qualname__
    return _beartype(twin), any(map(_has_shape, hints.values()))


def _resolved(hint: Any, names: dict) -> Any:
    """The annotation with names in quotes looked up; Any if one is imported for type checkers only."""

    def annotated(value: hint): ...

    try:
        return get_type_hints(annotated, names, include_extras=True)["value"]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def _decorate(statements: list[ast.stmt]) -> None:
    """@checked next to every function and outside every class."""
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = ast.copy_location(ast.Name("_signature_checked", ast.Load()), node)
            node.decorator_list.insert(0 if isinstance(node, ast.ClassDef) else len(node.decorator_list), name)
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            _decorate(getattr(node, block, []))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        _decorate(tree.body)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module) -> None:
        module._signature_checked = checked
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target=None):
        if fullname.split(".")[0] != "scope" or (spec := PathFinder.find_spec(fullname, path, target)) is None:
            return None
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_signatures() -> None:
    """From here on, whatever is imported of scope is checked."""
    sys.meta_path.insert(0, _Finder())
