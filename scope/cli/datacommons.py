"""`scope datacommons`: a model that asks Data Commons, the embedded table as a service, and what announces a call."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scope.cli.flags import config_of, flags_of
from scope.workflows.datacommons import AskDataCommons, ask_datacommons
from scope.workflows.triggers import Triggers, find_triggers

ASK = flags_of(
    AskDataCommons,
    positional=("question",),
    doc="""Answer a question with numbers from Data Commons.

In `A [1] || B`, A was retrieved and B is what the model wrote; `*` says that they differ by more than 5 %. Where nothing was
retrieved, nothing stands before the bars, and a note says why.
""",
)


TRIGGERS = flags_of(
    Triggers,
    positional=("sae",),
    commas=("ahead",),
    doc="""Which latents announce, k tokens ahead, that a call to Data Commons opens; force and hold back calls with them.

Precision and recall of the best latent stand beside a linear probe, the last one and two tokens, and a null (the calls of other
answers). Everything is chosen on one half of the questions and scored on the other.
""",
)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Write questions about Gapminder's countries and their answers, as bundled+rig was taught them, for `scope harvest`."""

    out: Path = Path("runs/rig.jsonl")
    """JSON lines, one text each."""

    n: int = 4000
    """Texts."""

    seed: int = 1
    """Random seed for the facts. The training used 0."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer as Data Commons does, from the table on this machine, until Ctrl-C.

    The endpoint for questions is /nodejs/query, the root for datacommons-client is /core/api/v2.
    """

    port: int = 8080
    """Port; 0 takes a free one."""

    host: str = "127.0.0.1"
    """Address to listen at; by default only this machine reaches it."""

    key: str | None = None
    """Refuse requests that do not bring this key."""


def flags(argv: Sequence[str]) -> Any:
    actions = {"ask": ASK, "serve": Serve, "triggers": TRIGGERS, "corpus": Corpus}
    return functools.reduce(operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in actions.items()))


def run(parsed: Any) -> None:
    from scope.cli.progress import console, print_note

    if isinstance(parsed, Serve):
        _serve(parsed)
    elif isinstance(parsed, Corpus):
        from scope.pretrain.organisms.rig import write_corpus

        write_corpus(parsed.out, parsed.n, parsed.seed)
        console.print(f"{parsed.n:,} texts are in {parsed.out}.", soft_wrap=True)
    elif isinstance(parsed, TRIGGERS):
        config = config_of(Triggers, parsed)
        console.print(str(find_triggers(config, on_note=print_note)), markup=False, soft_wrap=True)
        for file in filter(None, (config.out, config.csv, config.html)):
            console.print(f"Written: {file}", markup=False, soft_wrap=True)
    else:
        _ask(parsed)


def _ask(parsed: Any) -> None:
    from scope.cli.progress import console, print_note

    config = config_of(AskDataCommons, parsed)
    streamed = []

    def on_text(text: str) -> None:
        streamed.append(text)
        console.print(text if streamed[1:] else text.lstrip(), end="", soft_wrap=True)

    answer = ask_datacommons(config, on_text=on_text, on_note=print_note)
    text = str(answer)
    if streamed:
        console.print()
        text = "\n\n".join(answer.after)
    console.print(text, soft_wrap=True)


def _serve(serving: Serve) -> None:
    from scope.cli.progress import console
    from scope.retrieval.server import API, listen, serve

    listening = listen(serving.host, serving.port)
    address = f"http://{serving.host}:{listening.getsockname()[1]}"
    console.print(
        f"Serving Gapminder's table at {address} (datacommons-client: {address}{API}). Ctrl-C ends it.", soft_wrap=True
    )
    console.print(f'  scope datacommons ask "What was the population of Chad in 1952?" --service {address}', soft_wrap=True)
    serve(listening, serving.key)
