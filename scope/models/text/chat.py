"""The chat templates of a checkpoint, read as transformers reads them and rendered by its own renderer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import CheckpointError, TokensError
from scope.typed_json import read_bytes, read_typed

_AGAIN = "Fetch it again."
_GEMMAS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class _Token:
    content: str


@dataclass(frozen=True)
class _Named:
    name: str
    template: str


@dataclass(frozen=True)
class _SpecialTokens:
    """The names that a template may use; in tokenizer_config.json, or in the older special_tokens_map.json."""

    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    mask_token: str | _Token | None = None

    def texts(self) -> dict[str, str]:
        named = {name: getattr(self, name) for name in _SpecialTokens.__dataclass_fields__}
        return {name: getattr(token, "content", token) for name, token in named.items() if token is not None}


@dataclass(frozen=True)
class _Settings(_SpecialTokens):
    """What is read of tokenizer_config.json."""

    chat_template: str | list[_Named] | dict[str, str] | None = None
    added_tokens_decoder: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatTemplates:
    """Templates by name, "default" among them where there is one for every case, and the special tokens that they write."""

    by_name: dict[str, str] = field(default_factory=dict)
    special_tokens: dict[str, str] = field(default_factory=lambda: dict(_GEMMAS))

    default = property(lambda self: self.by_name.get("default"))

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplates":
        """From chat_template.jinja and additional_chat_templates/, or else from tokenizer_config.json.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        config, older, jinja = (
            folder / name for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
        )
        settings = read_typed(config, _Settings, CheckpointError, _AGAIN) if config.exists() else _Settings()
        tokens = read_typed(older, _SpecialTokens, CheckpointError, _AGAIN) if older.exists() else _SpecialTokens()
        if settings.added_tokens_decoder is not None:  # as in transformers, which else has the older file go before
            tokens = _SpecialTokens()
        files = {"default": jinja} if jinja.exists() else {}
        files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        by_name = {name: _text(file) for name, file in files.items()}
        if not by_name and isinstance(settings.chat_template, str):
            by_name = {"default": settings.chat_template}
        elif not by_name and isinstance(settings.chat_template, dict):
            by_name = settings.chat_template
        elif not by_name:
            by_name = {named.name: named.template for named in settings.chat_template or ()}
        if not by_name and settings.chat_template is not None and settings.chat_template != "":
            raise CheckpointError(f"{config} is damaged: its chat_template names no template. {_AGAIN}")
        return cls(by_name, _GEMMAS | settings.texts() | tokens.texts())

    def for_tools(self, template: str | None) -> str | None:
        """The template for turns with tools."""
        return self.by_name.get("tool_use", template)

    def why_none(self) -> str:
        """Why there is no template to lay out turns."""
        if self.by_name:
            return f"This checkpoint has chat templates for {', '.join(self.by_name)}, and none that is called default."
        return "This checkpoint has no chat template; give it plain text, or use an instruction-tuned one."


def _text(file: Path) -> str:
    try:
        return read_bytes(file, CheckpointError, _AGAIN).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is damaged: {error}. {_AGAIN}") from None


def render(template: str, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: dict[str, Any]) -> str:
    """The turns as `apply_chat_template` of transformers writes them.

    Raises:
        TokensError: there are no turns, the template refuses them, or it cannot be used.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if not messages or not all(isinstance(message, dict) for message in messages):
        raise TokensError('Turns are a list of messages such as {"role": "user", "content": "Hello"}, at least one.')
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=add_generation_prompt, **variables
        )
    except Exception as error:  # whatever an expression in the template comes to
        if type(error) is TemplateError:  # from raise_exception in the template
            raise TokensError(f"The chat template refuses these messages: {error}") from None
        raise TokensError(
            f"The chat template of this checkpoint cannot be used here: {type(error).__name__}: {str(error)[:300]}"
        ) from None
    return rendered[0]
