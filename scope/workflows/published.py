"""Published SAEs by name: which there are, what a name says, and the pack of one, collected when it is first asked for."""

import difflib
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.progress import OnProgress
from scope.workflows.folders import Described
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelPlace, ModelSettings


def published_pack(
    text: str,
    settings: ModelSettings,
    *,
    on_progress: OnProgress | None = None,
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    on_plan: OnNote = silent,
    certificate: bool = True,
) -> Path:
    """The folder of the pack of an SAE by name, in runs/. Where there is none it is collected, on the bundled text.

    `on_note` is told so before. Stopped, the same call goes on. The model is the one of the SAE, or that of `settings`.

    Raises:
        DictionaryError: an unknown name, or what the hub does not give.
        CheckpointError: the model cannot be had.
    """
    from scope.sae.hub.names import find_name
    from scope.workflows.features import TEXT, TOKENS, collect_features

    name = find_name(text)
    pack = name.lab / "pack"
    if (pack / "manifest.json").exists():
        return pack
    on_note(
        f"{name.lab} has no pack of {name.place} yet: its latents are now read on {TOKENS:,} tokens of the text {TEXT}, once. "
        f"For other text: scope features {text} --corpus TEXT"
    )
    place = {f.name: getattr(settings, f.name) for f in fields(ModelPlace)} | {"dtype": settings.dtype}
    ways = {"on_progress": on_progress, "on_note": on_note, "on_certificate": on_certificate, "on_plan": on_plan}
    collect_features(text, certificate=certificate, **place, **ways)
    return pack


def list_releases(name: str | None = None) -> list[Described]:
    """The releases of SAEs of Gemma models in SAELens' table; those whose name, model or repository has `name` in it; or of one
    release or repository of that very name its SAEs.

    Raises:
        ConfigError: there is none of that name; the message has the nearest.
    """
    from scope.sae.hub.names import natural
    from scope.sae.hub.releases import is_gemma, model_of, published, published_in, release_of, releases, summary

    if name is not None:
        name = name.strip().strip("/")
        release = release_of(name)
        rows = published_in(name) if release is None else published(release)
        if rows:
            return [_described(row) for row in sorted(rows, key=lambda row: natural(row.id))]
    found = []
    for release in sorted(releases(), key=natural):
        model = model_of(release)
        if is_gemma(model) and (name is None or name.lower() in f"{release} {model}".lower()):
            n, repo, why = summary(release)
            content = f"of {model}, files in {repo}" + (f"; not read: {why}" if why else "")
            found.append(Described(Path(release), f"{n:,} SAE{'s' if n > 1 else ''}", content, ""))
    if not found:
        close = difflib.get_close_matches((name or "").lower(), [release.lower() for release in releases()], 3, 0.5)
        near = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"SAELens' table has no release of SAEs of a Gemma called {name}.{near}\n  All: scope list releases")
    return found


def info_of_name(text: str, name: Any) -> Described:
    """What the name of a published SAE says: model, site, size, its page, whether its files and a pack are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    from scope.progress import size
    from scope.sae.hub.names import WEIGHTS
    from scope.sae.hub.releases import size_of

    row, bytes_there = name.published, size_of(name.repo, name.folder)
    files = [try_to_load_from_cache(name.repo, f"{name.folder}/{file}", revision=name.revision) for file in WEIGHTS]
    here = "fetched" if any(isinstance(file, str) for file in files) else "not fetched yet"
    parts = [_about(row)] if row is not None else [f"files in {name.place}"]
    parts.append(f"{size(bytes_there)}, {here}" if bytes_there else here)
    parts.append(f"latent {name.latent}" if name.latent is not None else "")
    pack = name.lab / "pack"
    parts.append(f"pack in {pack}" if (pack / "manifest.json").exists() else "no pack yet")
    shown = text if row is None else "/".join([row.name] + ([] if name.latent is None else [str(name.latent)]))
    return Described(Path(shown), "published SAE", "; ".join(filter(None, parts)), f"scope app {shown}")


def _described(row: Any) -> Described:
    return Described(Path(row.name), "SAE", _about(row), "")


def _about(row: Any) -> str:
    """Where it reads and of which model, L0, and its names elsewhere."""
    from scope.sae.formats.gemma_scope import sites_by_name

    site, out = sites_by_name(row.place)
    site = site or next(iter(re.findall(r"blocks\.\d+\.[\w.]*hook_\w+", row.id)), "")
    kind = f"at {site or 'a site that its files say'}"
    if out is not None:
        kind = f"a transcoder from {site or 'the MLP input'} to {out}"
    l0 = re.search(r"average_l0_(\d+)$", row.path)
    known = l0[1] if l0 else f"{row.l0:g}" if row.l0 else ""
    page = f"; Neuronpedia {row.neuronpedia}" if row.neuronpedia else ""
    return f"{kind} of {row.model}{f', L0 {known}' if known else ''}; files in {row.place}{page}"
