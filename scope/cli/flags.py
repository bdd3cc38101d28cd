"""From the config of a workflow to the flags of its command, and from the flags given back to a config.

One flag a field: its help is the text under the field, its name and type are the field's. Whole numbers may be written 50M.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from scope.workflows.settings import inner_config

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def count(text: str) -> int:
    """A whole number as people write it: 200000, 200_000, 200k, 1.5M, 2B.

    Raises:
        ValueError: it is none.
    """
    text = text.strip().lower().replace(",", "").replace("_", "")
    number = float(text[:-1]) * _SUFFIXES[text[-1]] if text[-1:] in _SUFFIXES else float(text)
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"{text} is no whole number")
    return int(number)


YES = ("yes", bool, False, "Do not ask before work that will take more than an hour.")
"""The flag of commands whose work may take hours."""

PARSERS = ConstructorRegistry()
"""How the flags of every command are read."""


@PARSERS.primitive_rule
def _counts(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """Whole numbers are read by `count`."""
    if kind.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|1.5M",
        instance_from_str=lambda args: count(args[0]),
        is_instance=lambda instance: isinstance(instance, int),
        str_from_instance=lambda instance: [str(instance)],
    )


def flags_of(
    config: type,
    positional: Collection[str] = (),
    commas: Collection[str] = (),
    marks: Mapping[str, Sequence[Any]] = {},
    more: Sequence[tuple[str, Any, Any, str]] = (),
    doc: str = "",
    hidden: Collection[str] = (),
    prefixed: bool = False,
) -> type:
    """A dataclass for tyro with the fields of `config`; those of configs within it become flags beside the others, and those of
    configs within these bear a prefix, as --sizes.top.

    `positional` fields are given without a name. Fields in `commas` take several values with commas between; "*" means all
    that hold tuples in a config within. `marks` are further annotations of a field. `more` are flags of the command alone:
    (name, type, default, help). `doc` is the text above the flags. `hidden` fields are no flags: a config around them has
    fields of those names. `prefixed` says that `config` is itself within another.
    """
    docs, made, names = field_docs(config), [], {f.name for f in fields(config)}
    for f in fields(config):
        if f.name in hidden:
            continue
        inner = inner_config(f)
        if inner is not None:
            within = {*commas, *_tuples(inner)} if "*" in commas else commas
            kind: Any = flags_of(inner, positional, within, marks, hidden=() if prefixed else names, prefixed=True)
            shown = kind if prefixed else Annotated[kind, tyro.conf.arg(name="")]
            made.append((f.name, shown, field(default_factory=kind)))
            continue
        kind = _several(f.type) if f.name in commas and get_origin(f.type) is tuple else f.type
        annotations = [tyro.conf.arg(help=docs.get(f.name, "")), *marks.get(f.name, ())]
        annotations += [tyro.conf.Positional] if f.name in positional else []
        for annotation in annotations:
            kind = Annotated[kind, annotation] if annotation is not tyro.conf.Positional else tyro.conf.Positional[kind]
        default = field() if f.default is MISSING and f.default_factory is MISSING else field(default=f.default)
        made.append((f.name, kind, default))
    for name, kind, default, text in more:
        made.append((name, Annotated[kind, tyro.conf.arg(help=text)], field(default=default)))
    flags = make_dataclass(f"{config.__name__}Flags", made, frozen=True, kw_only=True)
    flags.__doc__ = doc or inspect.getdoc(config)
    return flags


def config_of(config: type, flags: Any) -> Any:
    """The config that parsed flags describe."""
    values = {}
    for f in fields(config):
        if not hasattr(flags, f.name):
            continue  # a config around this one has a field of that name
        value = getattr(flags, f.name)
        values[f.name] = config_of(inner, value) if (inner := inner_config(f)) is not None else value
    return config(**values)


def settings_in(argv: Sequence[str]) -> dict[str, Any]:
    """Flag -> text, as far as they can be told before the flags are known; the last of a flag counts."""
    settings: dict[str, Any] = {}
    for i, arg in enumerate(argv):
        flag, equals, value = arg.partition("=")
        if flag.startswith("--") and len(flag) > 2:
            name = flag.removeprefix("--").replace("-", "_")
            settings[name] = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
    return settings


def numbers_in(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The same with whole numbers read, also several with commas between; what is none stays as it is for the parser."""
    read = dict(settings)
    for name in names & read.keys():
        try:
            read[name] = [count(part) for part in read[name].split(",") if part]
        except ValueError:
            del read[name]
    return read


def field_docs(config: type) -> dict[str, str]:
    """The string under each field of a dataclass, of those it inherits from, and of the config that a field was copied from."""
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if not is_dataclass(cls):
            continue
        for f in fields(cls):
            if (source := f.metadata.get("of")) is not None and f.name not in docs:
                docs |= {k: v for k, v in field_docs(source).items() if k == f.name}
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # made by make_dataclass
            continue
        for before, after in pairwise(body):
            match before, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def _tuples(config: type) -> set[str]:
    return {f.name for f in fields(config) if get_origin(f.type) is tuple}


def _several(kind: Any) -> Any:
    """A tuple, written with commas between: 32,64,128."""
    parse, name = _parser(get_args(kind)[0])

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


def _parser(kind: Any) -> tuple[Callable[[str], Any], str]:
    """How one value of a type is read, and what help calls it."""
    options = [a for a in (get_args(kind) or (kind,)) if a is not type(None)]
    parse = count if options == [int] else options[0]
    none = type(None) in get_args(kind)
    return lambda text: None if none and text.lower() == "none" else parse(text), options[0].__name__.upper()
