"""`scope attribute`: which latents make the model say one token rather than another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.errors import ConfigError, EditError
from scope.texts import texts_of_file
from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings
from scope.workflows.steer import DEMO, refuse_missing_demo


@dataclass(frozen=True, kw_only=True)
class Command(ModelSettings):
    """A logit difference as a sum over the residual stream: a row per latent, for the SAE's error and for its bias.

    Every latent stands beside its null: the effect of a random direction in its place.
    """

    prompt: str = ""
    """Text after which the next token is asked about."""

    prompts: Path | None = None
    """Ask about the texts of this file in place of --prompt: one a line, or .json or .jsonl."""

    chat: bool = False
    """Each prompt is a user's turn, laid out by the model's chat template; the token is the answer's first."""

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

    picture: Path | None = None
    """A picture, for a PaliGemma: the rows are then (patch, latent) pairs, beside an ablation of the same patches. For a SigLIP
    with --text: the logit of the pair as a sum over latents of the picture's side."""

    text: str = ""
    """With --picture, for a SigLIP: what the picture may show. --other is then another text to compare it with."""

    answer: str = ""
    """With --picture, the beginning of the answer, after which the token is asked about."""

    png: Path | None = None
    """With --picture, write the picture here, each patch coloured by its effect."""

    html: Path | None = None
    """Write the tables here, with --picture under the coloured picture, as a page of its own."""

    python: Path | None = None
    """With --picture, write a program here that makes the attribution again, with the picture in it."""

    sae: Path = DEMO
    """SAE: a folder that `scope train` wrote, a SAELens folder, a params.npz, or the name of a published SAE."""

    site: str | None = None
    """Where it reads, e.g. blocks.12.hook_resid_post, for a file that does not say, as a params.npz. None: as it says."""

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
        from scope.circuits.picture_attribution import attribute_picture
        from scope.circuits.picture_match import POOLED, attribute_match
        from scope.cli.progress import console, print_certificate, print_note
        from scope.features.pack.data import pack_beside
        from scope.models.face import VisionModel
        from scope.sae.files import read_sae
        from scope.workflows.certificate import certified

        self._check_picture()
        for file in (self.csv, self.png, self.html, self.python):
            if file:
                refuse_unwritable(file)
        refuse_missing_demo(self.sae)
        sae = read_sae(self.sae, self.device, self.site)
        pack = pack_beside(self.sae, sae.site, sae.d_sae, self.pack)
        model = self.load_model(sae.provenance, pictures=True)
        certified(model, sae, self.sae, self.certificate, print_note, print_certificate, self.any_model)
        if self.picture is None and isinstance(model, VisionModel):
            raise ConfigError(f"A {model.cfg.family_name} is asked about a picture. Give one: --picture FILE")
        settings = {"steps": self.steps, "any_model": self.any_model, "pack": pack}
        if self.text:
            method = None if sae.site == POOLED else self.method
            attribution = attribute_match(model, sae, self.picture, self.text, self.other, method=method, **settings)
            console.print(Text(str(attribution)))
            self._write(attribution)
            return
        settings["method"] = self.method
        if self.picture is None:
            attribution = self._attributions(attribute, model, sae, settings)
        else:
            asked = self.picture, self.prompt, self.token, self.other
            attribution = attribute_picture(model, sae, *asked, answer=self.answer, **settings)
        console.print(Text("\n\n".join(map(str, attribution if isinstance(attribution, list) else [attribution]))))
        self._write(attribution)

    def _attributions(self, attribute: Any, model: Any, sae: Any, settings: dict[str, Any]) -> Any:
        """The attribution of the prompt, or a list with that of each text of the file."""
        if self.prompts and self.prompt:
            raise ConfigError("--prompt and --prompts are both given; leave one of them out.")
        texts = texts_of_file(self.prompts, EditError) if self.prompts else [self.prompt]
        if self.chat:
            texts = [model.words.chat([{"role": "user", "content": text}]) for text in texts]
        each = attribute(model, sae, texts, self.token, self.other, exact=self.exact, **settings)
        return each if self.prompts else each[0]

    def _write(self, attribution: Any) -> None:
        """The files that are asked for."""
        from scope.circuits.picture_script import as_python
        from scope.cli.progress import console
        from scope.escape import escape
        from scope.html_page import html_page
        from scope.models.pictures.draw import png

        written = {self.csv: self._table(attribution)} if self.csv else {}
        if self.png:
            written[self.png] = png(attribution.draw())
        if self.html:
            several = attribution if isinstance(attribution, list) else [attribution]
            body = "<hr>".join(one._repr_html_() for one in several)
            code = "" if self.picture is None else f"<pre>{escape(as_python(attribution, str(self.sae)))}</pre>"
            written[self.html] = html_page("Attribution", body + code)
        if self.python:
            written[self.python] = as_python(attribution, str(self.sae))
        for file, content in written.items():
            write_whole(file, content)
            console.print(f"Written to {file}")

    def _check_picture(self) -> None:
        """
        Raises:
            ConfigError: what belongs to a picture is given without one.
        """
        alone = [f"--{name}" for name in ("answer", "png", "text", "python") if getattr(self, name)]
        if self.picture is None and alone:
            raise ConfigError(f"{', '.join(alone)} belongs to a picture. Give one: --picture FILE")
        if self.picture is not None and (self.prompts or self.chat):
            raise ConfigError("--prompts and --chat are for text. Leave them out beside --picture.")

    def _table(self, attribution: Any) -> str:
        """Every row as CSV; of a picture, every pair of a patch, or a token, and a latent."""
        from scope.escape import csv_cell

        if isinstance(attribution, list):
            import pandas as pd

            table = pd.concat([one.to_frame().assign(prompt=one.prompt) for one in attribution], ignore_index=True)
        else:
            table = attribution.to_frame() if self.picture is None else attribution.pairs()
        for column in {"name", "strongest", "label", "where", "prompt"} & set(table):
            table[column] = table[column].map(csv_cell)
        return table.to_csv(index=False)
