"""Takes the state of a recurrent model apart into what each token left. With the gates of a text as they are, it is a sum:

    h_T = sum over t <= T of (a_(t+1) ... a_T) w_t

so for each token there is a vector, what is left at T of what it wrote, and these vectors add up to the state. From them, per
token and time: the length that is left, the share of the state (the projection on it, in parts of its squared length), and what
the token adds to a latent of an SAE of the state: x . e_j is linear, so these add up to its pre-activation, less the bias.

Where a document starts, sqrt(1 - a^2) is left out of the write, which is so many times longer: it stands apart, as <bos> does
in a residual stream. That gates and writes of later tokens depend on earlier ones is no part of the sum: they are as they are.
Source: Griffin, section 2.4, arXiv:2402.19427.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scope.activations.corpus.inputs import counted_tokens
from scope.circuits.memory_result import LayerMemory, Memory
from scope.errors import ConfigError, DictionaryError, TokensError
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.models.griffin.shares import Recurrence, for_each_recurrence, layer_of, recurrent_layers, remaining
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.texts import for_each_text

MOST_TIMES = 256
"""Times at most, unless they are named: of longer texts evenly spaced ones."""

EDITED = 1e-3
"""A gap beyond any rounding: a hook changes the states while they are read."""

Chat = Sequence[Mapping[str, str]]


def memory(
    model: LanguageModel,
    text: str | Chat | Iterable[str],
    sae: SAE | None = None,
    latents: Sequence[int] | None = None,
    *,
    layers: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
    most: int = 6,
    any_model: bool = False,
) -> Memory | list[Memory]:
    """What is left of each token of a text in the states of the recurrent layers; several texts give a list, the turns of a
    chat (role and content) one text by the model's template.

    `sae` is one of hook_state or hook_write of a recurrent layer; `latents` are those to read, by default the `most` that fire
    strongest in the text. `times` are positions after which the state is taken apart: by default all, or 256 evenly spaced
    ones of a longer text, the last always with them.

    Raises:
        ConfigError: a model without recurrence, a layer that has none, times outside of the text, hooks that edit the state.
        DictionaryError: an SAE of another model or site.
        TokensError: no text, or one longer than the context.
    """
    known = recurrent_layers(model)
    strange = sorted(set(layers or ()) - set(known))
    if strange:
        raise ConfigError(f"Layer {strange[0]} has no recurrence; those that have one: {', '.join(map(str, known))}.")
    reads = None if sae is None else _layer_read(model, sae, any_model)
    if latents is not None and sae is None:
        raise DictionaryError("Latents are those of an SAE. Give one of a state: --sae DICTIONARY, or sae=...")
    if sae is not None and latents is not None:
        wrong = [j for j in latents if not 0 <= j < sae.d_sae]
        if wrong:
            raise DictionaryError(f"There is no latent {wrong[0]}: this SAE's run from 0 to {sae.d_sae - 1}.")
    chosen = sorted({*(layers or known), *([] if reads is None else [reads])})

    def one(text: str) -> Memory:
        return _of_text(model, text, sae, reads, latents, chosen, times, most)

    return for_each_text(_rendered(model, text), one, TokensError)


def _rendered(model: LanguageModel, text: Any) -> Any:
    """The text of a chat that is given as turns; anything else as it is."""
    turns = isinstance(text, Sequence) and not isinstance(text, str) and text and all(isinstance(t, Mapping) for t in text)
    return model.words.chat([dict(turn) for turn in text], add_generation_prompt=False) if turns else text


def _layer_read(model: LanguageModel, sae: SAE, any_model: bool) -> int:
    layer = layer_of(check_fit(model, sae, any_model, reconstructs=True))
    if layer is None:
        raise DictionaryError(
            f"This SAE reads {sae.site}. What a token leaves adds up at states and writes alone: blocks.N.rec.hook_state and "
            "blocks.N.rec.hook_write.\n  Train one there: scope harvest --site blocks.0.rec.hook_state, then scope train"
        )
    return layer


def _of_text(
    model: LanguageModel,
    text: str,
    sae: SAE | None,
    reads: int | None,
    latents: Sequence[int] | None,
    layers: Sequence[int],
    times: Sequence[int] | None,
    most: int,
) -> Memory:
    if not text:
        raise TokensError("The text is empty: there is nothing to remember. Give some text, such as 'The dog runs'.")
    tokens = model.to_tokens(text)
    at = _times(times, tokens.shape[1])
    counted = counted_tokens(tokens, model.special_ids)[0].cpu()

    def take_apart(layer: int, recurrence: Recurrence) -> LayerMemory:
        return _taken_apart(layer, recurrence, at, sae if layer == reads else None, latents, counted, most)

    by_layer = for_each_recurrence(model, tokens, layers, take_apart)
    return Memory(
        text=text,
        pieces=tuple(model.words.pieces(tokens[0].tolist())),
        ids=tuple(tokens[0].tolist()),
        model=str(model.provenance.get("model") or "this model"),
        times=tuple(at),
        layers=tuple(by_layer[layer] for layer in layers),
        site="" if sae is None else sae.site,
        dictionary="" if sae is None else parameters_sha256(sae),
    )


def _times(times: Sequence[int] | None, n: int) -> list[int]:
    if times is None:
        return sorted({*np.linspace(0, n - 1, min(n, MOST_TIMES)).round().astype(int).tolist(), n - 1})
    wrong = [t for t in times if not 0 <= t < n or t != int(t)]
    if wrong or not len(times):
        what = f"{wrong[0]} is none of them" if wrong else "none was given"
        raise ConfigError(f"Times are positions of tokens, here 0 to {n - 1}; {what}.")
    return sorted({*map(int, times), n - 1})


@torch.no_grad()
def _taken_apart(
    layer: int,
    recurrence: Recurrence,
    times: Sequence[int],
    sae: SAE | None,
    latents: Sequence[int] | None,
    counted: torch.Tensor,
    most: int,
) -> LayerMemory:
    """
    Raises:
        ConfigError: the sum is not the state.
    """
    n, m = len(recurrence.write), len(times)
    state = recurrence.state[times]
    ids, rows, bias, activation = _read(sae, recurrence, latents, counted, most)
    squared, share = (torch.zeros(n, m, dtype=torch.float64) for _ in range(2))
    contribution = torch.zeros(len(ids), n, m, dtype=torch.float64)
    gap, largest = 0.0, float(state.abs().max())
    for channels, index, left in remaining(recurrence, times):
        until = len(left)
        squared[:until, index] += left.square().sum(1)
        share[:until, index] += left @ state[index, channels]
        gap = max(gap, float((left.sum(0) - state[index, channels]).abs().max()))
        if len(ids):
            contribution[:, :until, index] += rows[:, channels] @ left.T
    gap = gap / largest if largest else gap
    if not gap < EDITED:
        raise ConfigError(
            f"In layer {layer} the sum over tokens misses the state by {gap:.1e} of its largest number: a hook changes the "
            "state while it is read, and then it is no sum of what was written.\n  Take hooks off first: model.reset_hooks()"
        )
    norm = state.norm(dim=1)
    return LayerMemory(
        layer=layer,
        length=_float32(squared.sqrt()),
        share=_float32(share / norm.square().clamp(min=1e-300)),
        written=recurrence.write.norm(dim=1).numpy(),
        lengthening=recurrence.lengthening.numpy(),
        starts=recurrence.starts.numpy(),
        state_norm=norm.numpy(),
        gap=gap,
        latents=np.array(ids, dtype=np.int64),
        contribution=_float32(contribution),
        bias=bias.numpy(),
        activation=activation[:, times].numpy(),
    )


def _float32(x: torch.Tensor) -> np.ndarray:
    return x.float().numpy()


def _read(
    sae: SAE | None, recurrence: Recurrence, latents: Sequence[int] | None, counted: torch.Tensor, most: int
) -> tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]:
    """The latents, their encoder rows [latent channel], biases, and activations [latent pos]."""
    if sae is None:
        nothing = torch.zeros(0, recurrence.write.shape[1], dtype=torch.float64)
        return [], nothing, nothing[:, 0], torch.zeros(0, len(recurrence.write), dtype=torch.float64)
    x = recurrence.state if sae.site.endswith("hook_state") else recurrence.write
    activations = sae.encode(x.to(sae.W_enc)).detach().double().cpu()
    if latents is None:
        strongest = torch.where(counted[:, None], activations, 0).amax(0)
        latents = [j for j in strongest.topk(min(most, sae.d_sae)).indices.tolist() if strongest[j] > 0]
    ids = [int(j) for j in latents]
    rows, bias = sae.W_enc.detach()[:, ids].T.double().cpu(), sae.b_enc.detach()[ids].double().cpu()
    return ids, rows, bias, activations[:, ids].T
