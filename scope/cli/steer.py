"""`scope steer`: one comparison, printed arm beside arm, or a sweep over strengths."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scope.models.text.sampling_config import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Command:
    """Generate with latents or a direction pushed up or down, beside plain text and a random direction of the same size.

    Every arm draws the same noise, so texts differ only by what the edit does. Below them stands what was edited, and how the
    texts score: by the feature itself, by the tokens that it promotes, and as language.
    """

    sae: Path = Path("runs/demo/dictionary")
    """Dictionary: a folder that `scope train` wrote, a SAELens folder, or Gemma Scope's params.npz."""

    latent: tuple[int, ...] = ()
    """Latents to edit. Without any, the best candidates of the pack are listed."""

    direction: Path | None = None
    """Edit this direction instead of latents: a vector in a .npy, .npz, .json or .safetensors file."""

    key: str | None = None
    """Which of several vectors in that file."""

    toward: tuple[str, ...] = ()
    """Edit the difference of means between these prompts ..."""

    away: tuple[str, ...] = ()
    """... and these."""

    probe: bool = False
    """With --toward and --away: the weights of a linear probe that tells the two sides apart, not the difference of means."""

    strength: tuple[float, ...] = (0.5,)
    """One for all latents, or one for each, in --unit. Below 0 pushes the other way. With --edit scale, the factor."""

    edit: Literal["add", "clamp", "at-least", "ablate", "project-out", "scale", "cap", "floor"] = "add"
    """What to do: add along the latent's direction; set its activation; raise it to at least; remove its contribution;
    remove the whole direction; multiply its contribution; hold what lies along the direction below or above."""

    when: str | None = None
    """Only where another latent is active: its number, or as in 7:2.5 its number and the activation it must exceed."""

    unit: Literal["norm", "raw", "max"] = "norm"
    """Of the strength: fractions of the site's typical residual norm, the latent's own activation, multiples of its maximum."""

    positions: str = "not_bos"
    """Where: not_bos, all, content, prompt, generated, last_prompt, or from:K."""

    prompt: tuple[str, ...] = ("My favourite hobby is",)
    """Texts to continue."""

    n: int = 1
    """Texts for each prompt and arm."""

    arms: tuple[str, ...] = ("plain", "steered", "random")
    """What to write: plain, steered, random (further ones as random:1), other (another latent that fires as often), prompt
    (nothing edited, but asked for in the prompt)."""

    instruction: str | None = None
    """What the arm "prompt" begins with; by default, Talk about the promoted words."""

    sweep: tuple[float, ...] = ()
    """Strengths to try in turn, each beside all controls; the best is chosen on half of the prompts and told on the others."""

    model: str = "bundled"
    """Model: bundled, a checkpoint's folder, or a hub id."""

    device: str = "cpu"
    """Where to run: cpu, cuda."""

    pack: Path | None = None
    """Feature pack, for the typical norm and the maxima; by default the folder pack/ beside the dictionary, if it is there."""

    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)

    control_seed: int = 0
    """Of the random direction."""

    json: Path | None = None
    """Write everything here; --replay reads it."""

    replay: Path | None = None
    """Make a saved run again and say whether the texts are the same. Of the other flags only --model, --sae, --device count."""

    certificate: bool = True
    """First check on about 2,000 tokens that the dictionary fits this model and site; kept beside it, so made once."""

    any_model: bool = False
    """Allow a dictionary that was trained on other weights than the model's, as for a fine-tune of the same base."""

    def run(self) -> int | None:
        from scope.cli.certificate import certified
        from scope.cli.progress import console
        from scope.fit import check_fit
        from scope.models.load import load_model
        from scope.sae.files import read_sae
        from scope.steering.compare.steer import steer

        sae = read_sae(self.sae, self.device)
        if self.replay:
            return self._replay(load_model(self.model, device=self.device), sae, console)
        self._check_targets()
        gauge = self._gauge(sae)
        if self.latent:
            self._edits(sae, None)  # refuses before the model is loaded
        model = load_model(self.model, device=self.device)
        check_fit(model, sae, self.any_model, reconstructs=True)
        certified(model, sae, self.sae, self.certificate, self.any_model)
        edits = self._edits(sae, model)
        how = {"n": self.n, "gauges": gauge, "control_seed": self.control_seed, "instruction": self.instruction}
        if self.sweep:
            made = self._sweep(model, sae, edits, how, console)
        else:
            made = steer(model, sae, edits, self.prompt, self.sampling, self.arms, any_model=self.any_model, **how)
            print_run(made, console)
        if self.json:
            made.to_json(self.json)
            console.print(f"Written to {self.json}; to make it again: scope steer --sae {self.sae} --replay {self.json}")
        return None

    def _sweep(self, model, sae, edits, how, console):
        """Every strength in turn, said beforehand how long."""
        from rich.text import Text

        from scope.steering.compare.steer import USUAL
        from scope.steering.compare.sweep import estimate, sweep

        how = {**how, "any_model": self.any_model, "arms": None if self.arms == USUAL else self.arms}
        seconds = estimate(model, sae, edits, self.prompt, self.sweep, self.sampling, **how)
        console.print(f"{len(self.sweep)} strengths, about {max(1, round(seconds))} s")

        def told(done, total, numbers):
            left = f", about {numbers['seconds_left']:.0f} s left" if done < total else ""
            console.print(f"  strength {numbers['strength']:g} done{left}")

        made = sweep(model, sae, edits, self.prompt, self.sweep, self.sampling, on_progress=told, **how)
        console.print(Text(str(made)))
        return made

    def _check_targets(self) -> None:
        """That exactly one kind of target was given.

        Raises:
            EditError: none, several, or half of one.
        """
        from scope.errors import EditError

        given = [bool(self.latent), self.direction is not None, bool(self.toward or self.away)]
        if not any(given):
            raise EditError(f"Say which latent to edit, as in --latent 12.{self._candidates()}")
        if sum(given) > 1:
            raise EditError("Give --latent, or --direction, or --toward and --away: one run edits one kind of target.")
        if bool(self.toward) != bool(self.away):
            raise EditError("A difference of means needs prompts on both sides: --toward and --away.")
        if self.probe and not self.toward:
            raise EditError("A probe tells two sets of prompts apart: give them with --toward and --away.")

    def _edits(self, sae, model):
        """One edit for each target.

        Raises:
            EditError: strengths that do not pair with latents, or an edit that cannot be.
        """
        from scope.errors import EditError
        from scope.steering.edits.directions import Direction
        from scope.steering.edits.interventions import KINDS, Edits, When

        targets = list(self.latent)
        if self.direction is not None:
            targets = [Direction.from_file(self.direction, sae.site, self.key)]
        elif self.toward:
            make = Direction.probe if self.probe else Direction.between
            targets = [make(model, sae.site, self.toward, self.away)]
        if len(self.strength) not in (1, len(targets)):
            raise EditError(f"{len(targets)} latents and {len(self.strength)} strengths: give one strength, or one for each.")
        kind = KINDS[self.edit.replace("-", " ")]
        how = {"positions": self.positions, "when": When.of(self.when) if self.when else None}
        strengths = self.strength if len(self.strength) > 1 else self.strength * len(targets)
        if kind.has_amount:
            return Edits(kind(t, s, unit=self.unit, **how) for t, s in zip(targets, strengths, strict=True))
        if kind.kind == "scale":
            return Edits(kind(t, s, **how) for t, s in zip(targets, strengths, strict=True))
        return Edits(kind(t, **how) for t in targets)

    def _pack(self):
        from scope.features.pack.store import FeatureStore

        beside = self.sae.parent / "pack"
        if self.pack is None and not (beside / "manifest.json").exists():
            return None
        return FeatureStore.open(self.pack or beside)

    def _gauge(self, sae):
        """From the pack, if there is one.

        Raises:
            PackError: the pack is about another dictionary.
        """
        from scope.errors import PackError
        from scope.steering.apply.gauge import Gauge

        pack = self._pack()
        if pack is None:
            return None
        if (pack.site, pack.d_sae) != (sae.site, sae.d_sae):
            raise PackError(
                f"The pack {pack.folder} is about {pack.d_sae} latents at {pack.site}; the dictionary {self.sae} has "
                f"{sae.d_sae} at {sae.site}.\n  Give the dictionary's own pack with --pack."
            )
        from scope.steering.edits.interventions import When

        return Gauge.of_pack(pack, [*self.latent, *([When.of(self.when).latent] if self.when else [])])

    def _candidates(self) -> str:
        pack = self._pack()
        if pack is None:
            return "\n  scope features makes a pack that tells what each latent is about."
        best = pack.steerable(8)
        lines = [f"  {i:>6}  {row.label}  promotes {' '.join(row.promotes[:4])!r}" for i, row in best.iterrows()]
        return "\n".join([f" With the highest output scores in {pack.folder}:", *lines])

    def _replay(self, model, sae, console) -> int:
        """0 where the texts are the same, 1 where they differ."""
        from rich.text import Text

        from scope.steering.compare.sweep_result import Sweep, saved

        before = saved(self.replay)
        again = before.replay(model, sae)
        if isinstance(again, Sweep):
            console.print(Text(str(again)))
        else:
            print_run(again, console)
        versions = (before.runs[0] if isinstance(before, Sweep) else before).versions
        if before.same_texts(again):
            console.print("[green]The texts are the same, token by token, as those that were saved.[/]")
            return 0
        import torch

        console.print(
            f"[yellow]The texts differ from those that were saved[/] with torch {versions.get('torch')}; "
            f"this is torch {torch.__version__}. Another machine or another number of threads rounds differently."
        )
        return 1


def print_run(run, console) -> None:
    """Arms in columns, then the figures, then what the hooks counted."""
    from rich.table import Table
    from rich.text import Text

    from scope.escape import visible
    from scope.steering.export import show

    for line in show.edit_lines(run):
        console.print(Text(line, style="bold"))
    texts = Table(show_lines=True, expand=True)
    texts.add_column("prompt", ratio=1)
    for arm in run.arms:
        texts.add_column(arm.name, ratio=3)
    for i, sample in enumerate(run["steered"].samples):
        texts.add_row(Text(visible(sample.prompt)), *(_text(arm, arm.samples[i]) for arm in run.arms))
    console.print(texts)
    figures = Table(box=None)
    figures.add_column("")
    for arm in run.arms:
        figures.add_column(arm.name, justify="right")
    figures.add_column("")
    for name, meaning, values in show.figures(run):
        figures.add_row(name, *(map(show.number, values)), Text(meaning, style="dim"))
    console.print(figures)
    for line in show.self_check(run):
        console.print(Text(line, style="dim"))
    for note in run.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _text(arm, sample):
    """A cell: what stands before the parting from plain dim, the rest as it is."""
    from rich.text import Text

    from scope.escape import visible
    from scope.steering.export import show

    at = sample.diverges_at
    if arm.name == "plain" or at is None:
        return Text(visible(sample.text))
    before, after = ("".join(text for _, _, text in show.spelled(part)) for part in (sample.pieces[:at], sample.pieces[at:]))
    return Text.assemble((visible(before), "dim"), visible(after))
