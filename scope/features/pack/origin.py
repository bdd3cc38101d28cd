"""Where the dictionary of a pack lies."""

from pathlib import Path
from typing import TYPE_CHECKING

from scope.errors import DictionaryError

if TYPE_CHECKING:
    from scope.features.pack.store import FeatureStore


def dictionary_of(store: "FeatureStore") -> str:
    """The dictionary behind a pack: where the manifest says, or beside the pack, where `scope demo` puts it, or a hub id.

    Raises:
        DictionaryError: it is in none of these places.
    """
    stated = store.manifest["dictionary"].get("path")
    places = [Path(stated), store.folder / stated] if stated else []
    places.append(store.folder.absolute().parent / "dictionary")
    for place in places:
        if place.exists():
            return str(place)
    if stated and not stated.startswith((".", "/", "~")) and not Path(stated).is_absolute() and stated.count("/") >= 2:
        return stated
    raise DictionaryError(
        f"The dictionary of this pack is not where it was: {stated or places[-1]}.\n"
        "  Browsing needs none; to test text and to steer, put it back or make the pack again. A command may be given it:\n"
        "  --dictionary FOLDER"
    )
