"""`scope memory`: what a recurrent model remembers of a text, layer by layer."""

from collections.abc import Sequence
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.memory import Remember, memory

FLAGS = flags_of(
    Remember,
    positional=("text",),
    doc="""Say what a recurrent model remembers of a text: its state as a sum over tokens.

With the gates of the text as they are, the state of a recurrent layer is exactly the sum of what each token wrote into it,
times what later tokens left of that. The half-life of a token is after how many further ones half is left. With the SAE of a
state it is said too which tokens make each latent fire. With --needle models are asked for what stood n tokens earlier.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from scope.cli.progress import console, progress_bar

    config = config_of(Remember, parsed)
    if config.needle:
        with progress_bar("Asking", unit="distances") as on_progress:
            results = memory(config, on_progress=on_progress)
    else:
        results = memory(config)
    for result in results if isinstance(results, list) else [results]:
        console.print(str(result), markup=False, highlight=False, soft_wrap=True)
    for file in filter(None, (config.save, config.html, config.csv)):
        console.print(f"Written: {file}", markup=False, soft_wrap=True)
