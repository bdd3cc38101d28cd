"""`scope evaluate`: a dictionary's scores beside their baselines."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scope.cli.flags import YES, config_of, flags_of
from scope.sae.hub.names import name_where_no_folder_is
from scope.whole_files import refuse_unwritable
from scope.workflows.evaluate import Evaluate, evaluate, save_report

FLAGS = flags_of(
    Evaluate,
    positional=("dictionary",),
    more=[
        (
            "json",
            Path | None,
            None,
            "Where to write all numbers; by default evaluation.json in the dictionary's folder, if that is a folder here.",
        ),
        YES,
    ],
    doc="""Score a dictionary: L0, FVU, cosine, delta loss and KL with its reconstructions spliced into the model.

The first line judges them in words, by the rules in scope.evaluation.caveats.verdict. Each number stands beside what a random
dictionary of equal L0, PCA with as many components, the dictionary itself on the model with random weights, and mean- and
zero-ablation reach, with a 95 % interval over documents. Also with and without position 0, special tokens and tokens of huge
norm, and by position in the context.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from scope.cli.progress import console, print_certificate, print_note, progress_bar
    from scope.evaluation.report import table

    config = config_of(Evaluate, parsed)
    if parsed.json:
        refuse_unwritable(parsed.json)
    later: list[tuple[Callable[[Any], None], Any]] = []  # printed below the verdict
    tell = {"on_note": lambda note: later.append((print_note, note))}
    tell["on_certificate"] = lambda certificate: later.append((print_certificate, certificate))
    with progress_bar("Scoring", unit="passes", yes=parsed.yes) as on_progress:
        evaluation = evaluate(config, on_progress=on_progress, **tell)
    console.print(table(evaluation))
    for show, what in later:
        show(what)
    name = name_where_no_folder_is(config.dictionary)
    folder = Path(config.dictionary) if name is None else name.lab
    if name is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if parsed.json:
        file = evaluation.save(parsed.json)
    elif folder.is_dir():
        file = save_report(evaluation, folder, config.config)
        if file is None:
            console.print(
                f"The report in {folder} is kept: it covers more than this one. To keep this one too, give --json FILE."
            )
    else:
        file = None
    if file is not None:
        console.print(f"All numbers: {file}", soft_wrap=True)
