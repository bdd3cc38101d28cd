"""A run or a sweep as one HTML page that can be sent to somebody."""

from scope.escape import escape
from scope.html_page import html_page
from scope.models.pictures.copies import picture_of_copy
from scope.models.pictures.draw import img_tag
from scope.provenance import without_folders
from scope.steering.compare import show
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep

_SHOWN = 448  # pixels of the longer side of a picture


def as_page(run: SteeringRun | Sweep, code: str = "") -> str:
    """A whole HTML page: inline styles only, no script, nothing fetched, and a policy that forbids both. It names no folder.

    Every text that came from a model, a prompt or a file is escaped, and invisible marks are made visible.

    Args:
        code: lines of Python to stand at the end, such as those of `as_python`.
    """
    runs = run.runs if isinstance(run, Sweep) else [run]
    title = f"Steering: {runs[0].edits}"
    body = [_picture(runs[0])] if runs[0].picture else []
    if isinstance(run, Sweep):
        body.append(run._repr_html_())
    for strength, one in zip(run.strengths if isinstance(run, Sweep) else [None], runs, strict=True):
        if strength is not None:
            body.append(f"<h2 style='font-size:17px'>Strength {strength:g}</h2>")
        body.append(show.as_html(one, None, exact=True))
    body.append(_settings(runs[0]))
    if code:
        body.append(f"<h2 style='font-size:17px'>As Python</h2><pre style='white-space:pre-wrap'>{escape(code)}</pre>")
    return html_page(title, "\n".join(body))


def _picture(run: SteeringRun) -> str:
    """The copy of the run's picture, small enough to be looked at.

    Raises:
        PictureError: it is damaged.
    """
    picture = picture_of_copy(str(run.picture))
    picture.thumbnail((_SHOWN, _SHOWN))
    return img_tag(picture, "the picture that the prompts are about")


def _settings(run: SteeringRun) -> str:
    """Sampling, model, dictionaries and versions, to judge and to repeat the run."""
    facts = {
        "sampling": run.sampling,
        "texts per prompt and condition": run.n,
        "model": without_folders(run.model),
        "dictionaries": without_folders(run.dictionaries),
        "typical norms": {site: (units.typical_norm, units.source) for site, units in run.strength_units.items()},
        "versions": run.versions,
    }
    rows = "".join(
        f'<tr><td style="padding:2px 10px;vertical-align:top">{escape(name)}</td>'
        f'<td style="padding:2px 10px;overflow-wrap:anywhere">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<h2 style='font-size:17px'>How it was made</h2><table style='font-size:90%'>{rows}</table>"
