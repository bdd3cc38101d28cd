"""The folder of a pack, from what a person gives for it."""

from pathlib import Path


def pack_folder(folder: Path) -> Path:
    """The folder itself, or pack/ within it: `scope demo` and `scope app` are given the folder around the pack, too. The name
    of a published SAE stands for the pack of it in runs/.

    Raises:
        DictionaryError: the beginning of such a name, or one that is like one.
    """
    from scope.sae.hub.names import name_where_no_folder_is

    name = name_where_no_folder_is(str(folder))
    if name is not None:
        return name.lab / "pack"
    inner = folder / "pack"
    return inner if not (folder / "manifest.json").exists() and (inner / "manifest.json").exists() else folder
