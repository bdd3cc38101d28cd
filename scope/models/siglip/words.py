"""SigLIP's texts: lower case, no punctuation, an end token, padded to the tower's length with the pad token."""

import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch

from scope.errors import CheckpointError, TokensError
from scope.models.siglip.config import TextConfig
from scope.models.text.tokenizer import check_text
from scope.shapes import Tokens
from scope.typed_json import read_bytes, read_typed

_AGAIN = "Fetch it again."
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class _Token:
    content: str


@dataclass(frozen=True)
class _Settings:
    """What is read of tokenizer_config.json."""

    tokenizer_class: str | None = None
    do_lower_case: bool | None = True
    eos_token: str | _Token | None = "</s>"
    pad_token: str | _Token | None = None


class TextTowerTokenizer:
    """Texts to ids [text n_ctx]. `canonical` says whether texts lose case and punctuation here, as transformers'
    SiglipTokenizer takes them away; a SigLIP 2's tokenizer.json does what is to be done itself."""

    def __init__(self, backend: tokenizers.Tokenizer, c: TextConfig, eos: int | None = None, canonical: bool = True):
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.cfg, self.eos, self.canonical, self.pad = backend, c, eos, canonical, c.pad

    @classmethod
    def from_folder(cls, folder: Path, c: TextConfig) -> "TextTowerTokenizer | None":
        """From tokenizer.json and tokenizer_config.json; None where the folder holds no tokenizer.

        Raises:
            CheckpointError: a file cannot be read.
        """
        file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not file.exists():
            return None
        try:
            backend = tokenizers.Tokenizer.from_buffer(read_bytes(file, CheckpointError, _AGAIN))
        except (CheckpointError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are none
            raise CheckpointError(f"{file} cannot be read as a tokenizer: {str(error)[:300]}. {_AGAIN}") from None
        s = read_typed(settings, _Settings, CheckpointError, _AGAIN) if settings.exists() else _Settings()
        names = [t if isinstance(t, str) else t.content for t in (s.eos_token, s.pad_token) if t is not None]
        ids = [backend.token_to_id(name) for name in names]
        siglip = (s.tokenizer_class or "Siglip").startswith("Siglip")
        words = cls(backend, c, ids[0] if ids and siglip else None, siglip and s.do_lower_case is not False)
        if s.pad_token is not None and ids[-1] is not None:
            words.pad = ids[-1]
        return words

    def __len__(self) -> int:
        return self.cfg.d_vocab

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text with the end token, not padded.

        Raises:
            TokensError: the text is none.
        """
        check_text(text)
        if self.canonical:
            text = re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()
        ids = self.backend.encode(text).ids
        return ids if self.eos is None or (ids and ids[-1] == self.eos) else [*ids, self.eos]

    def to_tokens(self, texts: str | Sequence[str], truncate: bool = False) -> Tokens:
        """Ids [text n_ctx] of a text or several, padded; with `truncate`, what does not fit is dropped before the end token.

        Raises:
            TokensError: a text is none, or does not fit.
        """
        n = self.cfg.n_ctx
        rows = [self.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise TokensError("There is no text to run on. Give at least one.")
        for i, row in enumerate(rows):
            if len(row) > n and not truncate:
                raise TokensError(f"Text {i} has {len(row)} tokens, and this tower takes {n}. Cut it, or give truncate=True.")
        rows = [row if len(row) <= n else [*row[: n - 1], row[-1]] for row in rows]
        return torch.tensor([row + [self.pad] * (n - len(row)) for row in rows])

    def decode(self, ids: Any, skip_special: bool = True) -> str:
        """The text of a row of ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def vocab(self) -> list[str]:
        """The text of every id of the tower."""
        return self.pieces(range(len(self)))

    def pieces(self, ids: Any) -> list[str]:
        """The text of each token."""
        return [(self.backend.id_to_token(int(i)) or f"<{int(i)}>").replace("▁", " ") for i in ids]
