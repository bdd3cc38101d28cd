"""Models larger than memory: the weights stay on disk, and each block is read when a large batch comes to it.

What is resident: one block in the compute dtype, the residual stream of the whole batch, what is recorded, and the
temporaries of a few thousand tokens. A batch of many thousand tokens pays for reading each block once.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.models.adapters import Adapter
from scope.models.parts.cache import ModelCache
from scope.models.parts.decoder import Decoder
from scope.models.parts.embedding import Embedding, Unembed
from scope.models.stored import Reader
from scope.models.weights import check_finite, check_tied, matching, put
from scope.shapes import Logits, Mask, Positions, Resid, Tokens

TOKENS_AT_ONCE = 4096
"""Tokens whose temporaries exist at one time, in whole contexts."""

_VOCABULARY_PIECE = 8192


class StoredWeights:
    """A checkpoint's tensors under our names, read when asked for, in one dtype, on one device.

    Raises:
        CheckpointError: a tensor that is missing, unknown or of another shape; not finite, when it is first read.
    """

    def __init__(
        self,
        model: Decoder,
        files: dict[str, Path],
        dtype: torch.dtype,
        device: str | torch.device,
        adapter: Adapter | None = None,
    ):
        self.updates = adapter.updates if adapter else {}
        if "embed.weight" in self.updates:
            raise ConfigError(
                "This adapter changes the embedding, which a streamed model reads row by row. Load it without streaming, or "
                "merge the adapter first."
            )
        self.stored, head = matching(model, files)
        self.dtype, self.device = dtype, torch.device(device)
        self.reader = Reader([*self.stored.values(), *([head] if head else [])])
        self.checked: set[str] = set()  # names of what was found finite
        self.ahead = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self.reading: Future | None = None
        if head:
            check_tied(model, self.reader, head, self.pieces("embed.weight", _VOCABULARY_PIECE))

    def read(self, name: str, into: Tensor, first_row: int = 0) -> Tensor:
        return self.reader.read(self.stored[name], into, first_row)

    def read_whole(self, name: str, into: Tensor) -> Tensor:
        self.read(name, into)
        if name not in self.checked:
            check_finite(self.stored[name], into)
            self.checked.add(name)
        if name in self.updates:
            into.copy_(self.updates[name].applied(into))
        return into

    def pieces(self, name: str, rows: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a matrix, in one buffer."""
        n, width = self.stored[name].shape
        buffer = torch.empty(min(rows, n), width, dtype=self.dtype, device=self.device)
        for first in range(0, n, len(buffer)):
            piece = self.read(name, buffer[: min(len(buffer), n - first)], first)
            if name not in self.checked:
                check_finite(self.stored[name], piece)
            yield first, piece
        self.checked.add(name)

    def read_ahead(self, names: list[str]) -> None:
        """Begin to bring these into the system's cache."""
        self.reading = self.ahead.submit(self.reader.read_ahead, [self.stored[name] for name in names])

    def await_reading(self) -> None:
        if self.reading is not None:
            self.reading.result()


class StreamedEmbedding(Embedding):
    """Reads only the rows that the tokens need."""

    def __init__(self, d_vocab: int, d_model: int, weights: StoredWeights, scale_dtype: torch.dtype | None = None):
        super().__init__(d_vocab, d_model, scale_dtype)
        self.weights = weights

    def forward(self, tokens: Tokens) -> Resid:
        ids, where = tokens.cpu().unique(return_inverse=True)
        rows = torch.empty(len(ids), self.embedding_dim, dtype=self.weights.dtype)
        for row, i in zip(rows, ids.tolist(), strict=True):
            self.weights.read("embed.weight", row, i)
        check_finite(self.weights.stored["embed.weight"], rows)
        return (rows * self.scale_in(self.weights.dtype, rows.device))[where].to(self.weights.device)


class StreamedUnembed(Unembed):
    """Reads the embedding in pieces of the vocabulary."""

    def __init__(self, embed: StreamedEmbedding):
        super().__init__(embed)
        self.weights = embed.weights

    def forward(self, normalized: Resid) -> Logits:
        x = self.hook_in(normalized)
        scores = x.new_empty(*x.shape[:-1], self.weights.stored["embed.weight"].shape[0])
        for first, rows in self.weights.pieces("embed.weight", _VOCABULARY_PIECE):
            scores[..., first : first + len(rows)] = nn.functional.linear(x, rows)
        return self.hook_out(scores)


def _refused(name: str) -> property:
    def refuse(self):
        raise ConfigError(f"A streamed model keeps no weights in memory, so it has no {name}. Load it without streamed=True.")

    return property(refuse)


def streamed_class(family: type[Decoder]) -> type[Decoder]:
    """The family's model, streamed: `streamed_class(Gemma)(config, tokenizer, files, dtype, device, adapter)`."""
    return type(f"Streamed{family.__name__}", (Streamed, family), {"__doc__": Streamed.__doc__})


class Streamed(Decoder):
    """A model that reads each block when it is needed. Hooks, sites and numbers are those of the model in memory.

    `record` is what it is for: the batch passes a block in slices of about TOKENS_AT_ONCE tokens, and hooks that are
    installed meanwhile see a slice at a time (`hook.run` agrees). Any other call runs the whole batch at once, without
    gradients.
    """

    def __init__(
        self,
        config,
        tokenizer,
        files: dict[str, Path],
        dtype: torch.dtype,
        device: str | torch.device,
        adapter: Adapter | None = None,
    ):
        self._weights = None
        with torch.device("meta"):
            super().__init__(config, tokenizer)
        self._weights = StoredWeights(self, files, dtype, device, adapter)
        with torch.device("meta"):
            self.embed = StreamedEmbedding(config.d_vocab, config.d_model, self._weights, self.embedding_scale_dtype)
            self.unembed = StreamedUnembed(self.embed)
        self.setup_hooks(self.block_parts)
        self.on_placed()
        self._slots: dict[tuple[str, torch.Size], Tensor] = {}  # blocks of one kind take turns in the same memory
        for name, p in list(self.named_parameters()):
            if not name.startswith(("blocks.", "embed.")):
                values = self._weights.read_whole(name, torch.empty(p.shape, dtype=dtype, device=self.device))
                put(self, name, nn.Parameter(values, requires_grad=False))

    device = property(lambda self: self._weights.device if self._weights else torch.device("meta"))
    dtype = property(lambda self: self._weights.dtype if self._weights else torch.float32)
    streamed = property(lambda self: True)
    W_E, W_U, W_Q, W_K, W_V, W_O = map(_refused, ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O"))
    W_gate, W_in, W_out = map(_refused, ("W_gate", "W_in", "W_out"))

    def _apply(self, fn, recurse: bool = True):
        raise ConfigError("A streamed model keeps its weights on disk; give dtype and device to load_model.")

    def __deepcopy__(self, memo):
        raise ConfigError("A streamed model reads open files, which have no copy; load it a second time.")

    def stored_bytes(self, name: str) -> int:
        """What a parameter takes on the disk."""
        return self._weights.stored[name].nbytes

    @contextmanager
    def resident(self, layer: int, following: int | None):
        """Within the block, this layer's weights are in memory; meanwhile the bytes of the `following` one are read ahead."""
        self._weights.await_reading()
        block, parameters = self.blocks[layer], dict(self.blocks[layer].named_parameters())
        try:
            for name, p in parameters.items():
                slot = self._slots.get((name, p.shape))
                if slot is None:
                    slot = self._slots[name, p.shape] = torch.empty(p.shape, dtype=self.dtype, device=self.device)
                self._weights.read_whole(f"blocks.{layer}.{name}", slot)
                put(block, name, nn.Parameter(slot, requires_grad=False))
            if following is not None:
                names = [name for name, _ in self.blocks[following].named_parameters()]
                self._weights.read_ahead([f"blocks.{following}.{name}" for name in names])
            yield
        finally:
            for name, meta in parameters.items():
                put(block, name, meta)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        """As the resident model's, without gradients."""
        return super().forward(*args, **kwargs)

    @torch.no_grad()
    def record(self, tokens: Tensor, sites) -> dict[str, Tensor]:
        """The activations at `sites` for tokens [batch pos], each [batch pos width] (heads concatenated).

        Reads each block once, up to the last that a site needs. Give it as many contexts as memory holds the stream of.
        """
        names, recorded = self.rows_at(sites), {}
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        self.check(tokens)
        n_batch, n_pos = tokens.shape
        real = torch.ones_like(tokens, dtype=torch.bool)
        positions = self.positions_of(real, padded=False)
        step = max(1, TOKENS_AT_ONCE // n_pos)
        slices = [slice(start, start + step) for start in range(0, n_batch, step)]
        at = slices[0]

        def store(x: Tensor, hook) -> None:
            x = x.flatten(2)
            if hook.name not in recorded:
                recorded[hook.name] = x.new_empty(n_batch, n_pos, x.shape[-1])
            recorded[hook.name][at] = x

        def each() -> Iterator[slice]:
            nonlocal at
            for at in slices:
                self.run.tokens, self.run.positions, self.run.real = tokens[at], positions[at], real[at]
                yield at

        stop = self.layers_for(names)
        n = len(self.blocks) if stop is None else stop
        with self.hooks([(names, store)]):
            resid = torch.empty(n_batch, n_pos, self.cfg.d_model, dtype=self.dtype, device=self.device)
            for rows in each():
                resid[rows] = self.embed_tokens(tokens[rows])
            for layer in range(n):
                with self.resident(layer, layer + 1 if layer + 1 < n else None):
                    for rows in each():
                        resid[rows] = super().run_blocks(resid[rows], positions[rows], None, None, layer + 1, layer)
            for rows in each() if stop is None else ():
                self.read_out(resid[rows])
        return {site: recorded[site] for site in ([sites] if isinstance(sites, str) else sites)}

    def run_blocks(
        self,
        resid: Resid,
        positions: Positions,
        real: Mask | None,
        cache: ModelCache | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int = 0,
    ) -> Resid:
        stop = self.stop_of(stop_at_layer)
        for layer in range(start_at_layer, stop):
            with self.resident(layer, layer + 1 if layer + 1 < stop else None):
                resid = super().run_blocks(resid, positions, real, cache, layer + 1, layer)
        return resid
