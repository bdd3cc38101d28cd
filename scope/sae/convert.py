"""Conversion of a dictionary between formats: lists what the new format cannot hold, and reads back what was written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scope.errors import ConfigError, DictionaryError
from scope.sae.base import SAE
from scope.sae.files import FORMATS, MANIFEST, read_sae, save_sae
from scope.sae.formats import gemma_scope, sae_lens
from scope.sae.transcoder import Transcoder


@dataclass(frozen=True)
class Converted:
    """The result of a conversion. `furthest` is the greatest difference of any number once the new file was read back."""

    sae: SAE
    folder: Path
    lost: list[str] = field(default_factory=list)
    furthest: float = 0.0


def _write_scope(sae: SAE, folder: Path) -> list[str]:
    save_sae(sae, folder)
    return []


TARGETS: dict[str, Callable[[SAE, Path], list[str]]] = {
    "scope": _write_scope,
    "sae_lens": sae_lens.write,
    "gemma_scope": gemma_scope.write,
}


def convert(source: Path | str, out: Path | str, to: str, site: str | None = None) -> Converted:
    """Write the dictionary at `source` (anything that `read_sae` takes) into the folder `out` in another format.

    `site` is the site that it reads, for sources that name none or a wrong one; a name that it replaces is listed as lost.

    Raises:
        DictionaryError: nothing that can be read, a dictionary that the target cannot express, one already in `out`.
        ConfigError: an unknown target.
    """
    if to not in TARGETS:
        raise ConfigError(f"{to!r} is no format that is written; there are {', '.join(TARGETS)}.")
    out = Path(out).expanduser()
    there = [name for name in (MANIFEST, *FORMATS) if (out / name).exists()]
    if there:
        raise DictionaryError(f"{out} already holds {', '.join(there)}. Give another folder; nothing is overwritten.")
    sae = read_sae(source)
    source_site = sae.site
    if site is not None:
        sae.site = sae.provenance["site"] = site
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DictionaryError(f"{out} cannot be a folder: a file is in its place or above it. Give another folder.") from None
    try:
        lost = [f"that it reads {source_site}, which the source says"] if source_site not in ("", sae.site) else []
        lost += TARGETS[to](sae, out)
    except DictionaryError:
        if not any(out.iterdir()):
            out.rmdir()
        raise
    return Converted(sae, out, lost, _furthest(sae, out, to))


def _furthest(sae: SAE, folder: Path, to: str) -> float:
    """Read back what was written; the greatest difference of any number from the dictionary.

    Raises:
        DictionaryError: what was written is read as a dictionary of another kind, site or k.
    """
    meant, back = sae, read_sae(folder)
    if to == "gemma_scope" and not isinstance(sae, Transcoder):
        meant = gemma_scope.as_jumprelu(sae)
    kind = "jumprelu" if (meant.kind, to) == ("batch_topk", "sae_lens") else meant.kind
    pairs = {
        "kind": (kind, back.kind),
        "site": (meant.reads, back.reads),
        "output": (meant.writes, back.writes),
        "k": (getattr(meant.config, "k", None) if kind == meant.kind else None, getattr(back.config, "k", None)),
    }
    for name, (written, found) in pairs.items():
        if written != found:
            raise DictionaryError(
                f"{folder} was written with {name} {written} and is read back with {found}: {to} cannot hold it.\n"
                "  Delete that folder, and keep the dictionary as --to scope."
            )
    there = dict(back.named_parameters())
    return max((p.detach() - there[name].detach()).abs().max().item() for name, p in meant.named_parameters())
