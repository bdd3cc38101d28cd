"""scope: see what a Gemma is thinking.

Everything named here is loaded on first use, so that `import scope` costs nothing.
"""

from importlib import import_module
from pathlib import Path

from scope import renamed, threads

_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / "activations" / "format").is_dir():
    # In a checkout the folders activations/ and app/ stand beside scope/; an installed wheel has them inside it. Either way
    # their import names are scope.activations and scope.app, so that a user's own app.py or activations.py stays importable.
    __path__.append(str(_CHECKOUT))

_HOME = {
    "load_model": "scope.models.load",
    "with_picture": "scope.models.paligemma.pictured",
    "generate": "scope.models.text.generate",
    "SamplingConfig": "scope.models.text.sampling_config",
    "load_sae": "scope.evaluation.load",
    "save_sae": "scope.sae.files",
    "to_sae_lens": "scope.sae.formats.sae_lens_object",
    "hooked_sae_transformer": "scope.lab",
    "JumpReLUConfig": "scope.sae.jumprelu",
    "harvest": "scope.workflows.harvest",
    "train": "scope.workflows.train",
    "TrainConfig": "scope.training.config",
    "evaluate": "scope.workflows.evaluate",
    "match": "scope.workflows.match",
    "diff": "scope.workflows.diff",
    "collect_features": "scope.workflows.features",
    "lookahead": "scope.workflows.lookahead",
    "import_labels": "scope.features.labels.published",
    "Pack": "scope.features.face",
    "steer": "scope.workflows.steer",
    "export_intervention": "scope.steering.export.intervention",
    "load_intervention": "scope.steering.export.intervention",
    "harness_model": "scope.steering.harness.language_model",
    "memory": "scope.workflows.memory",
    "recall": "scope.circuits.recall",
    "attribute": "scope.circuits.attribution",
    "attribute_picture": "scope.circuits.picture_attribution",
    "attribute_match": "scope.circuits.picture_match",
    "modalities": "scope.workflows.modalities",
    "moderate": "scope.workflows.moderate",
    "fit_monitor": "scope.workflows.monitor",
    "open_monitor": "scope.workflows.monitor",
    "run_monitor": "scope.workflows.monitor",
    "ask_datacommons": "scope.workflows.datacommons",
    "index_pages": "scope.workflows.pages",
    "open_index": "scope.workflows.pages",
    "remove_pages": "scope.pages.derive",
    "demo": "scope.workflows.demo",
    "Add": "scope.steering.edits.interventions",
    "Clamp": "scope.steering.edits.interventions",
    "Direction": "scope.steering.edits.interventions",
    "Ablate": "scope.steering.edits.interventions",
    "Forget": "scope.steering.edits.interventions",
    "Hold": "scope.steering.edits.interventions",
    "open": "scope.lab",
}

renamed.install()
threads.sleep_while_waiting()

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in renamed.NAMES:
        renamed.warn(f"scope.{name}", f"scope.{renamed.NAMES[name]}")
        name = renamed.NAMES[name]
    if name not in _HOME:
        raise AttributeError(f"scope has no {name}; it has {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
