"""`scope runs`: trainings beside each other."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Command:
    """Compare trainings: what they are, how far they came, and what they came to.

    FVU and L0 of a finished one are means over its last tenth, of another those of the last line of its log; on the activations
    of the training, so `scope evaluate` judges where this only compares.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders that are looked through, with all below them."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from scope.errors import ConfigError
        from scope.training.runs import find_trainings

        missing = [str(folder) for folder in self.folders if not folder.is_dir()]
        if missing:
            raise ConfigError(
                f"There is no folder {', '.join(missing)}. Give folders that `scope train` wrote, or that hold such."
            )
        found = find_trainings(self.folders)
        if self.json:
            print(json.dumps([training.as_json() for training in found], indent=1))
            return
        if not found:
            raise ConfigError(f"No training lies in {', '.join(map(str, self.folders))}. `scope train` makes one.")
        _show(found)


def _show(trainings) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from scope.cli.progress import console, print_note
    from scope.escape import visible

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("training", overflow="fold")
    kinds = len({t.kind for t in trainings}) > 1
    for name in (["kind"] if kinds else []) + ["width", "L0", "target", "FVU", "dead", "tok/s"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    sites, group = {t.site for t in trainings}, None
    for t in trainings:
        folder = Path(t.folder)
        if folder.parent != group:  # a training of many has a folder of its own; its dictionaries stand below
            group = folder.parent
            table.add_row(Text(f"{visible(str(group))}/", "dim"))
        site_is_known = not t.site or len(sites) == 1 or folder.name.startswith(t.site)
        site = "" if site_is_known else f" {visible(t.site)}"
        numbers = [(t.kind, "s"), (t.d_sae, ","), (t.l0, ".1f"), (t.target, "g"), (t.fvu, ".3f"), (t.dead, ".1%")]
        cells = ["-" if value is None else format(value, form) for value, form in numbers[0 if kinds else 1 :]]
        speed = "-" if t.tokens_per_second is None else f"{t.tokens_per_second:,.0f}"
        at = f"{t.state} at {t.step:,} of {t.steps:,}" if t.state in ("stopped", "running") and t.steps else t.state
        table.add_row(Text.assemble(f"  {visible(folder.name)}", (site, "dim")), *cells, speed, at)
    if len(sites) == 1 and trainings[0].site:
        console.print(f"All over {trainings[0].site}:")
    console.print(table)
    names_by_note: dict[str, list[str]] = {}
    for t in trainings:
        for note in t.notes:
            names_by_note.setdefault(note, []).append(Path(t.folder).name)
    for note, names in names_by_note.items():
        whose = names[0] if len(names) == 1 else f"{len(names)} of them"
        print_note(f"{whose}: {note}")
