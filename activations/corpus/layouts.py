"""Layouts of records: which fields of a line or row hold the text, a chat, or token ids. A layout is a row of `LAYOUTS`."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from scope.activations.corpus.document import Document, Turn, clean
from scope.activations.errors import CorpusError

TEXT = "text"
"""The field that is read by default."""

_NAME = 1000  # characters of a document's name

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Other names of roles -> those of chat templates."""


@runtime_checkable
class RecordFields(Protocol):
    """Reads documents from records in a way of its own, as `scope.activations.pictures.fields.PictureFields` does."""

    @property
    def identity(self) -> dict[str, Any]: ...
    def columns(self, there: Collection[str]) -> list[str] | None: ...
    def document(self, record: Mapping[str, Any], source: str, name: str) -> Document: ...


@dataclass(frozen=True)
class Layout:
    """Fields that a record must have, further ones that are read, and what they mean: turns of a chat, or token ids."""

    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Any]
    more: tuple[str, ...] = ()
    ids: bool = False
    """Whether it holds token ids instead of turns."""


def _question(question: str, answer: str, *context: str) -> Layout:
    """A question with optional context, and its answer."""

    def turns(record: Mapping[str, Any]) -> list[dict[str, Any]]:
        parts = [record[question], *(record[name] for name in context if record.get(name))]
        return [{"role": "user", "content": "\n\n".join(map(str, parts))}, {"role": "assistant", "content": record[answer]}]

    return Layout((question, answer), turns, context)


def _preferred(record: Mapping[str, Any]) -> Any:
    """The chosen answer to a prompt; lists of turns may hold the prompt again, or only the answer."""
    prompt, chosen = record.get("prompt"), record["chosen"]
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    after = [{"role": "assistant", "content": chosen}] if isinstance(chosen, str) else chosen
    whole = isinstance(after, list) and after and isinstance(after[0], Mapping) and _role(after[0]) != "assistant"
    return after if whole or not before else [*before, *after]


LAYOUTS = (
    Layout(("messages",), lambda r: r["messages"]),
    Layout(("conversations",), lambda r: r["conversations"]),
    Layout(("conversation",), lambda r: r["conversation"]),
    Layout(("prompt", "chosen"), _preferred),
    Layout(("chosen",), _preferred),
    _question("instruction", "output", "input"),
    _question("instruction", "response", "context"),
    _question("prompt", "completion"),
    _question("prompt", "response"),
    _question("question", "answer"),
    _question("problem", "solution"),
    _question("inputs", "targets"),
    Layout(("input_ids",), lambda r: r["input_ids"], ("attention_mask",), ids=True),
    Layout(("tokens",), lambda r: r["tokens"], ids=True),
)
"""Layouts of sets without a field "text", in the order in which they are tried."""


def layout_of(fields: Collection[str]) -> Layout | None:
    """The first layout whose fields are there."""
    return next((layout for layout in LAYOUTS if set(layout.fields) <= set(fields)), None)


def columns(field: str | RecordFields, there: Collection[str]) -> list[str] | None:
    """The columns of a table that have to be read; None if it has neither the field nor a known layout."""
    if not isinstance(field, str):
        return field.columns(there)
    if field in there:
        return [field]
    layout = layout_of(there) if field == TEXT else None
    return [name for name in (*layout.fields, *layout.more) if name in there] if layout else None


def document_of(record: Any, field: str | RecordFields, source: str, name: str) -> Document:
    """The document of a record. `source` is what a message calls the record, `name` the document's if it has none itself.

    Raises:
        CorpusError: it has no such field and no known layout, or the field holds neither text, nor turns, nor token ids.
    """
    if not isinstance(record, Mapping):
        raise CorpusError(f"{source}, has no fields. It has a {type(record).__name__}.")
    if not isinstance(field, str):
        return field.document(record, source, name)
    value = record.get(field)
    layout = layout_of([key for key, there in record.items() if there is not None]) if field == TEXT and value is None else None
    name = clean(str(record.get("name") or record.get("id") or name)[:_NAME])
    try:
        if isinstance(value, str):
            return Document(name, clean(value))
        content = layout.read(record) if layout else value
        if isinstance(content, list) and (layout is None or layout.ids) and all(type(item) is int for item in content):
            mask = record.get("attention_mask") if layout else None
            kept = [i for i, m in zip(content, mask, strict=True) if m] if isinstance(mask, list) else content
            return Document(name, "", ids=tuple(kept))
        if isinstance(content, list) and all(isinstance(item, Mapping) for item in content):
            turns = tuple(Turn(clean(_role(item)), clean(_content(item))) for item in content)
            return Document(name, "\n\n".join(turn.content for turn in turns), turns)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorpusError(
            f"{source}, cannot be read as {' and '.join(layout.fields if layout else [field])}: {error}."
        ) from None
    there = ", ".join(map(str, record))[:500]
    raise CorpusError(f'{source}, has no text in a field "{field}". It has fields: {there}. Name one with --text-field.')


def _role(turn: Mapping[str, Any]) -> str:
    role = str(turn.get("role") or turn.get("from") or "").lower()
    if not role:
        raise ValueError("a turn has no role")
    return ROLES.get(role, role)


def _content(turn: Mapping[str, Any]) -> str:
    """The text of a turn, which may come in parts."""
    content = turn["content"] if "content" in turn else turn["value"]
    if isinstance(content, list):
        other = [part for part in content if not (isinstance(part, Mapping) and isinstance(part.get("text"), str))]
        if other:
            raise ValueError(f"a turn holds {str(other[0])[:60]}, which is no text")
        content = "\n".join(part["text"] for part in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"a turn holds a {type(content).__name__} instead of text")
    return content
