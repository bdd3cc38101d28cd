"""Text to token ids and back, from a checkpoint's tokenizer.json, with nothing added that was not asked for."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch

from scope.activations.corpus.infill import MARKS
from scope.errors import CheckpointError, TokensError
from scope.models.text.chat import ChatTemplates, render
from scope.models.text.tokenizer_names import TransformersNames
from scope.typed_json import read_bytes

_CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", *MARKS.values())
_LARGEST = 2**24
"""Ids end before; the largest vocabularies have 2^18."""


class Tokenizer(TransformersNames):
    """A fast tokenizer with Gemma's conventions: <bos> first and once, spaces kept as they are.

    `n_rows` are the rows of the model's embedding, by default as many as the tokenizer has ids. A row that no token has is
    written <its id>; a text with a token that has no row is refused. `special_ids` are the ids that stand for no text: control
    and turn tokens, whatever the checkpoint marks as special.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, chat_template: str | None = None, n_rows: int | None = None, templates: Any = None
    ):
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.chat_template = backend, chat_template
        self.templates = templates or ChatTemplates()
        last = max(backend.get_vocab().values(), default=-1)
        if last >= _LARGEST:  # the library counts through all ids before it
            raise CheckpointError(f"This tokenizer has the id {last}; ids up to {_LARGEST - 1} are read.")
        self.n_rows = last + 1 if n_rows is None else n_rows
        self.bos, self.eos, self.pad = (self._id(t) for t in ("<bos>", "<eos>", "<pad>"))
        marked = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        control = {backend.token_to_id(t) for t in _CONTROL} - {None}
        self.special_ids = frozenset(i for i in marked | control if i < self.n_rows)

    @classmethod
    def from_folder(cls, folder: Path, n_rows: int | None = None) -> "Tokenizer":
        """From tokenizer.json and what lies beside it: chat templates, and the names of the special tokens.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        file = folder / "tokenizer.json"
        if not file.exists():
            raise CheckpointError(f"{folder} has no tokenizer.json. Download the checkpoint with its tokenizer files.")
        data = read_bytes(file, CheckpointError, "Fetch it again.")
        try:
            backend = tokenizers.Tokenizer.from_buffer(data)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are none
            raise CheckpointError(f"{file} cannot be read as a tokenizer: {str(error)[:300]}. Fetch it again.") from None
        templates = ChatTemplates.from_folder(folder)
        return cls(backend, templates.default, n_rows, templates)

    def _id(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"This tokenizer has no {token}, which every Gemma tokenizer has.")
        if token_id >= self.n_rows:
            raise CheckpointError(
                f"{token} is token {token_id}, and the embedding has {self.n_rows} rows: these do not belong."
            )
        return token_id

    def __len__(self) -> int:
        return self.n_rows

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    @property
    def end_id(self) -> int | None:
        """The id of what the checkpoint calls its eos_token: the end of a turn, in some that are tuned to chat."""
        token_id = self.backend.token_to_id(self.templates.special_tokens["eos_token"])
        return token_id if token_id is not None and token_id < self.n_rows else None

    def encode(
        self, text: str, bos: bool = True, *, add_special_tokens: bool | None = None, return_tensors: str | None = None
    ) -> Any:
        """Ids of the text, after one <bos> unless the text already begins with it or `bos` is False (transformers calls it
        `add_special_tokens`). A list; with `return_tensors="pt"` a tensor [1 pos].

        Raises:
            TokensError: the text is none, or has a token without a row in the embedding.
        """
        bos, ids = bos if add_special_tokens is None else add_special_tokens, self.encode_batch([text])[0]
        ids = [self.bos, *ids] if bos and (not ids or ids[0] != self.bos) else ids
        return ids if return_tensors is None else torch.tensor([ids])

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without <bos>.

        Raises:
            TokensError: a text is none, or has a token without a row in the embedding.
        """
        for text in texts:
            check_text(text)
        rows = [e.ids for e in self.backend.encode_batch(texts, add_special_tokens=False)]
        for ids in rows:
            if ids and max(ids) >= self.n_rows:
                raise TokensError(
                    f"{self.backend.id_to_token(max(ids))!r} is token {max(ids)}, and this model's embedding ends at row "
                    f"{self.n_rows - 1}: the token was added to the tokenizer and not to the model.\n"
                    "  Leave it out of the text, or give a checkpoint with a resized embedding (resize_token_embeddings)."
                )
        return rows

    def decode(self, ids: Any, skip_special: bool = True, *, skip_special_tokens: bool | None = None, **_: Any) -> str:
        """The text of tokens, or of one, without control tokens unless `skip_special` (transformers: `skip_special_tokens`) is
        False; a row of the embedding that no token has is written <its id>."""
        skip_special = skip_special if skip_special_tokens is None else skip_special_tokens
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        text, run = "", []
        for i in map(int, [ids] if isinstance(ids, int) else ids):
            if 0 <= i < self.n_rows and self.backend.id_to_token(i) is None:
                text += self.backend.decode(run, skip_special_tokens=skip_special) + f"<{i}>"
                run = []
            else:
                run.append(self._checked(i))
        return text + self.backend.decode(run, skip_special_tokens=skip_special)

    def pieces(self, ids: Iterable) -> list[str]:
        """The text of each token, unescaped. A token that is part of a character shows its byte, as <0xE6>."""
        ids = [self._checked(int(i)) for i in ids]
        names = [self.backend.id_to_token(i) or f"<{i}>" for i in ids]
        return [name if i in self.special_ids else name.replace("▁", " ") for i, name in zip(ids, names, strict=True)]

    def _checked(self, i: int) -> int:
        if not 0 <= i < self.n_rows:
            raise TokensError(f"Token id {i} is not in the vocabulary, which ends at {self.n_rows - 1}.")
        return i

    def vocab(self) -> list[str]:
        """The piece of every id, in order."""
        return self.pieces(range(self.n_rows))

    def chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **variables) -> str:
        """Turns laid out by the checkpoint's own template; it already begins with <bos>. `variables` are what else a template
        reads: `tools` and `documents`, or the guideline of a ShieldGemma.

        Raises:
            TokensError: the checkpoint brings no template, or its template refuses the turns or cannot be read.
        """
        template = self.templates.for_tools(self.chat_template) if variables.get("tools") else self.chat_template
        if not template:
            raise TokensError(self.templates.why_none())
        return render(template, messages, add_generation_prompt, self.templates.special_tokens | variables)


def check_text(text: str) -> None:
    """Raises TokensError for what is no text, or holds half of a surrogate pair, as JSON with a lone \\ud83d does."""
    if not isinstance(text, str):
        raise TokensError(f"A text is expected, and this is a {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokensError(
            f"The text holds {text[error.start]!r} at character {error.start}: half of a surrogate pair, no character.\n"
            '  Remove it, as text.encode("utf-8", "ignore").decode() does.'
        ) from None
