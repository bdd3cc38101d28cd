"""`scope train`: a recording or a running model in, one dictionary or many out."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from scope.cli.flags import YES, config_of, flags_of, numbers_in, settings_in
from scope.training.grid import SWEPT
from scope.workflows.train import config_for, train

_DOC = """Train sparse dictionaries on a recording, or straight from a running model.

Give several values with commas between (--target-l0 32,64,128 --seed 0,1), several sites or a glob: every combination is
trained in one pass over the activations, each in its own folder below --out, and each as if it were alone.

Activations are scaled to a mean square norm of 1 and the scale is folded back on saving, so a dictionary reads activations
as the model makes them. Its folder is SAELens' layout with a scope.json beside it. Stopped with Ctrl-C, SIGTERM or
worse, the same command continues and ends in the same weights. Under `torchrun --nproc-per-node N -m scope.cli train …`
processes share the work.
"""


def flags(argv: Sequence[str]) -> type:
    """The flags of the kind that `argv` names, whose defaults are those of the preset at its size.

    Raises:
        ConfigError: the preset is not one for that kind; --steps and --tokens are both given.
    """
    config = config_for(numbers_in(settings_in(argv), {"d_sae", "tokens", "steps", "batch_size"}))
    made = flags_of(config, positional=("recording",), commas=(*SWEPT, "*"), more=[YES], doc=_DOC)
    made.config = config  # type: ignore[attr-defined]
    return made


def run(parsed: Any) -> None:
    from scope.cli.progress import console, print_note, progress_bar
    from scope.sae.claims import Provenance
    from scope.training.processes import launched

    config = config_of(type(parsed).config, parsed)
    rank, *_ = launched()
    with progress_bar("Training", unit="steps", yes=parsed.yes) if rank == 0 else nullcontext() as on_progress:
        trained = train(
            config,
            on_progress=on_progress,
            on_plan=lambda text: console.print(text),
            on_note=print_note,
        )
    several = trained if isinstance(trained, dict) else {} if trained is None else {"": trained}
    for name, sae in several.items():
        console.print(summary(config.out / name, sae))
        for note in Provenance.of(sae.provenance).training.notes:
            print_note(note)


def summary(out: Path, sae: Any) -> str:
    """The outcome of one dictionary's training."""
    from scope.sae.claims import Provenance

    result = Provenance.of(sae.provenance).training
    without = result.fvu_without_outliers
    fvu = f"FVU {result.fvu:.3f}" + ("" if without is None else f" ({without:.3f} without outliers)")
    return (
        f"{out}: {sae.d_sae} latents over {sae.site}, {fvu} at L0 {result.l0:.1f}, "
        f"{result.dead:.1%} dead, {result.tokens:,} tokens (means over the last tenth of the training)"
    )
