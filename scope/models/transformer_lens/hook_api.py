"""TransformerLens' methods for hooks and caches: `run_with_cache`, `add_hook`, `reset_hooks` and their kin."""

import torch
from torch import Tensor

from scope.errors import UnknownSite
from scope.models.hooks import Direction, HookedModule, HookFn, HookPoint, Installed, NamesFilter, only_reads, unshared
from scope.models.transformer_lens.activation_cache import ActivationCache
from scope.models.transformer_lens.decomposition import Slice, cut


class HookApi(HookedModule):
    """For a model whose forward takes `stop_at_layer`."""

    def add_hook(
        self,
        name: NamesFilter,
        hook: HookFn,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> list[Installed]:
        return [self.hook_dict[n].add_hook(hook, dir, is_permanent, level, prepend) for n in self.match(name)]

    def add_perma_hook(self, name: NamesFilter, hook: HookFn, dir: str = "fwd") -> list[Installed]:
        return self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        self.remove_all_hook_fns(direction, including_permanent, level)
        if clear_contexts:
            self.clear_contexts()

    def remove_all_hook_fns(
        self, direction: Direction = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        for point in self.hook_points():
            point.clear_context()

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
        pos_slice = [pos_slice] if isinstance(pos_slice, int) else pos_slice  # one position is still a dimension

        def caching(suffix: str):
            @only_reads
            def fn(x: Tensor, hook: HookPoint) -> None:
                queries = 2 if hook.name.endswith(("hook_attn_scores", "hook_pattern")) else 1
                part = cut(x.detach(), pos_slice, queries)
                part = part[0] if remove_batch_dim else part
                tensors[hook.name + suffix] = unshared(part.to(device) if device else part, tensors)

            return fn

        names = self.match(names_filter)
        return tensors, [(names, caching(""))], [(names, caching("_grad"))] if incl_bwd else []

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
