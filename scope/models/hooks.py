"""Hook points: named places of a model where a tensor can be read or replaced while it flows past.

A hook is a function `fn(tensor, hook)` that returns a replacement or None. A name that matches nothing is refused with the
nearest names, and a hook that never fired is an error at the end of its run. TransformerLens' further methods for hooks and
caches are in scope/models/transformer_lens/hook_api.py.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scope.errors import ConfigError, UnknownSite

HEAD = ("ln_final", "unembed")
"""Modules behind the last block."""

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
"""Hook points by name, by names, by a function of the name; None means all that every run computes."""

HookFn = Callable[[Tensor, "HookPoint"], Tensor | None]
Direction = Literal["fwd", "bwd", "both"]


@dataclass
class RunState:
    """What is flowing right now, for hooks that must know where they are: all [batch pos], positions absolute, <bos> at 0."""

    tokens: Tensor | None = None
    positions: Tensor | None = None
    real: Tensor | None = None
    token_types: Tensor | None = None
    """[batch pos] of a model that reads pictures: 0 for the picture and the prompt, 1 for the answer."""

    prompt_lengths: Tensor | None = None
    """[batch] real tokens of each prompt while generating; None means that everything is prompt."""

    settled: bool = True
    """False in a trial: the hook will be called again with what its answer led to, as on a state whose edits flow on. What
    counts calls leaves trials out."""


@dataclass(eq=False)
class Installed:
    """One function on one hook point, and how often it has run."""

    fn: HookFn
    permanent: bool = False
    level: int | None = None
    """How many `with model.hooks(...)` blocks were open around it; None outside of them."""
    fired: int = 0
    only_reads: bool = False
    """Whether it is known to keep its tensor and to leave it as it is; then it is given no copy."""

    name: str = ""
    """What the function is called, for refusals."""


def only_reads(fn: HookFn) -> HookFn:
    """Declares of a hook that it never writes into its tensor, so that it is given no copy."""
    fn.only_reads = True
    return fn


class HookPoint(nn.Module):
    """The identity, until a hook is installed. `name` is its full path in the model, e.g. blocks.3.hook_resid_post.

    `width` is how many numbers it has for each position, heads concatenated; 0 where it has no row for each, as attention
    patterns. A point `on_request` is computed only while it has hooks, so it is left out where no names are given; a name or
    a filter that selects it gets it.
    """

    def __init__(self, width: int = 0, on_request: bool = False):
        super().__init__()
        self.name, self.width, self.on_request = "", width, on_request
        self.ctx: dict[str, Any] = {}
        self.run = RunState()
        self.fwd_hooks: list[Installed] = []
        self.bwd_hooks: list[Installed] = []
        self.outcome: tuple[Tensor, bool, int | None] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Skips torch's module call where nobody looks: most of a small model's time would go into it."""
        return super().__call__(x) if self.fwd_hooks or self.bwd_hooks or is_watched(self) else x

    def has_hooks(self, dir: Direction = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether anything looks at this point: a hook of ours, of torch's, or a forward that nnsight put in place. Nnsight
        puts one on every module, so it asks for no point on request; a switch (`set_use_attn_result(True)`) does."""
        if dir == "both" and level is None and is_watched(self) and (has_torch_hooks(self) or not self.on_request):
            return True
        hooks = (self.fwd_hooks if dir != "bwd" else []) + (self.bwd_hooks if dir != "fwd" else [])
        return any((including_permanent or not h.permanent) and level in (None, h.level) for h in hooks)

    def layer(self) -> int:
        """Index of the block this point lies in, from 0."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ConfigError(f"{self.name} lies outside the blocks, so it has no layer.")
        return int(parts[1])

    def add_hook(
        self, hook: HookFn, dir: str = "fwd", is_permanent: bool = False, level: int | None = None, prepend: bool = False
    ) -> Installed:
        """Install `hook(tensor, hook)`; with dir="bwd" it sees, and may replace, the gradient of the loss at this point."""
        if dir not in ("fwd", "bwd"):
            raise ConfigError(f'dir is {dir!r}; a hook runs "fwd" on the tensor or "bwd" on its gradient.')
        name = getattr(hook, "__qualname__", None) or type(hook).__name__
        reads = getattr(hook, "only_reads", False)
        installed = Installed(_with_hook_argument(hook), is_permanent, level, only_reads=reads, name=name)
        hooks = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        hooks.insert(0 if prepend else len(hooks), installed)
        return installed

    def add_perma_hook(self, hook: HookFn, dir: str = "fwd") -> Installed:
        return self.add_hook(hook, dir, is_permanent=True)

    def clear_context(self) -> None:
        self.ctx.clear()

    def remove_hooks(self, dir: Direction = "both", including_permanent: bool = False, level: int | None = None) -> None:
        """Take hooks away, those of one level or all; permanent ones only if named."""
        for name in ("fwd", "bwd"):
            if dir in (name, "both"):
                hooks = getattr(self, f"{name}_hooks")
                hooks[:] = [h for h in hooks if (h.permanent and not including_permanent) or level not in (None, h.level)]

    def forward(self, x: Tensor) -> Tensor:
        """What the hooks make of x. A hook that may write into its tensor gets one of its own, for the same tensor may pass
        other points, and be kept there."""
        if not (self.fwd_hooks or self.bwd_hooks):
            x = x.clone() if self._forward_hooks else x
            return self._noted(x, True)
        shared, unchanged, version = True, True, version_of(x)
        for installed in tuple(self.fwd_hooks):
            installed.fired += 1
            if shared and not installed.only_reads:
                x, shared = x.clone(), False
                version = version_of(x)
            replaced = installed.fn(x, self)
            if replaced is not None and replaced is not x:
                x = self._fitting(replaced, x, installed)
                unchanged = False
            elif not installed.only_reads:
                unchanged = unchanged and version is not None and version_of(x) == version
            shared = shared or installed.only_reads or not unchanged
        if self.bwd_hooks and x.requires_grad:
            x.register_hook(self._backward)
        return self._noted(x, unchanged)

    def run_hooks(self, x: Tensor) -> tuple[Tensor, bool]:
        """What the hooks return for x, and whether they only read it: neither replaced it nor wrote into it."""
        self.outcome = (x, True, version_of(x))
        try:
            value = self(x)
            passed, unchanged, version = self.outcome
        finally:
            self.outcome = None
        return value, value is passed and unchanged and version_of(value) == version

    def _noted(self, x: Tensor, unchanged: bool) -> Tensor:
        """x, and for `run_hooks` whether it is what came in."""
        if self.outcome is not None:
            self.outcome = (x, unchanged, version_of(x))
        return x

    def _backward(self, grad: Tensor) -> Tensor:
        for installed in tuple(self.bwd_hooks):
            installed.fired += 1
            replaced = installed.fn(grad, self)
            if isinstance(replaced, tuple) and len(replaced) == 1:  # as TransformerLens has it
                replaced = replaced[0]
            grad = grad if replaced is None else self._fitting(replaced, grad, installed)
        return grad

    def _fitting(self, replaced: Any, x: Tensor, installed: Installed) -> Tensor:
        """What a hook returned in place of x.

        Raises:
            ConfigError: it is no tensor, or one of another shape, type or device; the hook and its function are named.
        """
        what = f"The hook {installed.name} on {self.name} returned"
        if not isinstance(replaced, Tensor):
            raise ConfigError(f"{what} {type(replaced).__name__}; give a tensor, or None.")
        if replaced.shape != x.shape:
            raise ConfigError(f"{what} shape {tuple(replaced.shape)}; {tuple(x.shape)} flows past there.")
        for theirs, ours in ((replaced.dtype, x.dtype), (replaced.device, x.device)):
            if theirs != ours:
                raise ConfigError(
                    f"{what} {str(theirs).removeprefix('torch.')}; {str(ours).removeprefix('torch.')} flows past there.\n"
                    "  Return value.to(x), where x is the tensor that it was given."
                )
        return replaced


def has_torch_hooks(module: nn.Module) -> bool:
    forward, backward = module._forward_hooks or module._forward_pre_hooks, module._backward_hooks or module._backward_pre_hooks
    return bool(forward or backward)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody else reads or edits what passes a module: by hooks of torch's, or a forward put in its place."""
    return "forward" in module.__dict__ or has_torch_hooks(module)


def version_of(x: Tensor) -> int | None:
    """A number that grows with each writing into x; None where torch counts none."""
    return None if x.is_inference() else x._version


def unshared(x: Tensor, stored: dict[str, Tensor]) -> Tensor:
    """x, or a copy where the tensor that was stored last is the same memory: the stream passes neighbouring points as it is."""
    last = next(reversed(stored.values()), None)
    same = last is not None and last.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return x.clone() if same else x


def _with_hook_argument(fn: HookFn) -> HookFn:
    """TransformerLens gives the point by the name `hook`. A function in which this name is not the second place gets it so,
    or `lambda x, layer=3, hook=None: ...` would take the point for its layer."""
    try:
        takes = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return fn
    placed = [name for name, p in takes.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    every = any(p.kind == p.VAR_POSITIONAL for p in takes.values())
    rest = any(p.kind == p.VAR_KEYWORD for p in takes.values()) and len(placed) < 2 and not every
    if rest or ("hook" in takes and placed[1:2] != ["hook"]):
        return lambda x, point: fn(x, hook=point)
    return fn


def with_gradient_of(value: Tensor, through: Tensor) -> Tensor:
    """`value` to the last bit, with the gradients of `through`, which is the same number computed another way."""
    return value.detach() + (through - through.detach()) if through.requires_grad else value


class HookedModule(nn.Module):
    """A module whose HookPoints are found by name. Call `setup_hooks()` at the end of the constructor."""

    def setup_hooks(self, flow: Sequence[str] = ()) -> None:
        """Name every hook point. `flow` lists a block's parts in the order in which they run, which is not the order in
        which they are made: that one is the order of the parameters, and saved optimisers rely on it."""
        points = {path: point for path, point in self.named_modules() if isinstance(point, HookPoint)}
        first = next((i for i, name in enumerate(points) if name.startswith("blocks.")), 0)

        def place(indexed: tuple[int, str]) -> tuple[int, int, int]:
            index, name = indexed
            parts = name.split(".")
            if parts[0] != "blocks":
                return (0 if index < first else 2, 0, index)
            return (1, int(parts[1]), flow.index(parts[2]) if parts[2] in flow else len(flow))

        self.run = RunState()
        self.context_level = 0
        """How many `with self.hooks(...)` blocks are open."""
        self.hook_dict: dict[str, HookPoint] = {name: points[name] for _, name in sorted(enumerate(points), key=place)}
        for name, point in self.hook_dict.items():
            point.name, point.run = name, self.run

    def hook_points(self) -> list[HookPoint]:
        return list(self.hook_dict.values())

    def match(self, names: NamesFilter) -> list[str]:
        """Names of the hook points that a filter means, in the order in which they are passed; None means all but those
        on request.

        Raises:
            UnknownSite: a name that does not exist, or a filter that selects nothing.
        """
        if names is None:
            return [name for name in self.hook_dict if self.computed_unasked(name)]
        if callable(names):
            matched = [name for name in self.hook_dict if names(name)]
            if not matched:
                raise UnknownSite(f"The filter selects none of the {len(self.hook_dict)} hook points of this model.")
            return matched
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in self.hook_dict:
                raise UnknownSite(f"This model has no hook point {name}.{nearest(name, list(self.hook_dict))}")
        return [name for name in self.hook_dict if name in set(wanted)]

    def computed_unasked(self, name: str) -> bool:
        """Whether a run without a filter passes this point."""
        return not self.hook_dict[name].on_request

    @contextmanager
    def hooks(
        self, fwd_hooks=(), bwd_hooks=(), reset_hooks_end: bool = True, must_fire: bool = True, clear_contexts: bool = False
    ):
        """Within the block, the given (name or filter, fn) pairs are installed. `clear_contexts` empties `hook.ctx` after.

        Raises:
            UnknownSite: a name that does not exist, before anything is installed.
            ConfigError: at the end, a hook that never ran (`must_fire=False` allows it): no run reached it, or, for a
                backward hook, no gradient came back within the block.
        """
        pairs = [("fwd", *pair) for pair in _pairs(fwd_hooks)] + [("bwd", *pair) for pair in _pairs(bwd_hooks)]
        matched = [(dir, self.match(names), fn) for dir, names, fn in pairs]
        self.context_level += 1
        level = self.context_level
        installed = [(dir, n, self.hook_dict[n].add_hook(fn, dir, level=level)) for dir, names, fn in matched for n in names]
        try:
            yield self
            waiting = [(dir, n, hook) for dir, n, hook in installed if not hook.fired and hook in self._installed(dir, n)]
            silent = [n for dir, n, hook in waiting if dir == "fwd" or reset_hooks_end]
            if must_fire and silent:
                raise ConfigError(
                    f"These hooks were installed and never ran: {', '.join(silent)}.\n"
                    "  A run that stops at an earlier layer does not reach them, and a backward hook runs only when "
                    ".backward() is called within the block.\n  Pass must_fire=False if that is meant."
                )
        finally:
            self.context_level -= 1
            if reset_hooks_end:
                for dir, n, hook in installed:
                    if hook in self._installed(dir, n):
                        self._installed(dir, n).remove(hook)
            if clear_contexts:
                for point in self.hook_points():
                    point.clear_context()

    def _installed(self, dir: str, name: str) -> list[Installed]:
        return self.hook_dict[name].fwd_hooks if dir == "fwd" else self.hook_dict[name].bwd_hooks

    @torch.no_grad()
    def record(self, tokens: Any, sites: Sequence[str]) -> dict[str, Tensor]:
        """The activations at `sites` for tokens [batch pos], or whatever else the model takes, each [batch pos width] (heads
        concatenated); a site with one row of numbers for a whole input has one position.

        Runs no layer above the last site asked for and keeps nothing else. Makes ordinary tensors, fit to train on.
        """
        names, recorded = self.rows_at(sites), {}

        @only_reads
        def keep(x: Tensor, hook: HookPoint) -> None:
            recorded[hook.name] = unshared(x, recorded)

        with self.hooks([(names, keep)]):
            self(tokens, stop_at_layer=self.layers_for(names), return_type=None)
        rows = {name: x.flatten(2) if x.dim() > 2 else x[:, None] for name, x in recorded.items()}
        return {site: rows[site] for site in ([sites] if isinstance(sites, str) else sites)}

    def rows_at(self, sites: Sequence[str]) -> list[str]:
        """The sites, checked and in the order in which they are passed.

        Raises:
            UnknownSite: a name that does not exist, or scores and patterns, which have no row for each token.
        """
        sites = [sites] if isinstance(sites, str) else list(sites)
        tables = [site for site in sites if site in self.hook_dict and site.endswith(("hook_attn_scores", "hook_pattern"))]
        if tables:
            raise UnknownSite(f"{tables[0]} holds a table of queries by keys, no row for each token. Use run_with_cache.")
        return self.match(sites)

    def layers_for(self, names: Sequence[str]) -> int | None:
        """How many blocks must run so that all names are passed; None means all, and the head."""
        if any(name.startswith(HEAD) for name in names):
            return None
        return max((self.hook_dict[n].layer() + 1 for n in names if n.startswith("blocks")), default=0)


def _pairs(hooks: Sequence) -> list[tuple]:
    """Raises ConfigError where one pair, or names alone, stand for a list of pairs."""
    hooks = list(hooks)
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 and callable(pair[1]) for pair in hooks):
        raise ConfigError("Hooks are given as a list of pairs: [(name or filter, fn(tensor, hook)), ...].")
    return hooks


def nearest(name: str, known: Sequence[str], n: int = 4) -> str:
    """The end of a refusal: the known names most like `name`."""
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4) or list(known)[:n]
    return f"\n  Nearest: {', '.join(close)}" if close else ""
