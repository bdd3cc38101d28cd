"""Output of the commands: a console that reads nothing as markup, notes, and a progress bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from scope.escape import isolate_runs, visible
from scope.progress import LATER, Forecast, OnProgress, duration


class _Console(Console):
    """Prints text as it is: `[/b]` is no markup, `:smile:` no emoji, and what a terminal would obey becomes visible."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)


class _Terminal:
    """Standard output; on a terminal, right-to-left text is isolated from what stands beside it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def write(self, text: str) -> int:
        return sys.stdout.write(isolate_runs(text) if sys.stdout.isatty() else text)


console = _Console(file=_Terminal(), highlight=False, markup=False, emoji=False)


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_short(speed)} {self.unit}/s", style="dim")


_SAY_ABOVE, _ASK_ABOVE = 120.0, 3600.0  # seconds


def confirm_time(seconds: float, yes: bool, text: str = "") -> None:
    """Say how long work will take, in `text` if given; before more than an hour, ask, where there is a terminal to ask at.

    Raises:
        KeyboardInterrupt: the answer was no.
    """
    if text or seconds >= _SAY_ABOVE:
        console.print(text or f"About {duration(seconds)}, measured on its first seconds. Ctrl-C stops it.", style="dim")
    if yes or seconds < _ASK_ABOVE or not sys.stdin.isatty():
        return
    try:
        answer = input("Go on? [Y/n] (--yes does not ask) ").strip().lower()
    except EOFError:  # Ctrl-D
        answer = "n"
    if answer not in ("", "y", "yes"):
        raise KeyboardInterrupt


@contextmanager
def progress_bar(title: str, unit: str = "steps", yes: bool = False, foretell: bool = True) -> Iterator[OnProgress]:
    """Within the block, call what it yields as (done, total, numbers); the bar stays when the work is done.

    It is drawn with the first call: what is refused before is not said under a bar. With `foretell`, what the first seconds
    show will take minutes is said, and what will take more than an hour is asked about unless `yes`.
    """
    columns = (
        TextColumn("{task.description:<12}", style="bold", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        _Rate(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}", style="cyan", markup=False),
    )
    bar = Progress(*columns, console=console, refresh_per_second=4)
    task = bar.add_task(title, total=None, numbers="")
    drawn, forecast, agreed = False, Forecast(), yes

    def on_progress(done: int, total: int, numbers: dict | None = None) -> None:
        nonlocal drawn, agreed
        if not drawn:
            drawn = True
            bar.start()
        shown = "  ".join(f"{name} {_value(value)}" for name, value in (numbers or {}).items() if name != LATER)
        bar.update(task, completed=done, total=total, numbers=shown)
        left = forecast.update(done, total) if foretell else None
        if left is not None:
            left += (numbers or {}).get(LATER, 0.0)
            bar.stop()
            confirm_time(left, agreed)
            agreed = agreed or left >= _ASK_ABOVE
            bar.start()

    try:
        yield on_progress
    finally:
        if drawn:
            bar.stop()


@contextmanager
def stages(yes: bool = False) -> Iterator[Callable[[str], OnProgress]]:
    """Within the block, call what it yields with the title of a stage for the `on_progress` of that stage; the bar of the one
    before ends there."""
    with ExitStack() as current:

        def begin(title: str) -> OnProgress:
            current.close()
            return current.enter_context(progress_bar(title, unit="units", yes=yes))

        yield begin


def _value(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(x: float) -> str:
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= unit:
            return f"{x / unit:.1f}{suffix}"
    return f"{x:.0f}" if x >= 10 else f"{x:.2g}"


def print_note(note: str, name: str = "note") -> None:
    """A remark that a reader should see before believing the result."""
    console.print(Text.assemble((f"{name}:", "yellow"), " ", visible(note)))


def print_certificate(certificate: Any) -> None:
    """What a dictionary's certificate says, in a line."""
    console.print(f"Certificate: {certificate.line()}", style="dim")
