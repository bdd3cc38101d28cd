"""`scope demo`: the whole way in one command, and a report at the end."""

from collections.abc import Sequence
from typing import Any

from scope.cli.flags import config_of, flags_of
from scope.workflows.demo import Demo, DemoResult, best_labelled, demo

FLAGS = flags_of(
    Demo,
    more=[
        ("port", int, 8501, "Port of the app; the next free one is taken."),
        ("app", bool, True, "Open the app at the end. --no-app is for scripts."),
    ],
    doc="""Go the whole way on the bundled model: harvest, train, evaluate, collect features, steer, open the app.

With --model bundled-siglip or bundled-paligemma, from pictures to heat maps of the latents on them; a
PaliGemma then answers questions about pictures with latents added at their patches.

Takes a few minutes on two CPU cores and no network. Stop it at any moment; the same command picks up what is finished.
""",
)


def flags(argv: Sequence[str]) -> type:
    return FLAGS


def run(parsed: Any) -> None:
    from scope.cli.progress import print_certificate, print_note, progress_bar

    config = config_of(Demo, parsed)
    result = demo(config, bars=progress_bar, on_note=print_note, on_certificate=print_certificate)
    print_report(config, result)
    if parsed.app:
        open_app(config.out / "pack", parsed.port)


def print_report(config: Demo, result: DemoResult) -> None:
    """The tables of the demo on the terminal, and its numbers in report.json."""
    import json

    from rich.rule import Rule
    from rich.text import Text

    from scope.cli.progress import console
    from scope.cli.steer import print_run
    from scope.escape import visible
    from scope.evaluation.report import table
    from scope.whole_files import write_whole

    sae, pack, run = result.sae, result.pack, result.run
    console.print(Rule("Results", style="dim"))
    console.print(f"{pack.model.name}; {sae.site}, {sae.d_sae:,} latents\n")
    console.print(table(result.evaluation))
    dead = float((pack.table["count"] == 0).mean())
    console.print(f"Dead: {dead:.1%} of the latents never fired on the {pack.n_tokens:,} recorded tokens.\n")
    of_text = run is not None and not result.answers
    for latent in pack.steerable(3).index if of_text else best_labelled(pack, 6):
        console.print(_described(pack[int(latent)]))
    if result.answers:
        console.print(Text(visible(result.answers)))
    if of_text:
        edit, promotes = run.edits[0], " ".join(pack.table["promotes"][run.edits[0].latent][:5])
        console.print(Rule(f"Latent {edit.latent}, added at {edit.strength:g} of the typical norm", style="dim"))
        console.print(f"It promotes: {promotes}. Of the eight latents with the largest effects its texts read best.")
        print_run(run, console)
    seconds = {stage: round(s, 1) for stage, s in result.seconds.items()}
    figures = {"seconds": seconds, "dead": dead, "evaluation": result.evaluation.to_json()}
    write_whole(config.out / "report.json", json.dumps(figures, indent=1))
    spent = ", ".join(f"{stage} {s:.0f} s" for stage, s in result.seconds.items())
    console.print(Text(f"\n{spent}. Everything is in {config.out}: recording/ dictionary/ pack/ report.json", style="dim"))
    console.print(Text(f"To look again: scope app {config.out / 'pack'}", style="dim"))


def open_app(pack: Any, port: int) -> None:
    """Serve the pack on the first free port from `port` on."""
    from scope.cli.app import Command as App
    from scope.cli.app import refuse_taken
    from scope.errors import ConfigError

    for number in range(port, port + 21):
        try:
            refuse_taken(number)
            break
        except ConfigError:
            if number == port + 20:
                raise
    App(packs=(pack,), port=number).run()


def _described(feature) -> Any:
    """A latent in a few lines: its label, what it promotes, its strongest contexts with the peak marked."""
    from rich.text import Text

    from scope.escape import visible, visible_token

    text = Text(f"Latent {feature.id}: {feature.label}", style="bold")
    promoted = " ".join(visible_token(token, mark_space=True) for token, _ in feature.promoted[:6])
    if promoted:
        score = feature.row["out_score"]
        measured = "" if score != score else f"   output score {score:+.3f}"  # NaN where it was not measured
        text.append(f"\n  promotes {promoted}{measured}", style="cyan not bold")
    pictures = feature.pictures("top", n=3)
    for example in pictures:
        text.append(f"\n  {visible(example.caption)}", style="dim not bold")
    if pictures:
        return text.append("\n")
    for example in feature.examples("top", n=3):
        low, high = max(0, example.peak - 12), example.peak + 6
        text.append(f"\n  {example.value:7.2f}  ", style="dim not bold")
        for i in range(low, min(high, len(example.tokens))):
            strong = example.acts[i] > 0.5 * example.value
            style = "bold black on yellow" if i == example.peak else "yellow not bold" if strong else "not bold"
            text.append(visible_token(example.tokens[i]), style=style)
    return text.append("\n")
