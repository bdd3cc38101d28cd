"""The check that a dictionary fits its model, as every workflow makes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scope.workflows.notes import OnNote, silent


def certified(
    model: Any,
    sae: Any,
    where: str | Path,
    wanted: bool,
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    any_model: bool = False,
) -> Any:
    """The certificate of a dictionary for a model of text or of pictures; None where none is wanted, which is a note.

    Raises:
        DictionaryError: the dictionary does not fit.
    """
    from scope.evaluation.certificate.certify import certify

    if not wanted:
        on_note("without certificate: that this dictionary fits this model and site was not checked.")
        return None
    certificate = certify(model, sae, where, any_model=any_model)
    if on_certificate is not None:
        on_certificate(certificate)
    for note in certificate.notes:
        on_note(note)
    return certificate
