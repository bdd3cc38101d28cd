"""The same edits on a `transformers` model of the same weights, with the absolute positions that it does not keep itself."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from scope.errors import DictionaryError, EditError
from scope.models.face import LanguageModel
from scope.models.hooks import HookPoint, RunState
from scope.steering.apply.editing import Editing

_SITE = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@contextmanager
def steered_transformers(theirs: Any, editing: Editing, ours: LanguageModel) -> Iterator[Editing]:
    """Within the block, every run of `theirs` is edited: `theirs.generate(...)`, cached or not, padded or not.

    Raises:
        EditError: a site that this bridge does not reach (it does resid_pre and resid_post), or another device.
        DictionaryError: the model has other layers or other weights than the one that the edits were made for.
    """
    layers = _check(theirs, ours)
    run, tracker, stack = RunState(), _Tracker(), ExitStack()
    with stack:
        before = theirs.register_forward_pre_hook(lambda module, args, kwargs: tracker(run, args, kwargs), with_kwargs=True)
        stack.callback(before.remove)
        for site, edit in editing.hooks():
            match = _SITE.fullmatch(site)
            if not match:
                raise EditError(f"In a transformers model edits act at hook_resid_pre or hook_resid_post, not at {site}.")
            point = HookPoint()
            point.name, point.run = site, run
            layer = layers[int(match[1])]
            hook = _after(edit, point) if match[2] == "post" else _before(edit, point)
            added = layer.register_forward_hook(hook) if match[2] == "post" else layer.register_forward_pre_hook(hook)
            stack.callback(added.remove)
        yield editing


def _after(edit, point: HookPoint):
    def hook(module, args, output):
        whole = isinstance(output, tuple)
        edited = edit(output[0] if whole else output, point)
        return (edited, *output[1:]) if whole else edited

    return hook


def _before(edit, point: HookPoint):
    return lambda module, args: (edit(args[0], point), *args[1:])


class _Tracker:
    """Keeps tokens, absolute positions and prompt lengths, from what the model is called with."""

    def __init__(self):
        self.seen: torch.Tensor | None = None

    def __call__(self, run: RunState, args: tuple, kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            raise EditError("The model was called without input_ids, so the place of its <bos> is unknown.")
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        if mask is None or mask.dim() != 2:
            if mask is not None:
                raise EditError("An attention mask of more than two dimensions does not say which tokens are padding.")
            mask = torch.ones(len(tokens), past + tokens.shape[1], dtype=torch.long, device=tokens.device)
        width = tokens.shape[1]
        run.tokens, run.real = tokens, mask[:, -width:].bool()
        run.positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -width:]
        goes_on = self.seen is not None and width == self.seen.shape[1] + 1 and torch.equal(tokens[:, :-1], self.seen)
        if past == 0:
            if not goes_on:  # without a cache every step brings the whole text again
                run.prompt_lengths = mask.sum(1)
            self.seen = tokens


def _check(theirs: Any, ours: LanguageModel) -> Any:
    layers = getattr(getattr(theirs, "model", None), "layers", None)
    if layers is None or len(layers) != ours.cfg.n_layers:
        raise DictionaryError(
            f"The edits were made for a model of {ours.cfg.n_layers} blocks; this {type(theirs).__name__} has "
            f"{'no model.layers' if layers is None else f'{len(layers)}'}."
        )
    weight = theirs.get_input_embeddings().weight
    if weight.device.type != torch.device(ours.device).type:
        raise EditError(f"The edits were made for {ours.device}, and the model is on {weight.device}. Bring both to one place.")
    our_weight = ours.embed.weight
    same = weight.shape == our_weight.shape and torch.allclose(
        weight[:64].float(), our_weight[:64].float(), rtol=1e-2, atol=1e-3
    )
    if not same:
        raise DictionaryError("The model has other embeddings than the one that the edits were made for. Load that one.")
    return layers
