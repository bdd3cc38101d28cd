"""`scope.memory`: what a recurrent model remembers of a text, token by token."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings, resolve


@dataclass(frozen=True, kw_only=True)
class Remember(ModelSettings):
    """What to read. Each field is also a flag of `scope memory`."""

    text: tuple[str, ...] = ()
    """Texts. Each is read by itself."""

    model: str | None = None
    """A model with recurrent layers: bundled-recurrent (the default), a checkpoint's folder or a hub id. With --sae by default
    the one that it was trained on."""

    sae: Path | None = None
    """SAE of a state (blocks.N.rec.hook_state) or of its writes (hook_write): say too what each token adds to its latents."""

    latent: tuple[int, ...] = ()
    """With --sae: latents to read. By default those that fire strongest."""

    layers: tuple[int, ...] = ()
    """Recurrent layers to read; by default all."""

    times: tuple[int, ...] = ()
    """Positions after which the state is taken apart; by default all, or 256 of a longer text."""

    chat: bool = False
    """Read each text as a user's turn, in the model's chat template."""

    save: Path | None = None
    """Write the result here; `Memory.load` reads it. Of several texts the last."""

    html: Path | None = None
    """Write a page with the heat maps tokens x time here. Of several texts the last."""

    csv: Path | None = None
    """Write a row per layer and token here. Of several texts the last."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the model's."""

    def __post_init__(self):
        if self.model is None and self.sae is None:
            object.__setattr__(self, "model", "bundled-recurrent")


def memory(config: Any = None, *rest: Any, **settings: Any) -> Any:
    """Take the states of a recurrent model apart into what each token of a text left in them.

    `scope.memory("The code word is apple.", model="bundled-recurrent")` says what `scope memory` says with flags, and
    `scope.memory(model, text, sae)` reads with objects in memory; see `scope.circuits.memory`. Returns a `Memory`, or a list
    for several texts.

    Raises:
        ConfigError: a model without recurrent layers, a layer or time that there is not.
        DictionaryError: an SAE of another site or model. TokensError: no text, or one longer than the context.
    """
    from scope.circuits.memory import memory as in_memory
    from scope.errors import TokensError

    if rest or "text" in settings and config is not None:
        return in_memory(config, *rest, **settings)
    job = resolve(Remember, config, settings, first="text")
    from scope.sae.files import read_sae

    if not job.text:
        raise TokensError('Give a text to read: scope memory "The code word is apple. ..."')
    for file in filter(None, (job.save, job.html, job.csv)):
        refuse_unwritable(file)
    sae = None if job.sae is None else read_sae(job.sae, job.device)
    model = job.load_model({} if sae is None else sae.provenance)
    texts = [[{"role": "user", "content": text}] for text in job.text] if job.chat else list(job.text)
    how = {"latents": job.latent or None, "layers": job.layers or None, "times": job.times or None, "any_model": job.any_model}
    results = [in_memory(model, text, sae, **how) for text in texts]
    for result in results[-1:]:
        if job.save:
            result.save(job.save)
        if job.html:
            result.to_html(job.html)
        if job.csv:
            write_whole(job.csv, result.to_frame().to_csv(index=False))
    return results[0] if len(results) == 1 else results
