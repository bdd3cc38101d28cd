"""The cost of an edit: how much worse the model predicts ordinary texts with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.renamed import old_keywords
from scope.result import Result
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import at_each_layer, check_sites, check_tokens, dictionaries, resolve
from scope.steering.apply.strength_units import StrengthUnits, units_for
from scope.steering.compare.statistics import interval
from scope.steering.edits.interventions import Edit, Edits
from scope.texts import list_of_texts


@dataclass(frozen=True, kw_only=True)
class Cost(Result):
    """Mean loss of the next token on ordinary texts, nats."""

    n_tokens: int
    plain: float
    steered: float
    random: float
    """With a random direction of the same size."""
    low: float
    high: float
    """`low` to `high` is the 95 % interval of steered - plain, over texts."""

    bars = ("condition", "loss")

    def to_frame(self):
        """The loss of each condition, as a pandas table."""
        import pandas as pd

        return pd.DataFrame([{"condition": name, "loss": getattr(self, name)} for name in ("plain", "steered", "random")])

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"loss on {self.n_tokens} tokens: plain {self.plain:.3f}, steered {self.steered:.3f} "
            f"({self.steered - self.plain:+.3f} [{self.low:+.3f}, {self.high:+.3f}]), random direction {self.random:.3f}"
        )


@old_keywords(gauges="strength_units")
@torch.no_grad()
def cost(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    texts: str | Iterable[str],
    *,
    strength_units: StrengthUnits | Mapping[str, StrengthUnits] | None = None,
    control_seed: int = 0,
) -> Cost:
    """The loss on texts that have nothing to do with the edit, run as prompts: about 2,000 tokens are enough.

    Raises:
        EditError: no text, or an edit that cannot be applied.
        TokensError: a text longer than the context.
    """
    texts = list_of_texts(texts, EditError)
    if not all(t.strip() for t in texts):
        raise EditError("A text is empty. Give some ordinary sentences.")
    edits, saes = at_each_layer(model, Edits.of(edits)), dictionaries(sae)
    check_sites(model, saes, edits)
    check_tokens(model, edits, texts)
    units = units_for(model, saes, edits, texts, strength_units)
    resolved = [resolve(edit, saes, units) for edit in edits]
    sums = np.zeros((len(texts), 3))
    counts = np.zeros(len(texts))
    for i, text in enumerate(texts):
        tokens = model.to_tokens(text)
        counts[i] = tokens.shape[1] - 1
        for j, control in enumerate(("plain", None, control_seed)):
            hooks = [] if control == "plain" else Editing(model, saes, resolved, control=control).hooks()
            log_p = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, :-1].float().log_softmax(-1)
            sums[i, j] = -float(log_p.gather(1, tokens[0, 1:, None]).sum())
    low, high = interval((sums[:, 1] - sums[:, 0]) / counts)
    plain, steered, random = (float(s) for s in sums.sum(0) / counts.sum())
    return Cost(n_tokens=int(counts.sum()), plain=plain, steered=steered, random=random, low=low, high=high)
