"""`scope evaluate`: a dictionary's scores beside their baselines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope.cli.flags import YES, config_of, flags_of
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

Each number stands beside what a random dictionary of equal L0, PCA with as many components, the dictionary itself on the
model with random weights, and mean- and zero-ablation reach, with a 95 % interval over documents. Also with and without
position 0, special tokens and tokens of huge norm, and by position in the context.
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
    with progress_bar("Scoring", unit="passes", yes=parsed.yes) as on_progress:
        evaluation = evaluate(config, on_progress=on_progress, on_note=print_note, on_certificate=print_certificate)
    console.print(table(evaluation))
    folder = Path(config.dictionary)
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
