"""What may be added to a pack after it was made: a map of its directions. Nothing else of the pack changes."""

from pathlib import Path

from scope.errors import ConfigError, PackError
from scope.features.collect.map import map_directions
from scope.features.pack.data import PackData
from scope.features.pack.layout import add_file, npy
from scope.sae.files import parameters_sha256


def add_map(pack: Path, sae, method: str = "pca", seed: int = 0) -> PackData:
    """Give a pack a map made from its dictionary, in place of the one that it has.

    Raises:
        PackError: the dictionary is not the pack's, or the pack is damaged.
        ConfigError: see `scope.features.collect.map.map_directions`.
    """
    pack = PackData.open(pack)
    want, have = pack.manifest["dictionary"].get("parameters_sha256"), parameters_sha256(sae)
    if want != have:
        raise PackError(
            f"{pack} was made from another dictionary (parameters {str(want)[:12]}; given {have[:12]}).\n"
            f"  Give the one that it was made from: scope map {pack} --dictionary FOLDER"
        )
    neighbours = pack.relation("neighbour_id")
    pack.close()
    made = map_directions(sae.W_dec.detach(), neighbours, method, seed)
    if made is None:
        raise ConfigError("The method 'none' makes no map; give pca or umap.")
    places, told = made
    add_file(Path(pack), "map.npy", npy(places), {"map": told})
    return PackData.open(pack)
