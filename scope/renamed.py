"""Old public names, each kept for one version: they work, and say their new name once.

A row here is all that a renaming takes. Names of modules serve `import old.path` and `from old.path import X`; names of
`import scope` serve `scope.Old`; flags serve the command line.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable

MODULES = {
    "scope.chance": "scope.null_seeds",
    "scope.models.lens": "scope.models.transformer_lens.bridge",
    "scope.models.generate": "scope.models.text.generate",
    "scope.models.sampling": "scope.models.text.sampling",
    "scope.models.tokenizer": "scope.models.text.tokenizer",
    "scope.steering.interventions": "scope.steering.edits.interventions",
    "scope.steering.directions": "scope.steering.edits.directions",
    "scope.steering.steer": "scope.steering.compare.steer",
    "scope.steering.sweep": "scope.steering.compare.sweep",
    "scope.steering.run": "scope.steering.compare.steer",
    "scope.steering.bridge": "scope.steering.apply.transformers_hooks",
    "scope.steering.gauge": "scope.steering.apply.strength_units",
    "scope.steering.attribution": "scope.circuits.attribution",
    "scope.steering.effects": "scope.circuits.effects",
    "scope.features.store": "scope.features.face",
    "scope.features.aligned": "scope.features.reading.two_texts",
    "scope.features.counterparts": "scope.features.compare.counterparts",
    "scope.features.direct": "scope.features.reading.direct_effects",
    "scope.features.guess": "scope.features.labels.guess",
    "scope.features.live": "scope.features.reading.read_text",
    "scope.features.matched": "scope.features.compare.matched_directions",
    "scope.features.prompt": "scope.features.reading.view scope.features.reading.two_texts",
    "scope.features.together": "scope.features.reading.several_saes",
    "scope.features.unembedding": "scope.features.reading.direct_effects",
}
"""Module path of version 0.1.0 -> today's, or several where it was split. The rows name what README, notebooks, pages and
docstrings showed."""

NAMES: dict[str, str] = {"FeatureStore": "Pack"}
"""Name of `import scope` in version 0.1.0 -> today's."""

FLAGS: dict[str, str] = {"--arms": "--conditions", "--model-a": "--model"}
"""Flag of the command line in version 0.1.0 -> today's."""


class RenamedWarning(FutureWarning):
    """A name that will go with the next version."""


def warn(old: str, new: str, depth: int = 3) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with the next version.", RenamedWarning, stacklevel=depth)


def old_keywords(**names: str) -> Callable[[Callable], Callable]:
    """Decorates a function so that it takes its former keywords too: `old_keywords(arms="conditions")`."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def with_old_keywords(*args, **kwargs):
            for old in names.keys() & kwargs.keys():
                warn(f"{function.__name__}({old}=...)", f"{names[old]}=")
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_keywords

    return decorate


def old_attribute(old: str, new: str) -> property:
    """A property under a former name of an attribute or method."""

    def read(self):
        warn(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    return property(read)


class _OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old path, as the very module that bears the new one."""

    def find_spec(self, name, path=None, target=None):
        if name not in MODULES:
            return None
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec):
        warn(spec.name, MODULES[spec.name], depth=6)
        first, *rest = map(importlib.import_module, MODULES[spec.name].split())
        if not rest:
            return first
        module = type(sys)(spec.name)
        module.__getattr__ = lambda name: next(getattr(m, name) for m in (first, *rest) if hasattr(m, name) or m is rest[-1])
        return module

    def exec_module(self, module) -> None:
        """It has run under its own name."""


def install() -> None:
    """Let the import system know the old paths. After everything else, so that what exists is found first."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
