"""The methods that every model of ours has, so that no other room asks which model it holds.

An argument called `model` is typed `LanguageModel` or `VisionModel`; what needs less asks for less: harvesting takes a
`Recorder` of `scope.activations`. These are protocols: whatever has the methods is a model. Only methods are held against
them at run time, by class; attributes are for readers and type checkers, since reading one may refuse (`words` of a model
without a tokenizer).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scope.models.hooks import NamesFilter
from scope.shapes import Acts, Logits, Mask, Resid, Tokens


@runtime_checkable
class TextTokenizer(Protocol):
    """Text to token ids and back."""

    if TYPE_CHECKING:
        bos: int
        eos: int
        pad: int
        special_ids: frozenset[int]  # ids that stand for no text
        sha256: str
        chat_template: str | None

    def __len__(self) -> int: ...
    def encode(self, text: str, bos: bool = True) -> list[int]: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def decode(self, ids, skip_special: bool = True) -> str: ...
    def pieces(self, ids) -> list[str]: ...
    def vocab(self) -> list[str]: ...
    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str: ...


@runtime_checkable
class Model(Protocol):
    """A model with named hook points; a site is a hook point with one row of numbers for every position."""

    if TYPE_CHECKING:
        cfg: Any
        provenance: dict[str, Any]
        device: torch.device
        dtype: torch.dtype
        streamed: bool  # whether the weights stay on disk: then no parameter can be read, copied or trained
        hook_dict: dict[str, Any]
        run: Any  # RunState: the tokens that are flowing, their absolute positions, which of them are no padding

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width, in the order in which a run passes them."""
        ...

    def match(self, names: NamesFilter) -> list[str]:
        """Names of the hook points that a filter means; a name that does not exist is refused with the nearest."""
        ...

    def layers_for(self, names: Sequence[str]) -> int | None:
        """How many blocks must run so that all names are passed; None means all, and the head."""
        ...

    def hooks(self, fwd_hooks=(), bwd_hooks=(), reset_hooks_end: bool = True, must_fire: bool = True) -> AbstractContextManager:
        """Within the block, the given (name or filter, fn(tensor, hook)) pairs are installed."""
        ...

    def record(self, tokens: Any, sites: Sequence[str]) -> dict[str, Tensor]:
        """The activations [batch pos width] at each site for a batch, running no layer above the last site."""
        ...

    def run_with_cache(self, *args, names_filter: NamesFilter = None, **kwargs) -> tuple[Any, Mapping[str, Tensor]]: ...
    def run_with_hooks(self, *args, fwd_hooks=(), bwd_hooks=(), **kwargs) -> Any: ...


@runtime_checkable
class LanguageModel(Model, Protocol):
    """`model(tokens)` gives logits. `cfg` has at least d_model, n_layers, d_vocab, n_ctx, bos, eos (a tuple), pad and
    normalization_type ("RMS", or "LN" where the norm takes the mean away)."""

    if TYPE_CHECKING:
        tokenizer: TextTokenizer | None
        words: TextTokenizer  # the tokenizer, or a refusal where there is none
        special_ids: frozenset[int]  # the tokenizer's, or, without one, those that cfg names
        W_U: Tensor  # [d_model d_vocab], what the normalised stream is multiplied with

    def __call__(self, tokens, return_type: str | None = "logits", stop_at_layer: int | None = None, **kwargs) -> Any:
        """Logits, loss, both or nothing; with `stop_at_layer`, the stream before that block."""
        ...

    def check(self, tokens: Tokens) -> None:
        """Refuse tokens that the model cannot take."""
        ...

    def to_tokens(self, text: str | list[str], prepend_bos: bool | None = True) -> Tokens: ...
    def to_single_token(self, text: str) -> int: ...
    def to_str_tokens(self, text, prepend_bos: bool | None = True) -> Any: ...

    def new_cache(self) -> Any:
        """An empty cache for this model's blocks; `model(tokens, cache=cache)` continues it."""
        ...

    def logits_of(self, resid: Resid) -> Logits:
        """The logits of a stream that left the last block."""
        ...

    def logits_from(self, layer: int, resid: Resid, tokens: Tokens, attention_mask: Mask | None = None) -> Logits:
        """The logits of a run in which `resid` is the stream before block `layer`."""
        ...

    def through_final_norm(self, directions: Tensor) -> Tensor:
        """Directions [... d_model] as the unembedding meets them, but for the norm's division. Float32."""
        ...

    def direct_logits(self, directions: Acts, tokens: Tensor | None = None) -> Tensor:
        """What directions of the stream add to the scores by the weights alone, centred over the vocabulary:
        [n d_vocab], or [n tokens] for some token ids."""
        ...


@runtime_checkable
class VisionModel(Model, Protocol):
    """`model(pixels)` gives embeddings; a row of a site is a patch of an image."""

    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches, in the order in which positions count them."""
        ...

    def to_pixels(self, images: Sequence[Any]) -> Tensor:
        """Images, resized and scaled as the model was trained: [batch channel height width]."""
        ...

    def patch_boxes(self, picture_size: Sequence[int]) -> list[tuple[float, float, float, float]]:
        """(left, top, right, bottom) of each patch in the pixels of a picture of (width, height)."""
        ...

    def inputs_for(self, sites: Sequence[str], options: Any = ...) -> Any:
        """What makes the inputs of a recording at some sites (an `InputMaker`): rows are patches, tokens, or both."""
        ...
