"""Text to token ids and back, from a checkpoint's tokenizer.json, with nothing added that was not asked for."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import tokenizers

from scope.errors import CheckpointError, TokensError

_CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")


class Tokenizer:
    """A fast tokenizer with Gemma's conventions: <bos> first and once, spaces kept as they are.

    `special_ids` are the ids that stand for no text: control and turn tokens, whatever the checkpoint marks as special.
    """

    def __init__(self, backend: tokenizers.Tokenizer, chat_template: str | None = None):
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.chat_template = backend, chat_template
        self.bos, self.eos, self.pad = (self._id(t) for t in ("<bos>", "<eos>", "<pad>"))
        marked = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        control = {backend.token_to_id(t) for t in _CONTROL} - {None}
        self.special_ids = frozenset(marked | control)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """From tokenizer.json (and the chat template beside it).

        Raises:
            CheckpointError: the file is missing or cannot be read.
        """
        file = folder / "tokenizer.json"
        if not file.exists():
            raise CheckpointError(f"{folder} has no tokenizer.json. Download the checkpoint with its tokenizer files.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file} cannot be read as a tokenizer: {error}") from None
        config = folder / "tokenizer_config.json"
        try:
            template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.exists() else None
        except (ValueError, AttributeError, OSError) as error:
            raise CheckpointError(f"{config} cannot be read: {error}. Fetch it again.") from None
        if isinstance(template, list):  # several, by name
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        jinja = folder / "chat_template.jinja"
        return cls(backend, jinja.read_text(encoding="utf-8") if jinja.exists() else template)

    def _id(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"This tokenizer has no {token}, which every Gemma tokenizer has.")
        return token_id

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids of the text, after one <bos> unless the text already begins with it or `bos` is False."""
        ids = self.backend.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if bos and (not ids or ids[0] != self.bos) else ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without <bos>."""
        return [e.ids for e in self.backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids, skip_special: bool = True) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def pieces(self, ids) -> list[str]:
        """The text of each token, unescaped. A token that is part of a character shows its byte, as <0xE6>."""
        names = [self.backend.id_to_token(int(i)) for i in ids]
        if None in names:
            bad = next(int(i) for i, name in zip(ids, names, strict=True) if name is None)
            raise TokensError(f"Token id {bad} is not in the vocabulary, which ends at {len(self) - 1}.")
        return [name if int(i) in self.special_ids else name.replace("▁", " ") for i, name in zip(ids, names, strict=True)]

    def vocab(self) -> list[str]:
        """The piece of every id, in order."""
        return self.pieces(range(len(self)))

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True, **variables) -> str:
        """Turns laid out by the checkpoint's own template; it already begins with <bos>. `variables` are what else a
        template asks for, such as the guideline of a ShieldGemma.

        Raises:
            TokensError: the checkpoint brings no template, or its template refuses the turns or cannot be read.
        """
        if not self.chat_template:
            raise TokensError("This checkpoint has no chat template; give it plain text, or use an instruction-tuned one.")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str):
            raise TokensError(f"The chat template refuses these messages: {message}")

        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        env.globals["raise_exception"] = refuse
        known = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
        }
        try:
            return env.from_string(self.chat_template).render(known | variables)
        except TemplateError as error:
            raise TokensError(f"The chat template of this checkpoint cannot be used here: {error}") from None
