"""Rules for which tokens an edit touches, by absolute positions, so that cached and uncached generation agree."""

from dataclasses import dataclass

import torch

from scope.errors import EditError
from scope.models.hooks import RunState
from scope.shapes import Mask

KINDS = {
    "not_bos": "every token but <bos>",
    "all": "every token, <bos> too",
    "content": "every token but <bos> and the special tokens of a chat template",
    "prompt": "the prompt but <bos>",
    "generated": "the tokens that are generated",
    "last_prompt": "the last token of the prompt",
    "image": "the patches of a picture",
    "text": "every token but <bos> and the patches of a picture",
    "from": "from position k on (<bos> is 0)",
}


@dataclass(frozen=True)
class Positions:
    """A rule, not a list: it is applied anew at every step of a generation.

    <bos> is left out by default: its norm is many times that of other tokens, and many heads rest on it.
    """

    kind: str = "not_bos"
    start: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            rules = "\n".join(f"  {'from:K' if k == 'from' else k:<12} {text}" for k, text in KINDS.items())
            raise EditError(f"There are no positions {self.kind!r}. There are:\n{rules}")
        if self.start < 0:
            raise EditError(f"Positions start at 0, the place of <bos>; from:{self.start} means nothing.")

    @classmethod
    def of(cls, rule: "Positions | str") -> "Positions":
        """From text: "generated", "from:12"."""
        if isinstance(rule, Positions):
            return rule
        kind, colon, start = str(rule).partition(":")
        if kind == "from":
            if not start.isdecimal():
                raise EditError(f"positions are {rule!r}; say from which position on, as in from:12.")
            return cls("from", int(start))
        return cls(rule if colon else kind)

    def mask(self, run: RunState, bos: int, eos: int, special: frozenset[int] = frozenset(), image: int | None = None) -> Mask:
        """Where, in what flows past right now, this rule holds. Outside a generation everything is prompt. `image` is the token
        that stands for a patch, of a model that reads pictures.

        Never at padding, and never at the `eos` that a finished row of a batch is fed with while others still write.
        """
        positions, chosen = run.positions, run.real.clone()
        if run.prompt_lengths is None:
            lengths = torch.where(run.real, positions, -1).amax(1, keepdim=True) + 1
        else:
            lengths = run.prompt_lengths[:, None]
            chosen &= (positions < lengths) | (run.tokens != eos)
        if self.kind != "all":
            chosen &= run.tokens != bos
        if self.kind in ("image", "text") and image is None:
            raise EditError(f"There are no positions {self.kind!r} without a picture, and this model reads none.")
        if self.kind == "image":
            chosen &= run.tokens == image
        elif self.kind == "text":
            chosen &= run.tokens != image
        elif self.kind == "content":
            chosen &= ~torch.isin(run.tokens, torch.tensor(sorted(special), device=run.tokens.device))
        elif self.kind == "prompt":
            chosen &= positions < lengths
        elif self.kind == "generated":
            chosen &= positions >= lengths
        elif self.kind == "last_prompt":
            chosen &= positions == lengths - 1
        elif self.kind == "from":
            chosen &= positions >= self.start
        return chosen

    def __str__(self) -> str:
        return f"from:{self.start}" if self.kind == "from" else self.kind
