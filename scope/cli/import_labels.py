"""`scope label import`, also `scope labels import`: labels that others published, into a pack."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Take labels that others published into a pack: Neuronpedia's explanations, from files or by address.

    Each is kept with the model that wrote it and, where one is given, its score and what that measures. What a person wrote is
    never replaced. Rows of another SAE are counted and left out; a file about another SAE alone is refused.
    """

    pack: tyro.conf.Positional[Path]
    """Pack that `scope features` wrote, or the name of the published SAE that it is about."""

    place: tyro.conf.Positional[str | None] = None
    """File (.jsonl, .jsonl.gz, .json), folder of such files, or the address of either. None: the public files of the pack's
    SAE, by its name on Neuronpedia."""

    source: str | None = None
    """Name of the pack's SAE on Neuronpedia, as gemma-2-2b/12-gemmascope-res-16k, for a pack that does not know it."""

    by: str | None = None
    """Only labels that this model wrote, as gpt-4o-mini."""

    replace: bool = False
    """Also replace labels that a language model gave here, by `scope label PACK --with`."""

    def run(self) -> None:
        from scope.cli.packs import pack_folder
        from scope.cli.progress import console, progress_bar
        from scope.features.face import Pack
        from scope.features.labels.published import import_labels

        pack = Pack.open(pack_folder(self.pack))
        with progress_bar("Reading", unit="files", foretell=False) as on_progress:
            done = import_labels(
                pack, self.place, source=self.source, by=self.by, replace=self.replace, on_progress=on_progress
            )
        console.print(str(done), markup=False)
        console.print(f"They are kept in {pack.notes.file}; scope app {pack.folder} shows them.")
