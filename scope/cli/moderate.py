"""`scope moderate`: P(Yes) of each text by each policy, as a table or as JSON."""

from collections.abc import Sequence
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.moderate import Moderate, moderate

FLAGS = flags_of(
    Moderate,
    positional=("text",),
    commas=("policy",),
    more=[("json", bool, False, "Print JSON instead of a table.")],
    doc="""Judge texts by policies, with a ShieldGemma: the probability that each violates each.

The prompt is the checkpoint's own template with the policy's guideline in it, and the probability is the softmax over exactly
the two logits of Yes and No. With --sae it is said which latents make the moderator answer Yes.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from rich.text import Text

    from scope.cli.progress import console, progress_bar

    config = config_of(Moderate, parsed)
    if config.sae is not None:
        results = moderate(config)
        if parsed.json:
            print("[" + ",\n".join(result.to_json() for result in results) + "]")
            return
        for result in results:
            console.print(Text(result.text(config.top)))
        return
    if parsed.json:  # nothing else may stand on the output
        print(moderate(config).to_json())
        return
    with progress_bar("Judging", unit="prompts") as on_progress:
        result = moderate(config, on_progress=on_progress)
    console.print(Text(str(result)))
