"""A transformers tokenizer with the methods of ours: byte-level or sentence-piece, whatever its control tokens are called."""

import hashlib
import json
from functools import cached_property
from typing import Any

from scope.errors import ConfigError, TokensError


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level tokenizers write each byte: printable ones as they are, the others from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


class LensTokenizer:
    """`bos`, `eos`, `pad` fall back on each other, as TransformerLens has them; `special_ids` stand for no text."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        ids = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        known = next((i for i in ids if i is not None), None)
        if known is None:
            raise ConfigError(
                "This tokenizer names no token that begins, ends or pads a text. Set one, e.g. tokenizer.eos_token."
            )
        self.eos = ids[1] if ids[1] is not None else known
        self.bos = ids[0] if ids[0] is not None else self.eos
        self.pad = ids[2] if ids[2] is not None else self.eos
        self.special_ids = frozenset({*tokenizer.all_special_ids, self.bos, self.eos, self.pad})
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        self.chat_template = getattr(tokenizer, "chat_template", None)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, *args, **kwargs) -> Any:
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name: str):
        """What else code written for transformers asks: `bos_token_id`, `get_vocab`, `padding_side`, ..."""
        if name == "tokenizer":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    @cached_property
    def sha256(self) -> str:
        description = self.backend.to_str() if self.backend else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(description.encode()).hexdigest()

    @cached_property
    def _bytes(self) -> dict[str, int] | None:
        """The byte alphabet, if the tokenizer writes in it."""
        decoder = json.loads(self.backend.to_str()).get("decoder") if self.backend else None
        return _byte_alphabet() if decoder and "ByteLevel" in json.dumps(decoder) else None

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids of the text, after one beginning token unless the text already begins with it or `bos` is False."""
        ids = self.encode_batch([text])[0]
        return [self.bos, *ids] if bos and (not ids or ids[0] != self.bos) else ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without a beginning token."""
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids, skip_special: bool = True) -> str:
        return self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )

    def pieces(self, ids) -> list[str]:
        """The text of each token. One that is part of a character shows its bytes, as <0xE6>."""
        ids = [int(i) for i in ids]
        if (bad := next((i for i in ids if not 0 <= i < len(self)), None)) is not None:
            raise TokensError(f"Token id {bad} is not in the vocabulary, which ends at {len(self) - 1}.")
        names = self.tokenizer.convert_ids_to_tokens(ids)
        return [self._text(name or "", i) for i, name in zip(ids, names, strict=True)]

    def _text(self, name: str, token: int) -> str:
        if token in self.special_ids:
            return name
        if self._bytes is None:
            return name.replace("▁", " ")
        if not set(name) <= self._bytes.keys():
            return name  # a token that was added as text
        raw = bytes(self._bytes[character] for character in name)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def vocab(self) -> list[str]:
        """The piece of every id, in order."""
        return self.pieces(range(len(self)))

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns laid out by the checkpoint's own template.

        Raises:
            TokensError: it brings no template.
        """
        if not self.chat_template:
            raise TokensError("This checkpoint has no chat template; give it plain text, or use an instruction-tuned one.")
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
