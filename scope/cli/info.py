"""`scope info`: what a folder or file is, and the command to type next."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Command:
    """Say what a folder or file is (recording, SAE, pack, lab, checkpoint, adapter, saved result), or the name of a published
    SAE, and what to do with it."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders or files, or names as gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from scope.errors import ConfigError
        from scope.sae.hub.names import name_where_no_folder_is
        from scope.workflows.folders import info
        from scope.workflows.published import info_of_name

        if not self.paths:
            raise ConfigError("Say what to look at: scope info PATH. What was made here: scope list")
        names = {path: name_where_no_folder_is(str(path)) for path in self.paths}
        show([info(path) if name is None else info_of_name(str(path), name) for path, name in names.items()], self.json)


def show(rows: list, as_json: bool) -> None:
    """Three lines for each: what it is, what is in it, what to type next."""
    from scope.escape import visible

    if as_json:
        values = [{"path": str(one.path), "kind": one.kind, "content": one.content, "next": one.next} for one in rows]
        print(json.dumps(values, indent=1))
        return
    for one in rows:
        print(f"{visible(str(one.path))}: {one.kind}{', ' if one.content else ''}{visible(one.content)}")
        if one.next:
            print(f"    next: {visible(one.next)}")
