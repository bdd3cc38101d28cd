"""Prepares the server for the first visit before it takes visitors: imports, and the first pack with its overview."""

import importlib
import pkgutil
from contextlib import suppress

from scope.app.feature.examples import View
from scope.app.feature.first_screen import first_screen
from scope.app.serve import pack_facts, packs
from scope.app.serve.memory import spare_the_collector

from scope.errors import ScopeError

_FOLDERS = ("kit", "serve", "frame", "overview", "features", "feature")
"""What the first pages import; Prompt, Steer and the others load torch, and are imported when they are opened."""


def warm_up() -> None:
    """Import the app's modules, open the first pack, and compute what the Overview page and its first latent show of it.

    A pack that cannot be opened is left to the page, which says why.
    """
    for folder in _FOLDERS:
        package = importlib.import_module(f"scope.app.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".page"):  # a script, which is run for each visitor
                importlib.import_module(module.name)
    with suppress(ScopeError, OSError, StopIteration):
        store = packs.open_pack(next(iter(packs.registry())))
        pack_facts.tiles(store)
        first = store[next(iter(packs.once(store, "start here", lambda: pack_facts.start_here(store)).values()))]
        first_screen(first, View(next(iter(first.groups))))
        _ = first.neighbours, first.tokens  # tables that are read whole at their first use
    spare_the_collector()
