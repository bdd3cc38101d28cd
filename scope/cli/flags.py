"""Flags made from a config's fields: one flag a field, its help the line under it, and lists where a field may be swept."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from scope.cli.harvest import count


def flags_of(
    name: str, config: type, values: Mapping[str, Any], swept: Collection[str] = (), hidden: Collection[str] = ()
) -> type:
    """A dataclass with the fields of `config`, whose defaults are `values` where given. Fields in `swept` take several values
    with commas between, and hold tuples; those in `hidden` are no flags."""
    docs, made = field_docs(config), []
    for f in fields(config):
        if f.name in hidden:
            continue
        default = values.get(f.name, f.default)
        assert default is not MISSING, f.name
        kind: Any = f.type
        if f.name in swept:
            default, kind = (default,), several(*_parser(f.type))
        elif get_origin(f.type) is tuple:
            kind = several(*_parser(get_args(f.type)[0]))
        made.append((f.name, Annotated[kind, tyro.conf.arg(help=docs.get(f.name, ""))], field(default=default)))
    return make_dataclass(name, made, frozen=True, kw_only=True)


def several(parse: Callable[[str], Any], name: str) -> Any:
    """A tuple, written with commas between: 32,64,128."""

    def read(args: list[str]) -> tuple:
        return tuple(parse(part.strip()) for part in args[0].split(",") if part.strip())

    return Annotated[
        tuple,
        PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{name}[,{name}…]",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join("none" if v is None else f"{v}" for v in value)],
        ),
    ]


def peek(argv: list[str], name: str, default: str | None = None) -> str | None:
    """The value of a flag before all flags are known, as `--name value` or `--name=value`; the last one counts."""
    found = default
    for i, arg in enumerate(argv):
        flag, equals, value = arg.partition("=")
        if flag.replace("_", "-") == f"--{name}":
            found = value if equals else argv[i + 1] if i + 1 < len(argv) else found
    return found


def field_docs(config: type) -> dict[str, str]:
    """The string under each field of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if "__dataclass_fields__" not in vars(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for before, after in pairwise(body):
            match before, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _parser(kind: Any) -> tuple[Callable[[str], Any], str]:
    """How one value of a type is read, and what help calls it."""
    options = [a for a in (get_args(kind) or (kind,)) if a is not type(None)]
    parse = count if options == [int] else options[0]
    none = type(None) in get_args(kind)
    return lambda text: None if none and text.lower() == "none" else parse(text), options[0].__name__.upper()
