"""`scope harvest`: a model and a corpus in, a recording out."""

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tyro

from scope.cli.flags import config_of, flags_of
from scope.workflows.harvest import Harvest

if TYPE_CHECKING:
    from rich.table import Table

_ASK_ABOVE, _ASK_AFTER = 2_000_000_000, 600  # bytes, seconds
_UNUSABLE = 5  # documents that are named in the plan; the recording names all

FLAGS = flags_of(
    Harvest,
    marks={"sites": (tyro.conf.UseAppendAction, tyro.conf.arg(name="site", aliases=["--sites"]))},
    more=[("yes", bool, False, "Do not ask before more than 2 GB or ten minutes.")],
    doc="""Record activations of a model on a corpus into HDF5 shards.

Stop it whenever you like, with Ctrl-C, SIGTERM or worse: the same command continues, and the recording is byte for byte
that of an uninterrupted run. With a larger --tokens it extends the recording. A changed model, corpus or form is refused.
On several processes: torchrun --nproc-per-node N -m scope.cli harvest ...
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from contextlib import ExitStack, nullcontext

    from scope.activations.harvest.ranks import ProcessRank
    from scope.cli.progress import console, print_note, progress_bar
    from scope.cli.recording import summary
    from scope.workflows.harvest import harvest

    scanning = ExitStack()

    def confirm(planned: Any) -> bool:
        scanning.close()
        console.print(describe(planned, config.out))
        return agreed(planned, parsed.yes)

    leave_in_order()
    config = config_of(Harvest, parsed)
    with (
        scanning,
        progress_bar("Harvesting", unit="tokens") if ProcessRank.of_environment().leads else nullcontext() as on_progress,
    ):
        on_scan = scanning.enter_context(progress_bar("Trying", unit="documents"))
        store = harvest(config, on_progress=on_progress, on_scan=on_scan, confirm=confirm)
    if store is None:
        return
    console.print(summary(store))
    tokens = store.n_contexts * store.context
    if store.exhausted and tokens < config.config.tokens:
        ended = f"the corpus ended at {tokens:,} of {config.config.tokens:,} tokens; all of it is recorded."
        print_note(ended)


def leave_in_order() -> None:
    """Ctrl-C and SIGTERM, as a scheduler sends it, stop once; torchrun sends both, and the second must not break the order."""

    def stop(number: int, frame) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def describe(planned: Any, out: str) -> "Table":
    """The plan on one screen."""
    from rich.table import Table

    from scope.progress import duration, size
    from scope.sites import families

    table = Table(title=out, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    n = len(planned.sites)
    widths = sorted(set(planned.sites.values()))
    wide = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    table.add_row("sites", f"{', '.join(families(planned.sites))}  ({n:,} site{'s' * (n != 1)}, {wide} wide)")
    there = f"; {planned.recorded:,} are there" if planned.recorded else ""
    table.add_row("tokens", f"{planned.tokens:,} at {planned.bytes_per_token:,} bytes a token{there}")
    room = f"; {size(planned.free)} are free" if planned.free is not None else ""
    table.add_row("size", f"{size(planned.nbytes)}{room}")
    if planned.seconds is not None and planned.survey:
        rate = f"{planned.survey.tokens_per_second * planned.ranks:,.0f} tokens/s"
        sample = planned.survey.contexts * planned.context
        each = f" with {planned.ranks} processes, if each is as fast as this one" if planned.ranks > 1 else ""
        table.add_row(
            "time", f"about {duration(planned.seconds)} at {rate}{each}: an estimate from the first {sample:,} tokens"
        )
    elif planned.recorded >= planned.tokens:
        table.add_row("time", "none: all of it is there")
    if planned.scan is not None:
        table.add_row("tried", str(planned.scan))
        for named in planned.scan.named[:_UNUSABLE]:
            table.add_row("left out", named)
    return table


def agreed(planned: Any, yes: bool) -> bool:
    """Whether to go on: what is small and quick is not asked about.

    Raises:
        ConfigError: it is large, and there is no terminal to ask at.
    """
    from scope.errors import ConfigError

    left = planned.bytes_per_token * max(0, planned.tokens - planned.recorded)
    large, slow = left > _ASK_ABOVE, (planned.seconds or 0) > _ASK_AFTER
    if yes or not (large or slow):
        return True
    if planned.ranks > 1 or not sys.stdin.isatty():
        if not large:
            return True
        raise ConfigError("That is more than 2 GB, and there is no terminal to ask at. Add --yes.")
    try:
        answer = input("Go on? [y/N] ").strip().lower()
    except EOFError:  # Ctrl-D
        answer = ""
    if answer not in ("y", "yes"):
        print("Nothing was recorded.")
    return answer in ("y", "yes")
