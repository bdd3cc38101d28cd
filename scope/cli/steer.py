"""`scope steer`: one comparison, printed arm beside arm."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scope.models.generate import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Command:
    """Generate with latents pushed up or down, beside plain text and a random direction of the same size.

    Every arm draws the same noise, so texts differ only by what the edit does. Below them stands what was edited, and how the
    texts score: by the feature itself, by the tokens that it promotes, and as language.
    """

    sae: Path = Path("runs/demo/dictionary")
    """Dictionary: a folder that `scope train` wrote, a SAELens folder, or Gemma Scope's params.npz."""

    latent: tuple[int, ...] = ()
    """Latents to edit. Without any, the best candidates of the pack are listed."""

    strength: tuple[float, ...] = (0.5,)
    """One for all latents, or one for each, in --unit. Below 0 pushes the other way. With --edit scale, the factor."""

    edit: Literal["add", "clamp", "at-least", "ablate", "project-out", "scale"] = "add"
    """What to do: add along the latent's direction; set its activation; raise it to at least; remove its contribution;
    remove the whole direction; multiply its contribution."""

    unit: Literal["norm", "raw", "max"] = "norm"
    """Of the strength: fractions of the site's typical residual norm, the latent's own activation, multiples of its maximum."""

    positions: str = "not_bos"
    """Where: not_bos, all, content, prompt, generated, last_prompt, or from:K."""

    prompt: tuple[str, ...] = ("My favourite hobby is",)
    """Texts to continue."""

    n: int = 1
    """Texts for each prompt and arm."""

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

    any_model: bool = False
    """Allow a dictionary that was trained on other weights than the model's, as for a fine-tune of the same base."""

    def run(self) -> None:
        from scope.cli.progress import console
        from scope.models.load import load_model
        from scope.sae.files import load_sae
        from scope.steering.steer import steer

        sae = load_sae(self.sae, self.device)
        if self.replay:
            return self._replay(load_model(self.model, device=self.device), sae, console)
        edits, gauge = self._edits(), self._gauge(sae)
        model = load_model(self.model, device=self.device)
        run = steer(
            model,
            sae,
            edits,
            self.prompt,
            self.sampling,
            n=self.n,
            gauges=gauge,
            control_seed=self.control_seed,
            any_model=self.any_model,
        )
        print_run(run, console)
        if self.json:
            run.to_json(self.json)
            console.print(f"Written to {self.json}; to make it again: scope steer --sae {self.sae} --replay {self.json}")
        return None

    def _edits(self):
        """One edit for each latent.

        Raises:
            EditError: no latent, or strengths that do not pair with latents.
        """
        from scope.errors import EditError
        from scope.steering.interventions import KINDS, Edits

        if not self.latent:
            raise EditError(f"Say which latent to edit, as in --latent 12.{self._candidates()}")
        if len(self.strength) not in (1, len(self.latent)):
            raise EditError(
                f"{len(self.latent)} latents and {len(self.strength)} strengths: give one strength, or one for each."
            )
        kind = KINDS[self.edit.replace("-", " ")]
        strengths = self.strength if len(self.strength) > 1 else self.strength * len(self.latent)
        with_strength = {"add", "clamp", "at-least"}
        return Edits(
            kind(latent, strength, positions=self.positions, unit=self.unit)
            if self.edit in with_strength
            else kind(latent, strength, positions=self.positions)
            if self.edit == "scale"
            else kind(latent, positions=self.positions)
            for latent, strength in zip(self.latent, strengths, strict=True)
        )

    def _pack(self):
        from scope.features.store import FeatureStore

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
        from scope.steering.gauge import Gauge

        pack = self._pack()
        if pack is None:
            return None
        if (pack.site, pack.d_sae) != (sae.site, sae.d_sae):
            raise PackError(
                f"The pack {pack.folder} is about {pack.d_sae} latents at {pack.site}; the dictionary {self.sae} has "
                f"{sae.d_sae} at {sae.site}.\n  Give the dictionary's own pack with --pack."
            )
        return Gauge.of_pack(pack, self.latent)

    def _candidates(self) -> str:
        pack = self._pack()
        if pack is None:
            return "\n  scope features makes a pack that tells what each latent is about."
        best = pack.steerable(8)
        lines = [f"  {i:>6}  {row.label}  promotes {' '.join(row.promotes[:4])!r}" for i, row in best.iterrows()]
        return "\n".join([f" With the highest output scores in {pack.folder}:", *lines])

    def _replay(self, model, sae, console) -> None:
        from scope.steering.run import SteeringRun

        saved = SteeringRun.from_json(self.replay)
        again = saved.replay(model, sae)
        print_run(again, console)
        if saved.same_texts(again):
            console.print("[green]The texts are the same, token by token, as those that were saved.[/]")
        else:
            console.print(
                f"[yellow]The texts differ from those that were saved[/] with torch {saved.versions.get('torch')}; "
                f"this is torch {again.versions['torch']}. Another machine or another number of threads rounds differently."
            )


def print_run(run, console) -> None:
    """Arms in columns, then the figures, then what the hooks counted."""
    from rich.table import Table
    from rich.text import Text

    from scope.steering import show

    for line in show.edit_lines(run):
        console.print(Text(line, style="bold"))
    texts = Table(show_lines=True, expand=True)
    texts.add_column("prompt", ratio=1)
    for arm in run.arms:
        texts.add_column(arm.name, ratio=3)
    for i, sample in enumerate(run["steered"].samples):
        texts.add_row(Text(show.visible(sample.prompt)), *(_text(arm, arm.samples[i]) for arm in run.arms))
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

    from scope.steering import show

    at = sample.diverges_at
    if arm.name == "plain" or at is None:
        return Text(show.visible(sample.text))
    before, after = "".join(sample.pieces[:at]), "".join(sample.pieces[at:])
    return Text.assemble((show.visible(before), "dim"), show.visible(after))
