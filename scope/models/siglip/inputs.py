"""Documents become inputs of a SigLIP's towers."""

from typing import Any

import numpy as np

from scope.activations.corpus.document import Document
from scope.activations.corpus.inputs import NO_TOKEN
from scope.activations.corpus.roles import Role
from scope.errors import TokensError
from scope.models.pictures.inputs import Example, InputOptions, PictureMaker
from scope.models.siglip.words import TextTowerTokenizer


class TextTowerMaker(PictureMaker):
    """Rows are the tokens of a text, padding left out, or one row for all of it. Texts that are too long are cut, as they were
    in training."""

    reads_pictures = False

    def __init__(self, options: InputOptions, words: TextTowerTokenizer, pooled: bool = False):
        self.words, self.pooled, self.rows = words, pooled, "texts" if pooled else "tokens of texts"
        super().__init__(options, 1 if pooled else words.cfg.n_ctx)

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"sha256": self.words.sha256, "pad": self.words.pad}

    def example(self, document: Document, context: int) -> Example:
        text = document.text or " ".join(part for part in (document.question, document.answer) if part)
        if not text:
            raise TokensError(f"{document.name} has no text.")
        ids = self.words.to_tokens(text, truncate=True)[0].numpy()
        if self.pooled:
            tokens, roles = np.array([NO_TOKEN], np.int32), np.array([Role.TEXT], np.uint8)
        else:
            n = min(len(self.words.encode(text)), len(ids))
            tokens, roles = ids.astype(np.int32), np.full(len(ids), int(Role.TEXT), np.uint8)
            roles[n:] = Role.PADDING
            if self.words.eos is not None:
                roles[n - 1] = Role.SPECIAL
        return Example(tokens=tokens, roles=roles, arguments={"input_ids": ids.astype(np.int64)})
