"""The notebook's face: a model, its dictionary and what is known of its latents, opened together.

lab = scope.open("runs/demo")
lab.find("dogs")
lab[1208]
lab.steer(1208, 0.5).compare("My favourite hobby is", n=3)
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from scope.errors import DictionaryError, PackError
from scope.features.feature import Feature
from scope.features.store import FeatureStore
from scope.models.generate import SamplingConfig, generate
from scope.models.load import load_model
from scope.sae.files import load_sae
from scope.steering.editing import Editing, check_dictionary, resolve
from scope.steering.gauge import Gauge
from scope.steering.interventions import Add, Edit, Edits
from scope.steering.run import SteeringRun
from scope.steering.steer import steer
from scope.steering.sweep import Sweep, sweep

DEMO = Path("runs/demo")


def open(folder: str | Path = "bundled", *, model: Any = None, device: str = "cpu") -> "Lab":
    """A lab from a folder that holds dictionary/ and pack/. "bundled" is runs/demo, made by `scope demo`, here or further up.

    `model` is a model, a checkpoint's folder or a hub id; without it, the one that the dictionary names.

    Raises:
        PackError: the folder lacks a pack or a dictionary.
    """
    folder = _demo() if str(folder) == "bundled" else Path(folder).expanduser()
    missing = [name for name in ("dictionary", "pack") if not (folder / name).is_dir()]
    if missing:
        raise PackError(
            f"{folder} has no {' and no '.join(missing)}, so it is no lab.\n"
            "  To make one of the bundled model, in a few minutes: scope demo\n"
            "  By hand: scope train RECORDING --out LAB/dictionary, then scope features LAB/dictionary ... --out LAB/pack"
        )
    return Lab(FeatureStore.open(folder / "pack"), load_sae(folder / "dictionary", device), model, device)


def _demo() -> Path:
    """runs/demo here, or in a folder above, so that a notebook in its own folder finds it too."""
    here = Path.cwd()
    return next((base / DEMO for base in (here, *here.parents) if (base / DEMO).is_dir()), DEMO)


class Lab:
    """`lab.model` is loaded on first use; `lab.sae` and `lab.pack` are there at once."""

    def __init__(self, pack: FeatureStore, sae: Any, model: Any = None, device: str = "cpu"):
        if (pack.site, pack.d_sae) != (sae.site, sae.d_sae):
            raise DictionaryError(
                f"The pack is about {pack.d_sae} latents at {pack.site}; the dictionary has {sae.d_sae} at {sae.site}. "
                "Collect its features again."
            )
        self.pack, self.sae, self._model, self._device = pack, sae, model, device

    @cached_property
    def model(self):
        """The language model.

        Raises:
            DictionaryError: it is not the one that the dictionary was trained on.
        """
        model = self._model
        if model is None or isinstance(model, str | Path):
            model = load_model(str(model or self.pack.manifest["model"].get("model") or "bundled"), device=self._device)
        check_dictionary(model, self.sae)
        return model

    def find(self, text: str):
        """Latents whose label, top token or promoted tokens contain the text."""
        return self.pack.find(text)

    def __getitem__(self, latent: int) -> Feature:
        return self.pack[latent]

    def best(self, n: int = 10, words: bool = True):
        """Latents that move the next token most towards what they promote: the ones to steer with.

        Dense latents are left out, and with `words` those that promote mostly marks, spaces or fragments of a letter, whose
        effect is large and hard to see.
        """
        return self.pack.steerable(n, words)[["label", "promotes", "out_score", "density"]]

    def read(self, text: str):
        """Which latents fire where in a text."""
        return self.pack.read(text, self.model, self.sae)

    def steer(self, target: Any, strength: float = 0.5, **how: Any) -> "Steering":
        """Edits that are ready to use. `target` is a latent's number, a Feature, a Direction, or edits made by hand.

        `strength` is a fraction of the site's typical residual norm; about 0.5 is usually right. `how` goes to `Add`:
        positions="generated", unit="max", ...
        """
        if isinstance(target, Edit | Edits | list | tuple):
            return Steering(self, Edits.of(target))
        target = target.id if isinstance(target, Feature) else target
        return Steering(self, Edits.of(Add(target, strength, **how)))

    def generate(self, prompts: str | Sequence[str], n: int = 1, **sampling: Any) -> list[str]:
        """Texts from the model, with whatever edits are at work around the call."""
        found = [prompts] if isinstance(prompts, str) else list(prompts)
        made = generate(self.model, [p for p in found for _ in range(n)], SamplingConfig(**sampling))
        return [g.text for g in made]

    def __repr__(self) -> str:
        return f"Lab({self.pack.title})"


@dataclass
class Steering:
    """Edits in a lab. `+` joins them; `.compare` shows what they do; within `with`, every run of the model is edited."""

    lab: Lab
    edits: Edits
    _entered: list = field(default_factory=list, init=False, repr=False)

    def __add__(self, other: "Steering | Edit | Edits") -> "Steering":
        return Steering(self.lab, self.edits + (other.edits if isinstance(other, Steering) else other))

    def gauge(self) -> Gauge:
        """What the strengths are measured against, from the pack."""
        return Gauge.of_pack(self.lab.pack, self.edits.latents())

    def compare(self, prompts: str | Sequence[str], n: int = 1, arms: Sequence[str] = (), **sampling: Any) -> SteeringRun:
        """Plain, steered, and a random direction of the same size, with the same noise; see `scope.steering.steer`."""
        given = {"arms": tuple(arms)} if arms else {}
        gauges = {self.lab.pack.site: self.gauge()}
        return steer(self.lab.model, self.lab.sae, self.edits, prompts, SamplingConfig(**sampling), n=n, gauges=gauges, **given)

    def sweep(
        self, prompts: Sequence[str], strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0), n: int = 1, **sampling: Any
    ) -> Sweep:
        """The same comparison over several strengths: a dose-response beside its control, and a strength to use."""
        gauges = {self.lab.pack.site: self.gauge()}
        return sweep(
            self.lab.model, self.lab.sae, self.edits, prompts, strengths, SamplingConfig(**sampling), n=n, gauges=gauges
        )

    def __enter__(self) -> Editing:
        """Installs the hooks; what it yields counts what they do (`.report()`)."""
        lab, saes = self.lab, {self.lab.sae.site: self.lab.sae}
        gauges = {lab.pack.site: self.gauge()}
        editing = Editing(lab.model, saes, [resolve(edit, saes, gauges) for edit in self.edits])
        stack = ExitStack()
        stack.enter_context(lab.model.hooks(editing.hooks(), must_fire=False))
        self._entered.append(stack)
        return editing

    def __exit__(self, *exc: Any) -> None:
        self._entered.pop().__exit__(*exc)

    def __repr__(self) -> str:
        return f"Steering({self.edits})"
