"""`scope.fit_monitor`, `scope.open_monitor`, `scope.run_monitor`: from labelled texts to a monitor that can be handed over."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scope.progress import OnProgress
from scope.workflows.settings import ModelSettings, resolve, sae_of_lab


@dataclass(frozen=True, kw_only=True)
class FitMonitor(ModelSettings):
    """What to fit to which texts. Each field is also a flag of `scope monitor fit`."""

    data: Path
    """Labelled texts: .jsonl, .csv, .tsv, .json or .parquet with the fields text, label and, if there, group and split."""

    out: Path | None = None
    """New folder for the monitor."""

    latents: str | None = None
    """Read SAE latents, as 3,17; or auto: up to 16 of those that tell the training texts apart."""

    probe: bool = False
    """Read a logistic probe that is fitted to the training texts."""

    difference: bool = False
    """Read along the difference of the two labels' means on the training texts."""

    direction: Path | None = None
    """Read along a direction from a file (.safetensors, .npy, .npz or .json)."""

    sae: str | None = None
    """SAE of --latents: a folder, a lab, or a hub id. It also gives the site."""

    pack: Path | None = None
    """Feature pack whose SAE gives the latents; it also has their labels."""

    site: str | None = None
    """Site to read, as blocks.12.hook_resid_post. None: the SAE's or the direction's."""

    positive: str | None = None
    """The label for which the alarm sounds. None: 1, true, yes, unsafe and the like, if it is clear."""

    fpr: float = 0.05
    """False-positive rate for which the threshold is set, on validation texts."""

    aggregation: Literal["max", "mean", "last"] | None = None
    """How the scores of a text's tokens become one. None: what is best on training texts left out in turn."""

    by_group: bool = False
    """Keep the texts of a group in one split, and count a group as one in the intervals."""

    chat: bool = False
    """Read each text as the user's turn of a chat, in the model's chat template."""

    context: int | None = None
    """Tokens of a text to read. None: as many as the model's context holds."""

    text_field: str = "text"
    """Field or column of the text."""

    label_field: str = "label"
    """Field or column of the label."""

    group_field: str = "group"
    """Field or column of the group."""

    split_field: str = "split"
    """Field or column with train, validation or test; none: draw the splits."""

    nulls: int = 10
    """Draws of each null: shuffled labels, random directions, random latents."""

    seed: int = 0
    """Random seed for splits and nulls."""


@dataclass(frozen=True, kw_only=True)
class RunMonitor(ModelSettings):
    """Which texts to score with which monitor. Each field is also a flag of `scope monitor run`."""

    folder: Path
    """Folder that `scope monitor fit` wrote."""

    texts: Path | None = None
    """Texts: .jsonl, .csv, .tsv, .json, .parquet or .txt (a text a line); - reads lines from the standard input."""

    text: tuple[str, ...] = ()
    """Texts given here."""

    text_field: str = "text"
    """Field or column of the text."""

    any_model: bool = False
    """Allow another model than the one that the monitor was fitted to."""


def fit_monitor(data: Any = None, *, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Fit a monitor to labelled texts; returns a `scope.monitor.monitor.Monitor`, and writes its folder if `out` is given.

    `data` is a file, a pandas table, or a list of mappings or of (text, label) pairs; `latents` may be a list, and `direction`
    a `Direction`:
    `scope.fit_monitor("labelled.jsonl", probe=True, model="bundled", site="blocks.2.hook_resid_post", out="runs/monitor")`

    Raises:
        MonitorError: texts that no monitor can be fitted to, or a false-positive rate that they cannot show.
        ConfigError: a setting that cannot be, or a folder that is there already.
        DictionaryError, PackError, EditError, CheckpointError: what cannot be read, or does not fit the model.
    """
    import numpy
    import scipy
    import torch

    import scope
    from scope.errors import ConfigError
    from scope.fit import check_fit
    from scope.monitor.columns import How
    from scope.monitor.files import refuse_existing, save
    from scope.monitor.fit import fit, refuse_fpr
    from scope.monitor.labelled import RecordReader, labelled
    from scope.sae.files import parameters_sha256
    from scope.steering.edits.directions import Direction

    rows = data if not isinstance(data, str | Path | FitMonitor | None) else None
    direction = settings.pop("direction") if isinstance(settings.get("direction"), Direction) else None
    if direction is not None:
        settings["direction"] = Path(direction.name)
    if not isinstance(settings.get("latents"), str | None):
        each = settings["latents"] if isinstance(settings["latents"], Iterable) else [settings["latents"]]
        settings["latents"] = ",".join(map(str, each))
    job = resolve(FitMonitor, "rows" if rows is not None else data, settings, first="data")
    source = job.data if rows is None else rows
    method = _method(job)
    if job.nulls < 1 or (job.context is not None and job.context < 2):
        raise ConfigError("--nulls is at least 1, and --context at least 2: <bos> and a token.")
    if job.out is not None:
        refuse_existing(Path(job.out).expanduser())
    names = {name: None if (value := getattr(job, f"{name}_field")) == "none" else value for name in ("group", "split")}
    fields = RecordReader(text=job.text_field, label=job.label_field, **names)
    texts = labelled(source, fields, positive=job.positive, by_group=job.by_group, seed=job.seed)
    refuse_fpr(texts, job.fpr)
    if job.model is None and method != "latents":
        raise ConfigError("Which model? Give --model: bundled, a checkpoint's folder, or a hub id.")
    pack, sae = _sae(job)
    direction = direction or _direction(job)
    site = job.site or (sae.site if sae is not None else None) or (direction.site if direction is not None else None)
    model = job.load_model(sae.provenance if sae is not None else None)
    if sae is not None:
        check_fit(model, sae)
        if site != sae.site:
            raise ConfigError(f"This SAE reads {sae.site}, not {site}. Leave out --site, or give an SAE of that site.")
    site = _site(model, site, direction)
    how = How(
        method=method,
        site=site,
        latents=_numbers(job.latents) if job.latents not in (None, "auto") else None,
        direction=None if direction is None else direction.vector,
        direction_name=None if direction is None else direction.name,
        aggregation=job.aggregation,
        fpr=job.fpr,
        nulls=job.nulls,
        seed=job.seed,
        chat=job.chat,
        context=job.context,
    )
    labels = {} if pack is None else {i: str(label) for i, label in enumerate(pack.table["label"]) if label}
    monitor, weights = fit(model, texts, how, sae, labels, on_progress)
    made = {"scope": scope.__version__} | {library.__name__: library.__version__ for library in (torch, numpy, scipy)}
    identity = {"kind": sae.kind, "site": sae.site, "parameters_sha256": parameters_sha256(sae)} if sae is not None else None
    monitor = replace(monitor, versions=made, dictionary=identity)
    return monitor if job.out is None else save(monitor, weights, Path(job.out).expanduser())


def open_monitor(folder: str | Path) -> Any:
    """The monitor of a folder.

    Raises:
        MonitorError: no monitor, or a damaged one.
    """
    from scope.monitor.files import read

    return read(Path(folder).expanduser())[0]


def run_monitor(config: Any = None, *, on_note: Callable[[str], None] | None = None, **settings: Any) -> Any:
    """Score texts; returns a `scope.monitor.run.MonitorRun`. `scope.run_monitor("runs/monitor", text="a text")`.

    Raises:
        MonitorError: no monitor, no texts, or another model than the monitor's.
    """
    from scope.monitor.run import MonitorRun

    if not isinstance(settings.get("texts"), str | Path | None):
        settings["text"] = (*settings.get("text", ()), *settings.pop("texts"))
    with scored(resolve(RunMonitor, config, settings, first="folder"), on_note) as (monitor, rows):
        return MonitorRun(tuple(rows), monitor)


@contextmanager
def scored(job: RunMonitor, on_note: Callable[[str], None] | None = None, skip: int = 0) -> Iterator[tuple[Any, Iterator[Any]]]:
    """(the monitor, its scored texts one after another, without the first `skip`).

    Raises:
        MonitorError: see `run_monitor`.
    """
    from itertools import islice

    from scope.monitor.files import read
    from scope.monitor.labelled import MonitorError
    from scope.monitor.run import check_model, score_texts

    monitor, weights = read(Path(job.folder).expanduser())
    if job.texts is None and not job.text:
        raise MonitorError('There is no text to score. Give a file, --text "a text", or - for the standard input.')
    texts = _texts(job)
    model = job.load_model({"model": monitor.model})
    if (note := check_model(monitor, weights, model, job.any_model)) and on_note:
        on_note(note)
    yield monitor, score_texts(monitor, weights, model, islice(texts, skip, None))


def _texts(job: RunMonitor) -> Iterator[str]:
    from scope.monitor.labelled import MonitorError, RecordReader, read_texts

    def several() -> Iterator[str]:
        yield from job.text
        if job.texts is None:
            return
        if str(job.texts) == "-":
            yield from (line.rstrip("\n") for line in sys.stdin)
        else:
            fields = RecordReader(text=job.text_field, label=None, group=None, split=None)
            yield from (record.text for record in read_texts(job.texts.expanduser(), fields))

    if job.texts is not None and str(job.texts) != "-" and not job.texts.expanduser().is_file():
        raise MonitorError(f'There is no file {job.texts}. To score a text itself: --text "..."')
    return several()


def write_rows(job: RunMonitor, out: Path, on_note: Callable[[str], None] | None = None) -> Iterator[Any]:
    """Score texts into a file of JSON lines, and yield each row. Rows are first written to a file beside it, named .part; after
    an interruption the same call continues there.

    Raises:
        MonitorError: see `run_monitor`.
    """
    from scope.whole_files import beside, file_sha256, refuse_unwritable, whole_file

    refuse_unwritable(out)
    part = beside(out, ".part")
    source = job.texts.expanduser() if job.texts is not None else None
    identity = {
        "monitor": file_sha256(Path(job.folder).expanduser() / "monitor.json"),
        "texts": file_sha256(source) if source is not None and source.is_file() else None,
        "text": list(job.text),
        "settings": [job.text_field, job.model, job.adapter, job.dtype, job.any_model],
    }
    done = _finished(part, identity)
    if done and on_note:
        on_note(f"{done:,} texts were scored before; continuing after them.")
    with scored(job, on_note, done) as (_, rows), open(part, "a" if done else "w", encoding="utf-8") as file:
        if not done:
            file.write(json.dumps(identity) + "\n")
        for row in rows:
            file.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            yield row
    with open(part, "rb") as file, whole_file(out) as whole:
        file.readline()
        shutil.copyfileobj(file, whole)
    part.unlink()


def _finished(part: Path, identity: dict[str, Any]) -> int:
    """Whole rows of an interrupted run with the same settings; what a kill left of a half row is cut off."""
    if not part.is_file() or identity["texts"] is None:
        return 0
    lines = part.read_bytes().splitlines(keepends=True)
    try:
        if not lines or json.loads(lines[0]) != identity:
            return 0
    except ValueError:
        return 0
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        with open(part, "r+b") as file:
            file.truncate(sum(map(len, whole)))
    return len(whole) - 1


def _method(job: FitMonitor) -> str:
    """
    Raises:
        ConfigError: none of the four, or several.
    """
    from scope.errors import ConfigError

    stated = {
        "latents": job.latents is not None,
        "probe": job.probe,
        "difference": job.difference,
        "direction": job.direction is not None,
    }
    chosen = [name for name, on in stated.items() if on]
    if len(chosen) != 1:
        several = f" and not {' and '.join('--' + name for name in chosen)}" if chosen else ""
        raise ConfigError(
            f"Say what the monitor reads, one of these{several}:\n"
            "  --latents 3,17 or --latents auto, with --sae or --pack    --probe    --difference    --direction FILE"
        )
    if chosen[0] == "latents" and job.sae is None and job.pack is None:
        raise ConfigError("Whose latents? Give --sae (a folder, a lab, a hub id) or --pack.")
    return chosen[0]


def _numbers(latents: str) -> tuple[int, ...]:
    """
    Raises:
        ConfigError: no whole numbers.
    """
    from scope.errors import ConfigError

    try:
        numbers = tuple(dict.fromkeys(int(part) for part in latents.replace(" ", "").split(",") if part))
        if not numbers:
            raise ValueError
        return numbers
    except ValueError:
        raise ConfigError(f"--latents is {latents!r}; give numbers with commas between, as 3,17, or auto.") from None


def _sae(job: FitMonitor) -> tuple[Any, Any]:
    """(the pack, the SAE), or None for what was not named.

    Raises:
        PackError, DictionaryError: it cannot be read, or the two do not belong together.
    """
    from scope.features.pack.data import PackData, dictionary_of, pack_beside
    from scope.sae.files import read_sae

    if job.pack is not None and job.sae is None:
        inner = Path(job.pack).expanduser()
        pack = PackData.open(inner / "pack" if (inner / "pack" / "manifest.json").exists() else inner)
        return pack, read_sae(dictionary_of(pack), job.device)
    if job.sae is None:
        return None, None
    place = sae_of_lab(job.sae)
    sae = read_sae(place, job.device)
    pack = pack_beside(Path(place), sae.site, sae.d_sae, Path(job.pack) if job.pack else None) if Path(place).exists() else None
    return pack, sae


def _direction(job: FitMonitor) -> Any:
    """
    Raises:
        EditError: no vector, or one whose site is not known.
    """
    from scope.steering.edits.directions import Direction

    return None if job.direction is None else Direction.load(job.direction.expanduser(), job.site)


def _site(model: Any, site: str | None, direction: Any) -> str:
    """
    Raises:
        ConfigError: none is named, the model has no such site, or the direction has another width.
    """
    from scope.errors import ConfigError
    from scope.sites import nearest

    sites = model.sites()
    if site is None:
        raise ConfigError(f"Which site? Give --site, such as blocks.{model.cfg.n_layers // 2}.hook_resid_post.")
    if site not in sites:
        raise ConfigError(f"{site} is no site of this model.{nearest(site, list(sites))}")
    if direction is not None and len(direction.vector) != sites[site]:
        raise ConfigError(f"The direction has {len(direction.vector)} numbers, and {site} has {sites[site]}.")
    return site
