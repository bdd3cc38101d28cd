"""The bridge to TransformerLens: its models are recorded, trained on and evaluated here; ours goes to the tools written for it.

model = load_model("lens:gpt2")                 a TransformerLens model by name, or by a folder that transformers reads
model = lens.recorder(hooked_transformer)       one that is loaded already
root = lens.hooked_root(model)                  ours as a HookedRootModule, weights shared: SAELens' store and evals
twin = lens.hooked_transformer(model)           ours as a real HookedTransformer, weights copied
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scope.errors import CheckpointError, ConfigError, TokensError
from scope.models.hooks import HookPoint
from scope.models.parts.cache import LayerCache, ModelCache
from scope.models.parts.embedding import DirectLogits
from scope.models.parts.layers import soft_cap
from scope.models.parts.mask import as_mask
from scope.models.text.encodings import read_encoding
from scope.models.text.prompts import Side, TextMethods
from scope.models.transformer_lens.hook_api import HookApi
from scope.models.transformer_lens.kv_cache import cache_entries, run_arguments
from scope.models.transformer_lens.tokenizer import LensTokenizer
from scope.provenance import SAMPLED
from scope.shapes import Mask, Tokens

PREFIX = "lens:"
_PASSED_ON = ("W_", "b_", "blocks", "embed", "unembed", "ln_final", "tokens_to_residual_directions", "accumulated_bias")
_SWITCHES = (
    (("hook_result",), "use_attn_result"),
    (("hook_q_input", "hook_k_input", "hook_v_input"), "use_split_qkv_input"),
    (("hook_attn_in",), "use_attn_in"),
    (("hook_mlp_in",), "use_hook_mlp_in"),
)
_WHOLE = 2**30  # bytes of weights up to which version 0.1 hashed all


def recorder(lens: Any, *, name: str | None = None, bos: int | None = None, eos: int | None = None, pad: int | None = None):
    """A HookedTransformer or TransformerBridge with our vocabulary: `record`, `sites`, `hooks`, `run_with_cache`.

    It runs where and as it is; nothing is copied or folded. `name` is what provenance calls it ("lens:" and TransformerLens'
    name by default). A model without a tokenizer needs the ids that stand for no text.

    Raises:
        ConfigError: neither a tokenizer nor the ids.
    """
    return LensModel(lens, name, bos, eos, pad)


def hooked_root(model: Any) -> Any:
    """Our model as a TransformerLens HookedRootModule: same names, same hooks, the same weights in memory."""
    from scope.models.transformer_lens.hooked_root import HookedRoot

    return HookedRoot(model)


def hooked_transformer(model: Any) -> Any:
    """Our model as a HookedTransformer with a copy of the weights, for tools that want the class itself."""
    from scope.models.transformer_lens.hooked_root import export

    return export(model)


def hooked_sae_transformer(model: Any, as_theirs: Callable[[Any], Any] = lambda sae: sae) -> Any:
    """Our model as SAELens' HookedSAETransformer: `scope.hooked_sae_transformer` gives it SAEs of ours too."""
    from scope.models.transformer_lens.hooked_root import sae_transformer

    return sae_transformer(model, as_theirs)


def load(name: str, dtype: torch.dtype, device: torch.device, revision: str | None = None) -> "LensModel":
    """What `load_model("lens:NAME")` loads: a folder through TransformerBridge, a name through HookedTransformer, nothing
    folded or centred, so that activations are the model's own.

    Raises:
        CheckpointError: TransformerLens cannot load it; its reason is given.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    folder = Path(name).expanduser()
    options = {} if revision is None else {"revision": revision}
    try:
        if folder.is_dir():
            lens = TransformerBridge.boot_transformers(str(folder), dtype=dtype, device=device, **options)
        else:
            lens = HookedTransformer.from_pretrained_no_processing(name, dtype=dtype, device=str(device), **options)
    except Exception as error:  # whatever the loaders of some fifty families raise
        reason = (str(error).strip().splitlines() or [""])[0]
        reason = reason if len(reason) < 160 else f"{reason[:160]} …"  # some list every model there is
        raise CheckpointError(
            f"TransformerLens cannot load {name}: {type(error).__name__}: {reason}\n"
            "  Give a name that it knows, such as lens:gpt2, or a folder with a checkpoint that transformers reads."
        ) from error
    loaded = recorder(lens.eval(), name=PREFIX + (str(folder.resolve()) if folder.is_dir() else name))
    loaded.provenance["revision"] = revision
    return loaded


class LensConfig:
    """TransformerLens' config, and the ids that stand for no text."""

    def __init__(self, config: Any, bos: int, eos: int, pad: int):
        self.config, self.bos, self.eos, self.pad = config, bos, (eos,), pad

    def __getattr__(self, name: str):
        if name == "config":
            raise AttributeError(name)
        return getattr(self.config, name)


class LensModel(DirectLogits, TextMethods, HookApi):
    """A TransformerLens model with the methods of ours. A hook point here sees what passes the one of its name there.

    Positions that hooks see count real tokens, as everywhere here; the model itself may count padding otherwise.
    """

    def __init__(self, lens: Any, name: str | None, bos: int | None, eos: int | None, pad: int | None):
        super().__init__()
        self.lens = lens
        backend = getattr(lens, "tokenizer", None)
        self.tokenizer = None if backend is None else LensTokenizer(backend)
        if self.tokenizer is not None:
            bos, eos, pad = self.tokenizer.bos, self.tokenizer.eos, self.tokenizer.pad
        if bos is None or eos is None or pad is None:
            raise ConfigError("This model has no tokenizer; give recorder() the ids bos, eos and pad, which stand for no text.")
        self.cfg = LensConfig(lens.cfg, bos, eos, pad)
        self.setup_hooks()
        self.provenance = self._provenance(name or PREFIX + str(getattr(lens.cfg, "model_name", None) or "custom"))
        self._widths: dict[str, int] | None = None

    def setup_hooks(self, flow=()) -> None:
        super().setup_hooks(flow)
        self.hook_dict = {name: HookPoint() for name in self.lens.hook_dict}
        for name, point in self.hook_dict.items():
            point.name, point.run = name, self.run

    def __getattr__(self, name: str):
        if name.startswith(_PASSED_ON):
            return getattr(super().__getattr__("lens"), name)
        return super().__getattr__(name)

    device = property(lambda self: next(self.lens.parameters()).device)
    dtype = property(lambda self: next(self.lens.parameters()).dtype)
    streamed = property(lambda self: False)
    W_U = property(lambda self: self.lens.W_U)

    def forward(
        self,
        tokens: Tensor | str | list[str] | Mapping[str, Any],
        return_type: str | None = "logits",
        stop_at_layer: int | None = None,
        attention_mask: Mask | None = None,
        cache: ModelCache | None = None,
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> Any:
        """As our own models' forward: logits, loss, both or nothing, or the stream before block `stop_at_layer`.

        Raises:
            TokensError: no tokens, ids outside the vocabulary, or more tokens than the context holds.
        """
        if (encoding := read_encoding(tokens, self.cfg.pad)) is not None:
            tokens, attention_mask = self.placed(*encoding, attention_mask)
        elif not isinstance(tokens, Tensor):
            attention_mask = self.mask_of(tokens, prepend_bos, padding_side)
            tokens = self.to_tokens(tokens, prepend_bos, padding_side)
        if tokens.dim() == 1:
            tokens = tokens[None]
        self.check(tokens, cache)
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else as_mask(attention_mask)
        before = cache.real.sum(1, keepdim=True) if cache is not None and cache.n_tokens else 0
        positions = (real.long().cumsum(1) - 1).clamp(min=0) + before
        self.run.tokens, self.run.positions, self.run.real = tokens, positions, real
        relays = [(name, _relay(point)) for name, point in self.hook_dict.items() if point.has_hooks()]
        self._refuse_switched_off([name for name, _ in relays])
        options = {"stop_at_layer": stop_at_layer, "attention_mask": real.long(), "return_type": return_type}
        if return_type is None and any(name.startswith("unembed") for name, _ in relays):
            options["return_type"] = "logits"  # theirs leaves the unembedding out
        if return_type in ("loss", "both"):
            options["loss_per_token"] = loss_per_token
        if cache is not None:
            options |= run_arguments(self.lens, cache, real)
        stream: list[Tensor] = []
        if stop_at_layer == self.cfg.n_layers and hasattr(self.lens, "original_model"):
            # A bridge that stops after its last block goes on to the logits, so the stream is taken on the way.
            options["stop_at_layer"] = None
            relays.append((f"blocks.{self.cfg.n_layers - 1}.hook_resid_post", lambda x, hook: stream.append(x)))
        with self.lens.hooks(fwd_hooks=relays):
            out = self.lens(tokens, **options)
        if cache is not None:
            cache.layers = cache_entries(options, self.cfg.n_layers)
            cache.extend(positions, real, padded=True)
        if stream:
            return stream[0]
        return None if return_type is None and stop_at_layer is None else out

    def check(self, tokens: Tokens, cache: ModelCache | None = None) -> None:
        if tokens.numel() == 0:
            raise TokensError("There are no tokens to run on. Give at least one.")
        length = tokens.shape[1] + (cache.n_tokens if cache else 0)
        if length > self.cfg.n_ctx:
            raise TokensError(f"{length} tokens do not fit: this model's context holds {self.cfg.n_ctx}. Cut the text.")
        low, high = torch.aminmax(tokens)
        if low < 0 or high >= self.cfg.d_vocab:
            raise TokensError(f"Token ids run from {low} to {high}; this model's vocabulary ends at {self.cfg.d_vocab - 1}.")

    def logits_of(self, resid: Tensor) -> Tensor:
        """The logits of a stream that left the last block."""
        normalized = self.lens.ln_final(resid) if hasattr(self.lens, "ln_final") else resid
        cap = getattr(self.cfg, "output_logits_soft_cap", None)
        return soft_cap(self.lens.unembed(normalized), cap if cap and cap > 0 else None)

    def logits_from(self, layer: int, resid: Tensor, tokens: Tokens, attention_mask: Mask | None = None) -> Tensor:
        """The logits of a run in which `resid` is the stream before block `layer`: all blocks run, and it is put in."""
        site = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
        with self.hooks([(site, lambda old, hook: resid.to(old.dtype).view_as(old))]):
            return self(tokens, attention_mask=attention_mask)

    @torch.no_grad()
    def through_final_norm(self, directions: Tensor) -> Tensor:
        """Directions [... d_model] as the unembedding meets them, but for the norm's division: times its gain, and centred
        where the norm centres. Float32.

        The norm is asked, not opened: how it holds a gain (1 + w, w, folded away) shows in what it does to vectors of 1 and
        -1, whose mean square is 1 already.
        """
        directions, final = directions.detach().float(), getattr(self.lens, "ln_final", None)
        if final is None:
            return directions
        signs = torch.ones(directions.shape[-1], device=self.device, dtype=self.dtype)
        signs[1::2] = -1.0
        normed, negated, shifted = (final(x[None, None])[0, 0].float() for x in (signs, -signs, signs + 1.0))
        gain = ((normed - negated) / 2 * signs).to(directions.device)
        if torch.allclose(normed, shifted, rtol=1e-2, atol=1e-2 * float(gain.abs().amax())):
            directions = directions - directions.mean(-1, keepdim=True)
        return gain * directions

    def new_cache(self) -> ModelCache:
        return ModelCache([LayerCache() for _ in range(self.cfg.n_layers)])

    def reached(self, name: str, stop_at_layer: int) -> bool:
        parts = name.split(".")
        return int(parts[1]) < stop_at_layer if parts[0] == "blocks" else not name.startswith(("ln_final", "unembed"))

    def run_with_cache(self, *args, names_filter=None, **kwargs):
        """As our own models'. Without a filter, what a run passes: switched-off points (hook_result and the like) stay out."""
        if names_filter is None and kwargs.get("stop_at_layer") is None:
            names_filter = list(self.observed_widths())
        return super().run_with_cache(*args, names_filter=names_filter, **kwargs)

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width: what a run passes that has a row for each token."""
        return {name: width for name, width in self.observed_widths().items() if width}

    @torch.no_grad()
    def observed_widths(self) -> dict[str, int]:
        """Every hook point that a run passes, and its width, 0 where it is not one number after another for each token. Found
        by running two short texts of different length once."""
        if self._widths is None:
            shapes: list[dict[str, tuple]] = []
            for length in (3, 5):
                seen: dict[str, tuple] = {}
                tokens = torch.arange(length, device=self.device).repeat(2, 1) % self.cfg.d_vocab
                names = [name for name in self.hook_dict if not self._switch(name)]
                with self.hooks([(names, _noting_shape(seen))], must_fire=False):
                    self(tokens)
                shapes.append(seen)
            self._widths = {n: _width(shapes[0][n], shapes[1][n]) for n in self.hook_dict if n in shapes[0] and n in shapes[1]}
        return self._widths

    def _switch(self, name: str) -> str:
        """The switch of TransformerLens that keeps a hook point from being computed, or nothing."""
        switch = next((switch for ends, switch in _SWITCHES if name.endswith(ends)), "")
        return switch if switch and not getattr(self.lens.cfg, switch, True) else ""

    def _refuse_switched_off(self, names: list[str]) -> None:
        for name in names:
            if switch := self._switch(name):
                raise ConfigError(f"{name} is switched off in this model. Call model.lens.set_{switch}(True) before.")

    def _provenance(self, name: str) -> dict[str, Any]:
        large = sum(p.numel() * p.element_size() for p in self.lens.parameters()) >= _WHOLE
        described = json.dumps({k: str(v) for k, v in sorted(vars(self.lens.cfg).items())}, sort_keys=True)
        return {
            "model": name,
            "revision": None,
            "weights_sha256": hash_weights(self.lens),
            **({"weights_sampled": hash_weights(self.lens, sampled=True)} if large else {}),
            "config_sha256": hashlib.sha256(described.encode()).hexdigest(),
            "tokenizer_sha256": self.tokenizer.sha256 if self.tokenizer else "none",
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def _relay(point: HookPoint):
    return lambda x, hook: point(x) if isinstance(x, Tensor) else None


def _noting_shape(seen: dict[str, tuple]):
    def fn(x: Tensor, hook: HookPoint) -> None:
        seen[hook.name] = tuple(x.shape) if x.is_floating_point() else ()

    return fn


def _width(short: tuple, long: tuple) -> int:
    """Numbers per token, of a shape seen for 2 texts of 3 tokens and for 2 of 5."""
    per_token = len(short) > 2 and short[:2] == (2, 3) and long[:2] == (2, 5) and short[2:] == long[2:]
    return torch.Size(short[2:]).numel() if per_token else 0


def hash_weights(model: nn.Module, sampled: bool = False) -> str:
    """sha256 over names, shapes and contents of all parameters, about a second a gigabyte. `sampled` is the rule of version 0.1
    for more than a gigabyte, 256 pieces of each; it only recognises what that version recorded."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(p.shape)} {p.dtype} ".encode())
        flat = p.detach().reshape(-1)
        step = max(1, flat.numel() // 256)
        if sampled and step > 1:
            flat = torch.cat([flat[a : a + 64] for a in range(0, flat.numel(), step)])
        digest.update(flat.cpu().contiguous().view(torch.uint8).numpy())
    return f"{SAMPLED}{digest.hexdigest()}" if sampled else digest.hexdigest()
