"""Hook points: named places of a model where a tensor can be read or replaced while it flows past.

The vocabulary is TransformerLens': `run_with_hooks`, `run_with_cache`, `hooks`, `hook_dict`, `reset_hooks`, and functions
`fn(tensor, hook)` that return a replacement or None. Two things differ on purpose: a name that matches nothing is refused
with the nearest names, and a hook that never fired is an error at the end of its run.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scope.errors import ConfigError, UnknownSite
from scope.models.hook_names import nearest as nearest
from scope.models.hook_point import HookFn, HookPoint, Installed, RunState
from scope.models.transformer_lens.activation_cache import ActivationCache
from scope.models.transformer_lens.decomposition import Slice, cut

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


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
            return [name for name, point in self.hook_dict.items() if not point.on_request]
        if callable(names):
            found = [name for name in self.hook_dict if names(name)]
            if not found:
                raise UnknownSite(f"The filter selects none of the {len(self.hook_dict)} hook points of this model.")
            return found
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in self.hook_dict:
                raise UnknownSite(f"This model has no hook point {name}.{nearest(name, list(self.hook_dict))}")
        return [name for name in self.hook_dict if name in set(wanted)]

    def add_hook(
        self, name: NamesFilter, fn: HookFn, dir: str = "fwd", is_permanent: bool = False, prepend: bool = False
    ) -> list[Installed]:
        return [self.hook_dict[n].add_hook(fn, dir, is_permanent, prepend) for n in self.match(name)]

    def add_perma_hook(self, name: NamesFilter, fn: HookFn, dir: str = "fwd") -> list[Installed]:
        return self.add_hook(name, fn, dir, is_permanent=True)

    def reset_hooks(self, clear_contexts: bool = True, direction: str = "both", including_permanent: bool = False) -> None:
        self.remove_all_hook_fns(direction, including_permanent)
        if clear_contexts:
            self.clear_contexts()

    def remove_all_hook_fns(self, direction: str = "both", including_permanent: bool = False) -> None:
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent)

    def clear_contexts(self) -> None:
        for point in self.hook_points():
            point.clear_context()

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
        installed = [(dir, n, self.hook_dict[n].add_hook(fn, dir)) for dir, names, fn in matched for n in names]
        try:
            yield self
            silent = [n for dir, n, hook in installed if not hook.fired and (dir == "fwd" or reset_hooks_end)]
            if must_fire and silent:
                raise ConfigError(
                    f"These hooks were installed and never ran: {', '.join(silent)}.\n"
                    "  A run that stops at an earlier layer does not reach them, and a backward hook runs only when "
                    ".backward() is called within the block.\n  Pass must_fire=False if that is meant."
                )
        finally:
            if reset_hooks_end:
                for dir, n, hook in installed:
                    hooks = self.hook_dict[n].fwd_hooks if dir == "fwd" else self.hook_dict[n].bwd_hooks
                    if hook in hooks:
                        hooks.remove(hook)
            if clear_contexts:
                self.clear_contexts()

    def run_with_hooks(
        self, *args, fwd_hooks=(), bwd_hooks=(), reset_hooks_end: bool = True, clear_contexts: bool = False, **kwargs
    ):
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts=clear_contexts):
            return self(*args, **kwargs)

    def run_with_cache(
        self,
        *args,
        names_filter: NamesFilter = None,
        device: str | torch.device | None = None,
        incl_bwd: bool = False,
        remove_batch_dim: bool = False,
        return_cache_object: bool = True,
        pos_slice: Slice = None,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs,
    ):
        """(output, ActivationCache). With incl_bwd the output must be a scalar; its gradients are cached as NAME_grad.
        `pos_slice` keeps those positions alone, `device` is where the cache goes. With `stop_at_layer`, no filter or a function
        means what the run passes; names that it does not reach are refused."""
        stop = kwargs.get("stop_at_layer")
        if stop is not None and stop < 0:
            stop += len(self.blocks)
        names = self.match(names_filter)
        if stop is not None and (names_filter is None or callable(names_filter)):
            names = [n for n in names if self.reached(n, stop)]
            if not names and names_filter is not None:
                raise UnknownSite(f"The filter selects nothing that a run passes before it stops at layer {stop}.")
        tensors, fwd, bwd = self.get_caching_hooks(names, incl_bwd, device, pos_slice=pos_slice)
        with self.hooks(fwd, bwd, reset_hooks_end, must_fire=names_filter is not None, clear_contexts=clear_contexts):
            out = self(*args, **kwargs)
            if incl_bwd:
                out.backward()
        cache = ActivationCache(tensors, self)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return out, cache if return_cache_object else cache.tensors

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice = None,
    ) -> tuple[dict[str, Tensor], list, list]:
        """(a dictionary, forward hooks, backward hooks): while these are installed, each run fills the dictionary."""
        tensors = {} if cache is None else cache

        def keep(suffix: str):
            def fn(x: Tensor, hook: HookPoint) -> None:
                queries = 2 if hook.name.endswith(("hook_attn_scores", "hook_pattern")) else 1
                kept = cut(x.detach(), pos_slice, queries)
                kept = kept[0] if remove_batch_dim else kept
                tensors[hook.name + suffix] = kept.to(device) if device else kept

            return fn

        names = self.match(names_filter)
        return tensors, [(names, keep(""))], [(names, keep("_grad"))] if incl_bwd else []

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Installs hooks that fill the dictionary which is returned, at each run until `reset_hooks()`."""
        tensors, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, pairs in (("fwd", fwd), ("bwd", bwd)):
            for names, fn in pairs:
                self.add_hook(names, fn, dir)
        return tensors

    def reached(self, name: str, stop_at_layer: int) -> bool:
        """Whether a run that stops before block `stop_at_layer` passes this hook point."""
        parts = name.split(".")
        return int(parts[1]) < stop_at_layer if parts[0] == "blocks" else name == "hook_embed"

    @torch.no_grad()
    def record(self, tokens: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """The activations at `sites` for tokens [batch pos], each [batch pos width] (heads concatenated).

        Runs no layer above the last site asked for and keeps nothing else. Makes ordinary tensors, fit to train on.
        """
        names, kept = self.rows_at(sites), {}
        with self.hooks([(names, lambda x, hook: kept.__setitem__(hook.name, x))]):
            self(tokens, stop_at_layer=self.layers_for(names), return_type=None)
        return {site: kept[site].flatten(2) for site in ([sites] if isinstance(sites, str) else sites)}

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
        if any(name.startswith(("ln_final", "unembed")) for name in names):
            return None
        return max((self.hook_dict[n].layer() + 1 for n in names if n.startswith("blocks")), default=0)


def _pairs(hooks: Sequence) -> list[tuple]:
    """Raises ConfigError where one pair, or names alone, stand for a list of pairs."""
    hooks = list(hooks)
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 and callable(pair[1]) for pair in hooks):
        raise ConfigError("Hooks are given as a list of pairs: [(name or filter, fn(tensor, hook)), ...].")
    return hooks
