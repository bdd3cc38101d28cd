"""One hook point: the identity where a tensor flows past, until somebody listens."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scope.errors import ConfigError

HookFn = Callable[[Tensor, "HookPoint"], Tensor | None]


@dataclass
class RunState:
    """What is flowing right now, for hooks that must know where they are: all [batch pos], positions absolute, <bos> at 0."""

    tokens: Tensor | None = None
    positions: Tensor | None = None
    real: Tensor | None = None
    prompt_lengths: Tensor | None = None
    """[batch] real tokens of each prompt while generating; None means that everything is prompt."""


@dataclass(eq=False)
class Installed:
    """One function on one hook point, and how often it has run."""

    fn: HookFn
    permanent: bool = False
    fired: int = 0


class HookPoint(nn.Module):
    """The identity, until somebody listens. `name` is its full path in the model, e.g. blocks.3.hook_resid_post.

    What passes a point `on_request` is computed only while somebody listens there, so it is left out where no names are
    given; a name or a filter that selects it gets it.
    """

    def __init__(self, on_request: bool = False):
        super().__init__()
        self.name, self.on_request = "", on_request
        self.ctx: dict[str, Any] = {}
        self.run = RunState()
        self.fwd_hooks: list[Installed] = []
        self.bwd_hooks: list[Installed] = []

    def __call__(self, x: Tensor) -> Tensor:
        """As any module's, but at once where nobody listens: most of a small model's time would go into calling."""
        if self.fwd_hooks or self.bwd_hooks or self._forward_hooks or self._forward_pre_hooks or self._backward_hooks:
            return super().__call__(x)
        return x

    def has_hooks(self) -> bool:
        return bool(self.fwd_hooks or self.bwd_hooks)

    def layer(self) -> int:
        """Index of the block this point lies in, from 0."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ConfigError(f"{self.name} lies outside the blocks, so it has no layer.")
        return int(parts[1])

    def add_hook(self, fn: HookFn, dir: str = "fwd", is_permanent: bool = False, prepend: bool = False) -> Installed:
        """Install `fn(tensor, hook)`; with dir="bwd" it sees, and may replace, the gradient of the loss at this point."""
        if dir not in ("fwd", "bwd"):
            raise ConfigError(f'dir is {dir!r}; a hook runs "fwd" on the tensor or "bwd" on its gradient.')
        installed = Installed(_given_its_point(fn), is_permanent)
        hooks = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        hooks.insert(0 if prepend else len(hooks), installed)
        return installed

    def add_perma_hook(self, fn: HookFn, dir: str = "fwd") -> Installed:
        return self.add_hook(fn, dir, is_permanent=True)

    def clear_context(self) -> None:
        self.ctx.clear()

    def remove_hooks(self, dir: str = "both", including_permanent: bool = False) -> None:
        for name in ("fwd", "bwd"):
            if dir in (name, "both"):
                hooks = getattr(self, f"{name}_hooks")
                hooks[:] = [h for h in hooks if h.permanent and not including_permanent]

    def forward(self, x: Tensor) -> Tensor:
        if not (self.fwd_hooks or self.bwd_hooks):
            return x
        for installed in tuple(self.fwd_hooks):
            installed.fired += 1
            replaced = installed.fn(x, self)
            if replaced is not None:
                if not isinstance(replaced, Tensor):
                    raise ConfigError(f"A hook on {self.name} returned {type(replaced).__name__}; give a tensor, or None.")
                if replaced.shape != x.shape:
                    raise ConfigError(
                        f"A hook on {self.name} returned shape {tuple(replaced.shape)}; {tuple(x.shape)} flows past there."
                    )
                x = replaced
        if self.bwd_hooks and x.requires_grad:
            x.register_hook(self._backward)
        return x

    def looked(self, x: Tensor) -> tuple[Tensor, bool]:
        """What the hooks make of x, and whether they only looked: neither replaced it nor wrote into it."""
        version = x._version
        seen = self(x)
        return seen, seen is x and x._version == version

    def _backward(self, grad: Tensor) -> Tensor:
        for installed in tuple(self.bwd_hooks):
            installed.fired += 1
            replaced = installed.fn(grad, self)
            if isinstance(replaced, tuple) and len(replaced) == 1:  # as TransformerLens has it
                replaced = replaced[0]
            grad = grad if replaced is None else replaced
        return grad


def _given_its_point(fn: HookFn) -> HookFn:
    """TransformerLens gives the point by the name `hook`. A function in which this name is not the second place gets it so,
    or `lambda x, layer=3, hook=None: ...` would take the point for its layer."""
    try:
        takes = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # some that are written in C tell nothing
        return fn
    placed = [name for name, p in takes.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    every = any(p.kind == p.VAR_POSITIONAL for p in takes.values())
    rest = any(p.kind == p.VAR_KEYWORD for p in takes.values()) and len(placed) < 2 and not every
    if rest or ("hook" in takes and placed[1:2] != ["hook"]):
        return lambda x, point: fn(x, hook=point)
    return fn


def exactly(value: Tensor, through: Tensor) -> Tensor:
    """`value` to the last bit, with the gradients of `through`, which is the same number computed another way."""
    return value.detach() + (through - through.detach()) if through.requires_grad else value
