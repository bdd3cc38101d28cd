"""Directions that are not latents: a difference of means, a probe, a vector from a file."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.null_seeds import generator
from scope.sae.base import SAE
from scope.steering.edits.encoders import LatentEncoder
from scope.texts import list_of_texts
from scope.typed_json import parse_json, read_bytes, typed
from scope.whole_files import write_whole

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_rec_out")


@dataclass(frozen=True)
class Direction:
    """A direction at a site. Only where it points counts: edits along it are in units of the residual norm.

    Held as plain floats, so that it prints, compares and is saved with the texts it steered.
    """

    vector: tuple[float, ...]
    site: str
    name: str = "direction"
    accuracy: float | None = None
    """Share of the prompts it was made from that are told apart when each is left out in turn; None where it was not made from
    two lists, or a side has a single prompt."""
    chance: float | None = None
    """The accuracy that 95 % of directions made from the same prompts with their sides exchanged at random stay below."""
    encoder: LatentEncoder | None = None
    """Reads the latent, where the direction is that of a latent which was handed over without its SAE: then the vector is its
    decoder row, whose length counts too, and strengths and readings are in its own units."""

    def __post_init__(self):
        values = self.vector.tolist() if isinstance(self.vector, Tensor | np.ndarray) else list(self.vector)
        if not all(isinstance(v, int | float) for v in values):
            raise EditError(f"{self.name} is no vector: give one number for each of the site's features.")
        try:
            object.__setattr__(self, "vector", tuple(float(v) for v in values))
        except OverflowError:
            raise EditError(f"{self.name} holds a number that no float can hold.") from None
        norm = float(np.linalg.norm(self.vector))
        if not 0 < norm < float("inf"):
            raise EditError(f"{self.name} has norm {norm:g}, so it points nowhere.")

    def of(self, model: LanguageModel | None = None, sae: SAE | None = None) -> "Direction":
        """The same direction, which knows the model and the SAE that `top_tokens` and `nearest_latents` read."""
        for name, value in (("_model", model), ("_sae", sae)):
            if value is not None:
                object.__setattr__(self, name, value)
        return self

    def unit(self) -> Tensor:
        vector = torch.tensor(self.vector, dtype=torch.float64)
        return (vector / vector.norm()).float()

    def row(self) -> Tensor:
        """What an edit of amount 1 adds: the unit vector, or the decoder row of a latent."""
        return self.unit() if self.encoder is None else torch.tensor(self.vector)

    @classmethod
    def between(
        cls, model: LanguageModel, site: str, toward: Sequence[str], away: Sequence[str], name: str = ""
    ) -> "Direction":
        """Mean activation over the prompts of `toward` minus that over `away`: the mean of each prompt's mean."""
        sides = [_means(model, site, prompts) for prompts in (toward, away)]
        difference = sides[0].mean(0) - sides[1].mean(0)
        accuracy, chance = held_out(sides, _means_apart)
        return cls(tuple(difference.tolist()), site, name or f"{toward[0]!r} minus {away[0]!r}", accuracy, chance).of(model)

    @classmethod
    def probe(
        cls, model: LanguageModel, site: str, toward: Sequence[str], away: Sequence[str], ridge: float = 1.0, name: str = ""
    ) -> "Direction":
        """A linear probe that separates the prompts of `toward` from those of `away`: ridge regression on each prompt's mean.

        Unlike a difference of means it gives little weight to features in which prompts of one side differ anyway. Its
        leave-one-out accuracy stands in the name, beside the share of the larger side, which is what guessing reaches.
        `ridge` is in units of the mean squared length of the centred means.
        """
        sides = [_means(model, site, prompts) for prompts in (toward, away)]
        x, y = torch.cat(sides).double(), torch.cat([torch.ones(len(sides[0])), -torch.ones(len(sides[1]))]).double()
        x = x - x.mean(0)
        gram = x @ x.T
        scale = gram.diagonal().mean()
        if not scale > 0:
            raise EditError("All prompts of the probe are alike at this site, so no probe separates them.")
        inverse = torch.linalg.inv(gram + scale * (1 + ridge * torch.eye(len(x), dtype=torch.float64)))
        guess = max(len(side) for side in sides) / len(y)

        def left_out(signs: Tensor, gram: Tensor) -> Tensor:
            return signs - signs @ inverse / inverse.diagonal()  # what the fit without prompt i says of prompt i

        right, chance = held_out(sides, left_out)
        accuracy = f"leave-one-out accuracy {right:.2f}, guessing {guess:.2f}"
        name = f"{name or f'probe for {toward[0]!r}'} ({accuracy})"
        return cls(tuple((y @ inverse @ x).tolist()), site, name, right, chance).of(model)

    @classmethod
    def of_latent(cls, sae: SAE, latent: int) -> "Direction":
        """A latent's decoder row, to be edited as a direction: `Scale` of it rescales the whole component along the row."""
        if not 0 <= latent < sae.d_sae:
            raise EditError(f"There is no latent {latent}: this dictionary's run from 0 to {sae.d_sae - 1}.")
        return cls(tuple(sae.W_dec[latent].detach().float().tolist()), sae.site, f"row of latent {latent}").of(sae=sae)

    @classmethod
    def from_file(cls, file: str | Path, site: str, key: str | None = None) -> "Direction":
        """From a .npy or .json file with one vector, or from an .npz or .safetensors file; `key` says which of several.

        Raises:
            EditError: no vector, several without `key`, or a pickle, which is never opened: it may run code.
        """
        file = Path(file)
        if file.suffix in _PICKLES:
            raise EditError(
                f"{file} is a pickle, which can run code when it is opened, so it is not. Save the vector anew:\n"
                "  safetensors.torch.save_file({'direction': vector}, 'direction.safetensors')"
            )
        arrays = _arrays(file)
        if key is None and len(arrays) == 1:
            key = next(iter(arrays))
        if key not in arrays:
            which = "say which with key=" if key is None else f"none is {key!r}"
            raise EditError(f"{file} holds {', '.join(sorted(map(repr, arrays))) or 'nothing'}; {which}.")
        values = arrays[key]
        if values.ndim != 1:
            raise EditError(f"{file} holds an array of shape {values.shape}; a direction has one dimension.")
        return cls(tuple(values.tolist()), site, f"{file.stem}: {key}" if len(arrays) > 1 else file.stem)

    def top_tokens(self, k: int = 10, model: LanguageModel | None = None):
        """The k tokens whose logits it raises most by the weights alone, per unit of length, as a pandas table; with a negative
        k those that it lowers most. The model is by default the one it was made with.

        Raises:
            EditError: no model is known, or the site is no part of the residual stream.
        """
        import pandas as pd

        model = model or getattr(self, "_model", None)
        if model is None:
            raise EditError("Which model's tokens? Give it: direction.top_tokens(model=lab.model)")
        if len(self.vector) != model.cfg.d_model or not self.site.endswith(_STREAM):
            raise EditError(f"{self.site} is no part of the residual stream: a direction there has no logits by the weights.")
        logits = model.direct_logits(self.unit()[None].to(model.W_U.device))[0]
        values, ids = logits.topk(min(abs(k), len(logits)), largest=k > 0)
        return pd.DataFrame({"token": model.words.pieces(ids.tolist()), "logit": values.tolist()})

    def nearest_latents(self, k: int = 10, sae: SAE | None = None):
        """The k latents whose decoder rows have the largest cosine with it, either way, as a pandas table. `by_chance` is the
        largest that 95 % of random directions reach among all latents. The SAE is by default the one it was made beside.

        Raises:
            EditError: no SAE is known, or it writes to another site.
        """
        import pandas as pd

        sae = sae or getattr(self, "_sae", None)
        if sae is None:
            raise EditError("Which SAE's latents? Give it: direction.nearest_latents(sae=lab.sae)")
        if self.site not in sae.writes or len(self.vector) != sae.W_dec.shape[1]:
            raise EditError(f"{self.name} is a direction at {self.site}; this SAE writes to {', '.join(sae.writes)}.")
        rows = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
        random = torch.randn(20, rows.shape[1], generator=generator("random directions beside latents")).to(rows)
        by_chance = (rows @ torch.nn.functional.normalize(random, dim=1).T).abs().amax(0).quantile(0.95)
        cosines = rows @ self.unit().to(rows)
        ids = cosines.abs().topk(min(k, len(cosines))).indices
        return pd.DataFrame({"latent": ids.tolist(), "cosine": cosines[ids].tolist(), "by_chance": float(by_chance)})

    def save(self, file: str | Path) -> Path:
        """Write it as .safetensors with its site, name and accuracy; `load` and `scope steer --direction` read it.

        Raises:
            EditError: a file of another kind.
        """
        from safetensors.torch import save

        file = Path(file)
        if file.suffix != ".safetensors":
            raise EditError(f"A direction is saved as .safetensors, with its site; {file.name} is another kind of file.")
        about = {"site": self.site, "name": self.name, "accuracy": self.accuracy, "chance": self.chance}
        file.parent.mkdir(parents=True, exist_ok=True)
        vector = torch.tensor(self.vector, dtype=torch.float64)
        write_whole(file, save({"direction": vector}, {"direction": json.dumps(about)}))
        return file

    @classmethod
    def load(cls, file: str | Path, site: str | None = None) -> "Direction":
        """Read what `save` wrote. Other files of a vector hold no site: name it.

        Raises:
            EditError: see `from_file`; or the site is not known.
        """
        about = _about(Path(file))
        if about is None and site is None:
            raise EditError(f"{file} does not say which site it is of. Name it: Direction.load(file, site=lab.sae.site)")
        direction = cls.from_file(file, site or about.site)
        return direction if about is None else replace(direction, name=about.name, accuracy=about.accuracy, chance=about.chance)

    def __repr__(self) -> str:
        digest = hashlib.sha256(np.asarray(self.vector).tobytes()).hexdigest()[:8]
        says = ""
        if self.accuracy is not None:
            says = f", held-out accuracy {self.accuracy:.2f} (95 % of exchanged sides: {self.chance:.2f})"
        return f"Direction({self.name!r}, {len(self.vector)} wide at {self.site}, {digest}{says})"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _About:
    """What a saved direction says beside its vector."""

    site: str
    name: str
    accuracy: float | None = None
    chance: float | None = None


def _about(file: Path) -> _About | None:
    """What a .safetensors file that `Direction.save` wrote says beside the vector; None in other files."""
    if file.suffix != ".safetensors":
        return None
    data = read_bytes(file, EditError, "Give a file that Direction.save wrote.", LARGEST)
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], file, EditError)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("direction"), str):
        return None
    return typed(parse_json(metadata["direction"], file, EditError), _About, file, EditError)


Scorer = Callable[[Tensor, Tensor], Tensor]
"""From signs [draw prompt] of the sides (+1, -1) and the Gram matrix of the prompts' means to what the direction that is made
without a prompt says of it, [draw prompt]: above 0 for the first side."""


def held_out(sides: Sequence[Tensor], score: Scorer, draws: int = 200) -> tuple[float | None, float | None]:
    """(leave-one-out accuracy, the 95th percentile of the same with the sides exchanged at random); None where a side has a
    single prompt, which nothing stands for when it is left out."""
    if min(map(len, sides)) < 2:
        return None, None
    x = torch.cat(list(sides)).double()
    y = torch.cat([torch.ones(len(sides[0])), -torch.ones(len(sides[1]))]).double()
    draw = generator("sides of prompts exchanged")
    signs = torch.stack([y, *(y[torch.randperm(len(y), generator=draw)] for _ in range(draws))])
    x = x - x.mean(0)
    right = ((score(signs, x @ x.T) > 0) == (signs > 0)).double().mean(1)
    return float(right[0]), float(right[1:].quantile(0.95))


def _means_apart(signs: Tensor, gram: Tensor) -> Tensor:
    """Which of the two sides' means, made without a prompt, that prompt lies nearer to: the difference of squared distances."""
    distances, own = [], gram.diagonal()
    for side in (signs > 0, signs < 0):
        side = side.double()
        sums, square, n = side @ gram, ((side @ gram) * side).sum(1, keepdim=True), side.sum(1, keepdim=True)
        n = n - side
        sums, square = sums - side * own, square - side * (2 * sums - own)
        distances.append(square / n**2 - 2 * sums / n)
    return distances[1] - distances[0]


LARGEST = 64 * 2**20
"""Bytes that a file of vectors may hold, and that its arrays may take: a vector is as wide as a model."""


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Every array of a file by name; a file that holds one vector has the name "".

    Raises:
        EditError: it is none of these files, is damaged, or is too large.
    """
    data = read_bytes(file, EditError, "Give a vector as .npy, .npz, .json or .safetensors.", LARGEST)
    if file.suffix == ".json":
        return {"": np.asarray(typed(parse_json(data, file, EditError), list[float], file, EditError), dtype=np.float64)}
    try:
        return {name: _numbers(array) for name, array in _stored(data, file.suffix).items()}
    except Exception as error:  # numpy, zipfile and safetensors have an exception of their own for every kind of damage
        why = "it holds Python objects, or is damaged" if "pickle" in str(error) else str(error) or type(error).__name__
        raise EditError(f"{file} cannot be read as a vector (.npy, .npz, .json, .safetensors): {why}") from None


def _stored(data: bytes, suffix: str) -> dict[str, np.ndarray]:
    if suffix == ".safetensors":
        from safetensors.torch import load

        return {name: tensor.double().numpy() for name, tensor in load(data).items()}
    if suffix == ".npy":
        return {"": np.load(io.BytesIO(data), allow_pickle=False)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"its arrays take {size:,} bytes; at most {LARGEST:,} are read")
    with np.load(io.BytesIO(data), allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds values of type {array.dtype}, and a vector holds real numbers")
    return array.astype(np.float64)


def _means(model: LanguageModel, site: str, prompts: Sequence[str]) -> Tensor:
    """Each prompt's mean activation [prompt width], special tokens left out."""
    if isinstance(prompts, str) or not prompts:
        raise EditError("A direction between prompts needs a list of prompts on both sides.")
    means = []
    for prompt in list_of_texts(prompts, EditError):
        tokens = model.to_tokens(prompt)
        counted = counted_tokens(tokens, model.special_ids)
        if not counted.any():
            raise EditError("A prompt of a direction between prompts is empty, or holds special tokens only.")
        means.append(model.record(tokens, [site])[site][counted].float().mean(0))
    return torch.stack(means).cpu()
