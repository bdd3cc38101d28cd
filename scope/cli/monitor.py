"""`scope monitor`: fit a monitor to labelled texts, score texts with it, show what it is worth."""

import functools
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scope.cli.flags import config_of, flags_of
from scope.workflows.monitor import FitMonitor, RunMonitor, fit_monitor, open_monitor, run_monitor, scored, write_rows

FIT = flags_of(
    FitMonitor,
    positional=("data",),
    doc="""Fit a monitor: one score a text from a model's activations, and a threshold for an alarm.

Everything is chosen on training texts, the threshold on validation texts, and the AUC, the false alarms and the share that is
caught are reported on test texts, beside a bag of words, shuffled labels and random directions on the same texts. The folder
holds the weights, a card, and score.py, which needs only torch, transformers and safetensors.

  scope monitor fit labelled.jsonl --probe --model bundled --site blocks.2.hook_resid_post --out runs/monitor
  scope monitor fit labelled.jsonl --latents auto --pack runs/demo/pack --out runs/monitor
""",
)

RUN = flags_of(
    RunMonitor,
    positional=("folder", "texts"),
    more=[
        (
            "out",
            Path | None,
            None,
            "Write .jsonl (also of very large files; continued after an interruption), .csv, .parquet or .html.",
        ),
        ("csv", Path | None, None, "Write a table here, a row a text."),
        ("json", bool, False, "Print JSON lines."),
    ],
    doc="""Score texts with a monitor: score, threshold, alarm, and the token that scored highest.

Another model, adapter or tokenizer than the monitor's is refused. Texts are read as when it was fitted: plain, or as a chat.
""",
)


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print a monitor's card: what it reads, what it is worth beside its nulls, its limits."""

    folder: tyro.conf.Positional[Path]
    """Folder that `scope monitor fit` wrote."""

    html: Path | None = None
    """Write a page with its figure here."""

    json: bool = False
    """Print everything that is known of it as JSON."""


def flags(argv: Sequence[str]) -> Any:
    actions = {"fit": FIT, "run": RUN, "show": Show}
    return functools.reduce(operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in actions.items()))


def run(parsed: Any) -> None:
    if isinstance(parsed, Show):
        _show(parsed)
    elif isinstance(parsed, FIT):
        _fit(config_of(FitMonitor, parsed))
    else:
        _run(config_of(RunMonitor, parsed), parsed)


def _show(parsed: Show) -> None:
    from scope.cli.progress import console
    from scope.monitor.card import card

    monitor = open_monitor(parsed.folder)
    if parsed.html:
        monitor.save(parsed.html)
    print(json.dumps(monitor.to_json(), indent=1)) if parsed.json else console.print(card(monitor), soft_wrap=True)


def _fit(config: FitMonitor) -> None:
    from scope.cli.progress import console, print_note, progress_bar
    from scope.errors import ConfigError

    if config.out is None:
        raise ConfigError("Where should the monitor go? Give --out runs/monitor.")
    with progress_bar("Reading", unit="tokens") as on_progress:
        monitor = fit_monitor(config, on_progress=on_progress)
    console.print(str(monitor), soft_wrap=True)
    for note in monitor.notes:
        print_note(note)
    console.print(f"Written: {config.out} (card.md, monitor.json, weights.safetensors, score.py)", soft_wrap=True)
    console.print(f'  scope monitor run {config.out} --text "a text"', soft_wrap=True)


def _run(config: RunMonitor, parsed: Any) -> None:
    from scope.cli.progress import console, print_note
    from scope.errors import ConfigError
    from scope.whole_files import refuse_unwritable

    out, csv = parsed.out, parsed.csv
    kinds = (".jsonl", ".csv", ".parquet", ".html")
    if out is not None and out.suffix.lower() not in kinds:
        raise ConfigError(f"--out is {out}; its name ends in one of {', '.join(kinds)}.")
    if out is not None and out.suffix.lower() == ".jsonl" and csv is None:
        for _ in write_rows(config, out, print_note):
            pass
        with open(out, encoding="utf-8") as file:
            alarmed = [json.loads(line)["alarm"] for line in file]
        texts, alarms = len(alarmed), sum(map(bool, alarmed))
        console.print(f"{alarms:,} alarms on {texts:,} texts. Written: {out}", soft_wrap=True)
        return
    if out is None and csv is None:
        with scored(config, None if parsed.json else print_note) as (_, rows):
            for row in rows:
                print(json.dumps(row.to_json(), ensure_ascii=False), flush=True) if parsed.json else console.print(
                    _line(row), soft_wrap=True
                )
        return
    for file in filter(None, (out, csv)):
        refuse_unwritable(file)
    result = run_monitor(config, on_note=print_note)
    for file in filter(None, (out, csv)):
        result.save(file)
        console.print(f"Written: {file}", soft_wrap=True)
    console.print(str(result), soft_wrap=True)


def _line(row: Any) -> str:
    """A text's line on the terminal."""
    if row.score is None:
        return f"no score: no token of it counts    {row.text[:60]!r}"
    cut = f"    {row.cut:,} tokens at its end were not read" if row.cut else ""
    alarm = "ALARM" if row.alarm else "quiet"
    place = f"at {row.token!r} ({row.position})"
    return f"{alarm}  score {row.score:.6g}  threshold {row.threshold:.6g}  {place}    {row.text[:60]!r}{cut}"
