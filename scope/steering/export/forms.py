"""A single form of an exported intervention, copied out of its folder."""

import shutil
from pathlib import Path

from scope.errors import EditError
from scope.steering.export.intervention import ABOUT, GGUF, HOOK, TEXTS, VECTORS, load_intervention
from scope.whole_files import write_whole

FORMS = {"hook": ("transformers hook", (HOOK, ABOUT, VECTORS, TEXTS)), "gguf": ("GGUF control vector", (GGUF,))}


def copy_form(folder: Path, form: str, out: Path | None = None) -> list[Path]:
    """Write what a form needs: the hook with its three files into a folder, a control vector as one file.

    Raises:
        EditError: it is no intervention, the form cannot carry it, or `out` is the folder itself.
    """
    made, (name, files) = load_intervention(folder), FORMS[form]
    if made.forms.get(name) is not None:
        raise EditError(f"A {name} cannot carry {made.edits}: {made.forms[name]}.")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise EditError(f"{folder} lacks {', '.join(missing)}. Export it anew: scope steer ... --export {folder}")
    if form == "gguf":
        target = out or folder.with_name(f"{folder.name}.gguf")
        write_whole(target, (folder / GGUF).read_bytes())
        return [target]
    target = out or folder.with_name(f"{folder.name}.hook")
    if target.resolve() == folder.resolve():
        raise EditError(f"{folder} holds the hook already; give another folder with --out.")
    target.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(folder / file, target / file)) for file in files]
