"""`scope steer`: one comparison, printed condition beside condition, or a sweep over strengths."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scope.cli.flags import YES, config_of, flags_of
from scope.whole_files import beside, refuse_unwritable, write_whole
from scope.workflows.steer import Steer, steer

FLAGS = flags_of(
    Steer,
    commas=("tasks",),
    more=[
        ("json", Path | None, None, "Write everything here; --replay reads it."),
        YES,
        ("plot", Path | None, None, "With --sweep: write its figure here, a page that any browser opens."),
    ],
    doc="""Generate with latents or a direction pushed up or down, beside plain text and a random direction of the same size.

Every condition draws the same noise, so texts differ only by what the edit does. Below them stands what was edited, and how
the texts score: by the feature itself, by the tokens that it promotes, and as language. The first lines are the three numbers
that decide. --evaluate, --tasks and --refusals measure what the edit breaks, --export hands it over.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> int | None:
    """1 where a replay gives other texts than were saved."""
    from rich.text import Text

    from scope.cli.progress import confirm_time, console, print_certificate, print_note, stages
    from scope.progress import duration
    from scope.steering.compare.steer import SteeringRun
    from scope.workflows.side_effects import SideEffects

    def on_progress(done: int, total: int, numbers: dict[str, Any]) -> None:
        left = f", about {numbers['seconds_left']:.0f} s left" if done < total else ""
        console.print(f"  strength {numbers['strength']:g} done{left}")

    def on_time(seconds: float) -> None:
        confirm_time(seconds, parsed.yes, f"{len(config.sweep)} strengths, about {duration(seconds)}")

    config = config_of(Steer, parsed)
    aside = config.export and beside(config.export, ".new")
    for file in filter(None, (parsed.json, parsed.plot, aside)):
        refuse_unwritable(file)
    later: list[tuple[Callable[[Any], None], Any]] = []  # printed below the numbers that decide
    tell = {"on_note": lambda note: later.append((print_note, note)), "on_time": on_time}
    tell["on_certificate"] = lambda certificate: later.append((print_certificate, certificate))
    with stages(parsed.yes) as on_stage:
        result = steer(config, on_progress=on_progress, on_stage=on_stage, **tell)
    run = result.run if isinstance(result, SideEffects) else result
    if isinstance(run, SteeringRun):
        print_run(run, console, getattr(result, "cost", None))
        for line in result.lines() if isinstance(result, SideEffects) else ():
            console.print(Text(line))
    else:
        console.print(Text(str(result)))
    for show, what in later:
        show(what)
    if config.replay:
        return _print_replay(config.replay, result, console)
    if parsed.json:
        result.to_json(parsed.json)
        model = [] if config.model == Steer.model else ["--model", config.model]
        picture = [] if config.picture is None else ["--picture", str(config.picture)]
        sae = [] if config.intervention else ["--sae", str(config.sae)]
        again = shlex.join(["scope", "steer", *sae, *model, *picture, "--replay", str(parsed.json)])
        console.print(f"Written to {parsed.json}; to make it again: {again}", soft_wrap=True)
    if parsed.plot and not isinstance(run, SteeringRun):
        write_whole(parsed.plot, result.plot().to_html())
        console.print(f"Figure written to {parsed.plot}", soft_wrap=True)
    return None


def _print_replay(file: Path, again: Any, console: Any) -> int:
    """0 where the texts are the same, 1 where they differ."""
    from scope.steering.compare.saved_runs import read_saved
    from scope.steering.compare.sweep import Sweep

    before = read_saved(file)
    if before.same_texts(again):
        console.print("The texts are the same, token by token, as those that were saved.", style="green")
        return 0
    import torch

    versions = (before.runs[0] if isinstance(before, Sweep) else before).versions
    console.print(
        f"The texts differ from those that were saved with torch {versions.get('torch')}; this is torch "
        f"{torch.__version__}. Another machine or another number of threads rounds differently.",
        style="yellow",
    )
    return 1


def print_run(run, console, cost: Any = None) -> None:
    """The three numbers that decide, conditions in columns, then the scores, then what the hooks counted."""
    from rich.table import Table
    from rich.text import Text

    from scope.escape import visible
    from scope.steering.compare import show

    for line in show.decisive(run, cost):
        console.print(Text(line, style="bold"))
    for line in show.edit_lines(run):
        console.print(Text(line))
    texts = Table(show_lines=True, expand=True)
    texts.add_column("prompt", ratio=1)
    for condition in run.conditions:
        texts.add_column(condition.name, ratio=3)
    for i, sample in enumerate(run["steered"].samples):
        texts.add_row(Text(visible(sample.prompt)), *(_text(c.name, c.samples[i]) for c in run.conditions))
    console.print(texts)
    figures = Table(box=None)
    figures.add_column("")
    for condition in run.conditions:
        figures.add_column(condition.name, justify="right")
    figures.add_column("")
    for name, meaning, values in show.figures(run):
        figures.add_row(name, *(map(show.number, values)), Text(meaning, style="dim"))
    console.print(figures)
    for line in show.self_check(run):
        console.print(Text(line, style="dim"))
    for note in run.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _text(condition, sample):
    """A cell: dim up to the first token that differs from plain."""
    from rich.text import Text

    from scope.escape import visible
    from scope.steering.compare import show

    at = sample.diverges_at
    if condition == "plain" or at is None:
        return Text(visible(sample.text))
    before, after = ("".join(text for _, _, text in show.spelled(part)) for part in (sample.pieces[:at], sample.pieces[at:]))
    return Text.assemble((visible(before), "dim"), visible(after))
