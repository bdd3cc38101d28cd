"""An attribution to patches as a Python program that makes it again, with the picture in it."""

from pprint import pformat
from typing import Any

from scope.circuits.picture_attribution_result import MatchAttribution, PictureAttribution
from scope.errors import ConfigError
from scope.models.pictures.copies import code_of_copy
from scope.provenance import ModelId, without_folders


def as_python(attribution: PictureAttribution, dictionary: str) -> str:
    """A program that makes the attribution again and says by how much any effect differs.

    Args:
        dictionary: where the SAE lies.

    Raises:
        ConfigError: the attribution has no copy of its picture, as one of an earlier version.
    """
    if not attribution.picture_copy:
        raise ConfigError("This attribution holds no copy of its picture. Make it again: scope attribute --picture FILE")
    model = ModelId.of(attribution.provenance["model"])
    name, settings = str(model.name or "bundled-paligemma"), dict(attribution.provenance.get("settings", {}))
    match = isinstance(attribution, MatchAttribution)
    asked = (
        {"text": attribution.token, "other": attribution.other or None}
        if match
        else {"prompt": attribution.prompt, "answer": attribution.answer}
    )
    call = "attribute_match" if match else "attribute_picture"
    values = {name: _plain(value) for name, value in {**asked, "method": attribution.method, **settings}.items()}
    load = f"{_place(name)!r}{f', revision={model.revision!r}' if model.revision and '/' in name else ''}"
    if match and attribution.method == "direct":
        values.pop("method")
    lines = [
        '"""An attribution to the patches of a picture, made again. It needs scope, and the model and SAE named below."""',
        "",
        "import base64",
        "",
        "import numpy as np",
        "",
        "import scope",
        "",
        *code_of_copy(attribution.picture_copy),
        "# Of a folder only the name is written, as './name': give its place.",
        f"model = scope.load_model({load})",
        f"sae = scope.load_sae({_place(dictionary)!r})",
        f"again = scope.{call}(model, sae, picture, any_model=True, **{pformat(values, width=100, sort_dicts=False)})",
        "print(again)",
        f"before = np.array({pformat(_sums(attribution), width=100)})",
        'print("largest difference of a patch:", np.abs(again.effects.sum(1) - before).max())',
        "",
    ]
    return "\n".join(lines)


def _place(name: str) -> str:
    """A folder's absolute path as its last name in the working directory; any other name as it is."""
    last = without_folders(name)
    return name if last == name else f"./{last}"


def _sums(attribution: PictureAttribution) -> list[float]:
    """The effect of all latents at each row."""
    return [float(value) for value in attribution.effects.sum(1)]


def _plain(value: Any) -> Any:
    """A value out of Python's own types, whose `repr` is a literal."""
    return value if value is None or isinstance(value, bool | int | float) else str(value)
