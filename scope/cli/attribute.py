"""`scope attribute`: which latents make the model say one token rather than another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings
from scope.workflows.steer import DEMO, refuse_missing_demo


@dataclass(frozen=True, kw_only=True)
class Command(ModelSettings):
    """A logit difference as a sum over the residual stream: a row per latent, for the SAE's error and for its bias.

    Every latent stands beside its null: the effect of a random direction in its place.
    """

    prompt: str
    """Text after which the next token is asked about."""

    token: str | None = None
    """The token to explain, with its leading space; by default the likeliest."""

    other: str | None = None
    """The token that it is compared with; by default the likeliest besides."""

    method: Literal["integrated", "gradient", "ablation", "direct"] = "integrated"
    """The gradient's mean on the way from the dictionary's bias, times activation (adds up to the logit difference); the
    gradient at the prompt, times activation (fast, adds up to a linear reading only); ablating each latent alone (slow); the
    straight way from the last token's stream to the logits, past later blocks (fast, adds up to the logit difference)."""

    steps: int | None = None
    """Points of the integral; by default 32, or up to 256 where the rows would not add up with fewer."""

    exact: int = 32
    """Latents to ablate one by one; the rest are ablated together."""

    sae: Path = DEMO
    """Dictionary: a folder that `scope train` wrote, a SAELens folder, or Gemma Scope's params.npz."""

    pack: Path | None = None
    """Feature pack, for labels; by default the folder pack/ beside the dictionary, if it is there."""

    csv: Path | None = None
    """Write every row here."""

    certificate: bool = True
    """First check on about 2,000 tokens that the dictionary fits this model and site; kept beside it, so made once."""

    any_model: bool = False
    """Allow a dictionary that was trained on other weights than the model's."""

    def run(self) -> None:
        from rich.text import Text

        from scope.circuits.attribution import attribute
        from scope.cli.progress import console, print_certificate, print_note
        from scope.features.exports.tables import csv_cell
        from scope.features.pack.data import pack_beside
        from scope.sae.files import read_sae
        from scope.workflows.certificate import certified

        if self.csv:
            refuse_unwritable(self.csv)
        refuse_missing_demo(self.sae)
        sae = read_sae(self.sae, self.device)
        pack = pack_beside(self.sae, sae.site, sae.d_sae, self.pack)
        model = self.load_model(sae.provenance)
        certified(model, sae, self.sae, self.certificate, print_note, print_certificate, self.any_model)
        settings = {"method": self.method, "steps": self.steps, "exact": self.exact, "any_model": self.any_model}
        attribution = attribute(model, sae, self.prompt, self.token, self.other, pack=pack, **settings)
        console.print(Text(str(attribution)))
        if self.csv:
            table = attribution.to_frame()
            for column in ("name", "strongest", "label"):
                table[column] = table[column].map(csv_cell)
            write_whole(self.csv, table.to_csv(index=False))
            console.print(f"Written to {self.csv}")
