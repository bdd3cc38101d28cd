"""scope: see what a Gemma is thinking.

Everything named here is loaded on first use, so that `import scope` costs nothing.
"""

from importlib import import_module

_HOME = {
    "load_model": "scope.models.load",
    "generate": "scope.models.generate",
    "SamplingConfig": "scope.models.generate",
    "load_sae": "scope.evaluation.load",
    "save_sae": "scope.sae.files",
    "JumpReLUConfig": "scope.sae.jumprelu",
    "train": "scope.training.trainer",
    "TrainConfig": "scope.training.config",
    "evaluate": "scope.evaluation.evaluate",
    "FeatureStore": "scope.features.store",
    "steer": "scope.steering.steer",
    "Add": "scope.steering.interventions",
    "Clamp": "scope.steering.interventions",
    "Ablate": "scope.steering.interventions",
    "open": "scope.lab",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"scope has no {name}; it has {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
