"""`scope modalities`: does a latent of a SigLIP mean a word in pictures and in texts alike?"""

from collections.abc import Sequence
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.modalities import CompareModalities, modalities

FLAGS = flags_of(
    CompareModalities,
    positional=("sae",),
    doc="""Check which latents of a SigLIP mean a word in pictures and in texts.

For each word the latent is chosen that tells the word best on one half of the pictures; on the other half it is scored on the
pictures and on their texts, beside chance: the same with pictures, or texts, exchanged among each other.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from scope.cli.progress import console, progress_bar

    config = config_of(CompareModalities, parsed)
    with progress_bar("Reading", unit="pictures and texts") as on_progress:
        found = modalities(config, on_progress=on_progress)
    console.print(str(found), markup=False, highlight=False, soft_wrap=True)
    for file in filter(None, (config.out, config.csv, config.html)):
        console.print(f"Written: {file}", markup=False, soft_wrap=True)
