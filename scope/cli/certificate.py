"""What a command says of a dictionary's certificate."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scope.evaluation.certificate.certify import Certificate


def certified(model, sae, where: str | Path, wanted: bool, any_model: bool = False) -> "Certificate | None":
    """Have the dictionary checked against the model and say what was found, or that it was not checked; returns what was.

    Raises:
        DictionaryError: it does not fit.
    """
    from rich.markup import escape

    from scope.cli.progress import console
    from scope.evaluation.certificate.certify import certify

    if not wanted:
        console.print("[yellow]note:[/] without certificate: that this dictionary fits this model and site was not checked.")
        return None
    found = certify(model, sae, where, any_model=any_model)
    console.print(f"Certificate: {escape(found.line())}", style="dim", highlight=False)
    for note in found.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    return found
