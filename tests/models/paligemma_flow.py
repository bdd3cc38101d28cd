"""A PaliGemma of transformers' as `flow` wants a Gemma: its language model, run on tokens together with a picture."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from tests.models.flow import Named, _loss, flow
from tests.models.vision_flow import TowerFlow


def as_language_model(theirs, run: Callable):
    """What `flow` reads (config, model, lm_head) and calls: `run(tokens, **options)` runs the whole on tokens and a picture."""
    inner = theirs.model.language_model

    class Language:
        config, model, lm_head = theirs.config.text_config, inner, theirs.lm_head

        def __call__(self, tokens: Tensor, position_ids: Tensor | None = None, **options: Any):
            places = {} if position_ids is None else {"position_ids": position_ids + 1}
            return run(tokens, **places, **options)

    Language.__module__ = type(inner).__module__
    return Language()


def paligemma_flow(theirs, inputs: dict[str, Tensor], mask: Tensor | None = None) -> tuple[Named, Named, TowerFlow, Named]:
    """(values and gradients of the language model's hooks, the tower's flow and gradients) for the loss `_loss`."""
    tokens = inputs["input_ids"]
    given = {name: x for name, x in inputs.items() if name not in ("input_ids", "attention_mask", "position_ids")}
    values, grads = flow(as_language_model(theirs, partial(theirs, **given)), tokens, mask, grad=True)
    tower = TowerFlow()
    with tower.watch(theirs.model.vision_tower, "vision."):
        tower.on(theirs.model.multi_modal_projector, "projector.hook_out")
        out = theirs(**inputs)
    return values, grads, tower, tower.gradients(_loss(out.logits, tokens, mask))
