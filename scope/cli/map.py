"""`scope map`: a flat map of a pack's directions, made after the pack was."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Give a pack a map of its decoder directions, which the Features page shows; `scope features` makes one by PCA itself.

    Needs the pack's dictionary, no model and no text. An older map is replaced; nothing else of the pack changes.
    """

    pack: tyro.conf.Positional[Path]
    """Pack that `scope features` wrote."""

    method: Literal["pca", "umap"] = "pca"
    """pca: the two axes of most variance. umap: neighbourhoods (pip install 'scope-workbench[umap]')."""

    dictionary: str | None = None
    """The dictionary that the pack was made from. None: where the pack says it lies, or beside it."""

    seed: int = 0
    """Random seed of UMAP, and of the sample on which a map is measured."""

    def run(self) -> None:
        from scope.cli.packs import pack_folder
        from scope.cli.progress import console
        from scope.features.collect.map import NEAR, add_map, require
        from scope.features.face import Pack
        from scope.features.pack.data import dictionary_of
        from scope.sae.files import read_sae

        require(self.method)
        folder = pack_folder(self.pack)
        place = self.dictionary or dictionary_of(Pack.open(folder))
        store = add_map(folder, read_sae(place), self.method, self.seed)
        fidelity = store.manifest.map
        if fidelity.explained:
            axes, chance = sum(fidelity.explained), sum(fidelity.explained_by_chance)
            console.print(
                f"Two axes hold {axes:.1%} of the directions' variance; of random directions they would hold {chance:.1%}."
            )
        console.print(
            f"Of a latent's {NEAR} nearest directions, {fidelity.kept:.1%} are among its {NEAR} nearest on the map; "
            f"{fidelity.kept_by_chance:.1%} would be by chance."
        )
        console.print(f"To look at it: scope app {folder}, Features, Map")
