"""`evaluate`: what a dictionary keeps of its model's activations, each number with its interval and beside its nulls."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scope.errors import ConfigError
from scope.evaluation.metrics import Sums, bootstrap, kl, l0, loss_recovered
from scope.evaluation.nulls import PCA, MeanAblation, Moments, RandomDictionary, ZeroAblation
from scope.evaluation.splice import Replace, check_fits, kept_mask, specials
from scope.sae.base import SAE
from scope.shapes import Mask, Tokens

OnProgress = Callable[[int, int, dict], None]

OUTLIER_TIMES = 10.0
"""A counted token whose norm is above so many medians is an outlier: counted, and FVU is given without it too."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much text a dictionary is scored on."""

    contexts: int = 64
    """Contexts, drawn at random from those given."""

    batch_contexts: int = 8
    """Contexts that run through the model together."""

    dense_above: float = 0.1
    """Share of tokens above which a latent counts as dense."""

    nulls: bool = True
    """Score the random dictionary, PCA and the ablations beside it; without them the numbers have nothing to be read
    against."""

    resamples: int = 1000
    """Bootstrap draws of contexts for the 95 % intervals."""

    seed: int = 0
    """Of the contexts drawn, the random dictionary, and the bootstrap."""

    def __post_init__(self):
        if self.contexts < 2 or self.batch_contexts < 1 or self.resamples < 1:
            raise ConfigError("contexts must be at least 2, since an interval needs several; the others at least 1.")
        if not 0 < self.dense_above <= 1:
            raise ConfigError(f"dense_above is {self.dense_above:g}; it is a share of the tokens, above 0 and at most 1.")


@dataclass(frozen=True)
class Evaluation:
    """Scores by arm ("sae" and its nulls), what was counted, and what a reader must be told. `to_json` keeps all of it."""

    arms: dict[str, dict[str, Any]]
    counted: dict[str, Any]
    latents: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """A score of the dictionary itself: evaluation["fvu"]."""
        return self.arms["sae"][name]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Evaluation":
        return cls(**content)

    def save(self, file: Path | str) -> Path:
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(file.name + ".tmp")
        aside.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        aside.replace(file)
        return file


@torch.no_grad()
def evaluate(
    model, sae: SAE, tokens: Tokens, config: EvaluateConfig | None = None, on_progress: OnProgress | None = None
) -> Evaluation:
    """Score `sae` on contexts of tokens, each beginning with <bos>, padded with the pad id where short.

    Position 0 and special tokens are left out everywhere: not reconstructed, not counted (`with_bos` says what they
    would change). Losses are those of predictions made from counted positions.

    Raises:
        DictionaryError: the dictionary was made for another model or site.
        ConfigError: too few contexts, or an activation that is NaN or Inf.
    """
    config = config or EvaluateConfig()
    run = _Run(model, sae, _draw(tokens, config), config, on_progress or (lambda done, total, numbers: None))
    return run.go()


def _draw(tokens: Tokens, config: EvaluateConfig) -> Tensor:
    if len(tokens) < 2:
        raise ConfigError(f"There are {len(tokens)} contexts; give at least two, or no interval can be told.")
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(config.seed))
    return tokens[order[: config.contexts].sort().values]


@dataclass
class _Arm:
    """One replacement and the sums it has gathered, by context."""

    name: str
    replace: Replace
    sums: Sums
    error: list[Tensor] = field(default_factory=list)
    loss: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)


class _Run:
    def __init__(self, model, sae: SAE, tokens: Tokens, config: EvaluateConfig, on_progress: OnProgress):
        self.model, self.sae, self.config, self.on_progress = model, sae, config, on_progress
        self.site = check_fits(model, sae)
        self.excluded = specials(model)
        self.batches = tokens.to(model.device).long().split(config.batch_contexts)
        self.total, self.done = 2 * len(tokens), 0

    def go(self) -> Evaluation:
        self._first_pass()
        self.arms = self._arms()
        self.loss, self.n, self.predicted = [], [], []
        self.spread, self.l0s = [], []
        for batch in self.batches:
            self._second_pass(batch)
            self._tick(len(batch))
        return self._result()

    def _tick(self, contexts: int) -> None:
        self.done += contexts
        self.on_progress(self.done, self.total, {})

    def _real(self, tokens: Tokens) -> Mask:
        text = tokens != self.model.cfg.pad
        text[:, 0] = True
        return text.flip(1).cumsum(1).flip(1) > 0  # padding is what no text follows: some models end documents with its id

    def _record(self, tokens: Tokens, stop: int | None) -> tuple[Tensor, Mask, Tensor | None]:
        """Activations [batch pos d_in], which of them count, and the logits if the model runs to its end (`stop` None)."""
        kept: dict[str, Tensor] = {}
        real = self._real(tokens)
        with self.model.hooks([(self.site, lambda x, hook: kept.__setitem__("x", x.flatten(2).float()))]):
            logits = self.model(tokens, stop_at_layer=stop, attention_mask=real)
        mask = kept_mask(tokens, self.model.run.positions, self.excluded) & real
        if not torch.isfinite(kept["x"][mask].sum()):
            raise ConfigError(f"The model makes NaN or Inf at {self.site}. Load it in float32 or bfloat16.")
        return kept["x"], mask, logits if stop is None else None

    def _spliced(self, tokens: Tokens, x: Tensor, mask: Mask, x_hat: Tensor) -> Tensor:
        """Logits with x_hat in place of the counted activations. From the end of a block, only the later ones are run."""
        real, replaced = self._real(tokens), x.clone()
        replaced[mask] = x_hat
        block = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", self.site)
        if block and hasattr(self.model, "run_blocks"):
            resid = replaced.to(self.model.dtype)
            after = self.model.run_blocks(resid, self.model.run.positions, real, start_at_layer=int(block[1]) + 1)
            return self.model.logits_of(after)
        with self.model.hooks([(self.site, lambda old, hook: replaced.to(old.dtype).view_as(old))]):
            return self.model(tokens, attention_mask=real)

    def _first_pass(self) -> None:
        """Everything that needs no second half of the model: moments, firing, and what <bos> would change."""
        self.moments = Moments(self.sae.d_in)
        self.counts = torch.zeros(self.sae.d_sae, dtype=torch.long)
        self.all_x: Sums | None = None
        self.all_l0 = 0
        norms = []
        for tokens in self.batches:
            x, mask, _ = self._record(tokens, self.model.layers_for([self.site]))
            self.moments.add(x[mask])
            norms.append(x[mask].norm(dim=1).cpu())
            latents = self.sae.encode(x[mask])
            self.counts += (latents > 0).sum(0).cpu()
            everything = x[self._real(tokens)]
            if self.all_x is None:
                self.all_x = Sums(self.moments.mean.to(x.device))
            encoded = self.sae.encode(everything)
            self.all_x.add(everything, self.sae.decode(encoded))
            self.all_l0 += int((encoded > 0).sum())
            self._tick(len(tokens))
        if self.moments.n < 2:
            raise ConfigError("No token counts: all are at position 0 or special.")
        self.outlier_above = OUTLIER_TIMES * torch.cat(norms).median().item()
        self.ordinary = Sums(self.moments.mean.to(self.model.device))

    def _arms(self) -> list[_Arm]:
        m, mean = self.moments, self.moments.mean.to(self.model.device)
        self.mean_l0 = self.counts.sum().item() / m.n
        replacements: dict[str, Replace] = {"sae": self.sae}
        if self.config.nulls:
            replacements |= {
                "pca": PCA(m, round(self.mean_l0)),
                "random": RandomDictionary(m, self.sae.d_sae, self.mean_l0, self.config.seed),
                "mean": MeanAblation(m),
                "zero": ZeroAblation(),
            }
        return [_Arm(name, replace, Sums(mean)) for name, replace in replacements.items()]

    def _second_pass(self, tokens: Tokens) -> None:
        x, mask, logits = self._record(tokens, None)
        assert logits is not None
        target = mask[:, :-1] & self._real(tokens)[:, 1:]
        self.loss += list(_per_context(self._losses(logits, tokens), target))
        self.predicted += list(target.sum(1).cpu())
        self.n += list(mask.sum(1).cpu())
        flat = x[mask]
        self.spread += list(_per_context((x.double() - self.arms[0].sums.mean).square().sum(-1), mask))
        for arm in self.arms:
            x_hat = arm.replace(flat)
            arm.sums.add(flat, x_hat)
            errors = torch.zeros_like(mask, dtype=torch.float64)
            errors[mask] = (flat - x_hat).double().square().sum(1)
            arm.error += list(errors.sum(1).cpu())
            if arm.name == "sae":
                usual = flat.norm(dim=1) <= self.outlier_above
                if usual.any():
                    self.ordinary.add(flat[usual], x_hat[usual])
                firing = torch.zeros_like(mask, dtype=torch.long)
                firing[mask] = l0(self.sae.encode(flat))
                self.l0s += [row[kept].cpu() for row, kept in zip(firing, mask, strict=True)]
            spliced = self._spliced(tokens, x, mask, x_hat)
            arm.loss += list(_per_context(self._losses(spliced, tokens), target))
            arm.kl += list(_per_context(kl(logits, spliced)[:, :-1], target))

    @staticmethod
    def _losses(logits: Tensor, tokens: Tokens) -> Tensor:
        return cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")

    def _result(self) -> Evaluation:
        c = self.config
        predicted, n = torch.stack(self.predicted), torch.stack(self.n)
        loss = torch.stack(self.loss)
        clean = (loss.sum() / predicted.sum()).item()
        spliced = {arm.name: (torch.stack(arm.loss).sum() / predicted.sum()).item() for arm in self.arms}
        spread = torch.stack(self.spread)
        arms: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            scores: dict[str, Any] = arm.sums.result()
            scores["loss"] = spliced[arm.name]
            scores["delta_loss"] = spliced[arm.name] - clean
            scores["kl"] = (torch.stack(arm.kl).sum() / predicted.sum()).item()
            if c.nulls:
                scores["recovered_vs_zero"] = loss_recovered(clean, spliced[arm.name], spliced["zero"])
                scores["recovered_vs_mean"] = loss_recovered(clean, spliced[arm.name], spliced["mean"])
            pairs = {
                "fvu": (torch.stack(arm.error), spread),
                "delta_loss": (torch.stack(arm.loss) - loss, predicted),
                "kl": (torch.stack(arm.kl), predicted),
            }
            scores["interval"] = {name: bootstrap(a, b, c.seed, c.resamples) for name, (a, b) in pairs.items()}
            arms[arm.name] = scores
        per_token = torch.cat(self.l0s).double()
        by_context = torch.stack([row.sum() for row in self.l0s])
        arms["sae"] |= {
            "l0": per_token.mean().item(),
            "l0_median": per_token.median().item(),
            "l0_p95": per_token.quantile(0.95).item(),
        }
        arms["sae"]["interval"]["l0"] = bootstrap(by_context, n, c.seed, c.resamples)
        assert self.all_x is not None
        arms["sae"]["with_bos"] = {"fvu": self.all_x.result()["fvu"], "l0": self.all_l0 / self.all_x.n}
        arms["sae"]["without_outliers"] = {
            "fvu": self.ordinary.result()["fvu"],
            "left_out": int(n.sum()) - self.ordinary.n,
            "rule": f"norm > {OUTLIER_TIMES:g} x the median of the counted tokens",
            "above": self.outlier_above,
        }
        if c.nulls:
            arms["pca"]["l0"] = float(next(a.replace.k for a in self.arms if a.name == "pca"))
            arms["random"]["l0"] = self._random_l0()
        counted = {"contexts": len(n), "tokens": int(n.sum()), "predictions": int(predicted.sum()), "loss": clean}
        latents = self._latents(int(n.sum()))
        provenance = {
            "model": dict(getattr(self.model, "provenance", {}) or {}),
            "site": self.site,
            "dictionary": self.sae.provenance.get("weights_sha256"),
            "config": asdict(c),
            "rule": "position 0 and special tokens are neither replaced nor counted",
        }
        return Evaluation(arms, counted, latents, _notes(arms, latents, self.sae), provenance)

    def _random_l0(self) -> float:
        null = next(a.replace for a in self.arms if a.name == "random")
        sample = self.moments.sample[:4096]
        return (null.encode(sample) > 0).sum().item() / len(sample)

    def _latents(self, tokens: int) -> dict[str, Any]:
        """Firing of the latents, and how their directions lie."""
        density = self.counts.double() / tokens
        fired = density[density > 0].log10()
        edges = torch.arange(-6, 0.51, 0.5, dtype=torch.float64)
        histogram = torch.histogram(fired.clamp(-6, 0), edges).hist.long().tolist() if len(fired) else []
        rows = self.sae.W_dec.detach().float().cpu()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        nearest = torch.cat([_nearest(part, rows, i * 1024) for i, part in enumerate(rows.split(1024))])
        encoder = self.sae.W_enc.detach().float().cpu()
        return {
            "d_sae": self.sae.d_sae,
            "never_fired": (self.counts == 0).double().mean().item(),
            "dense": (density > self.config.dense_above).double().mean().item(),
            "dense_above": self.config.dense_above,
            "density_log10_edges": edges.tolist(),
            "density_log10_counts": histogram,
            "nearest_cosine_median": nearest.median().item(),
            "nearest_cosine_above_0.9": (nearest > 0.9).double().mean().item(),
            "encoder_decoder_cosine_median": torch.cosine_similarity(encoder.T, rows, dim=1).median().item(),
        }


def _nearest(part: Tensor, rows: Tensor, start: int) -> Tensor:
    """Greatest cosine of each row of `part` with another row."""
    if len(rows) < 2:
        return torch.zeros(len(part))
    cosines = part @ rows.T
    cosines[torch.arange(len(part)), torch.arange(start, start + len(part))] = -1.0
    return cosines.amax(1)


def _per_context(values: Tensor, mask: Mask) -> Tensor:
    return torch.where(mask, values.double(), 0.0).sum(1).cpu()


def _notes(arms: dict[str, dict[str, Any]], latents: dict[str, Any], sae: SAE) -> list[str]:
    """What the table alone would let a reader overlook."""
    own, notes = arms["sae"], []
    for null, name in (("pca", "PCA with as many components"), ("random", "a random dictionary"), ("mean", "mean-ablation")):
        if null in arms and own["fvu"] >= arms[null]["fvu"]:
            notes.append(f"FVU is no better than that of {name}: {own['fvu']:.3f} beside {arms[null]['fvu']:.3f}.")
        if null in arms and own["delta_loss"] >= arms[null]["delta_loss"]:
            notes.append(f"Delta loss is no better with it than with {name} ({arms[null]['delta_loss']:.3f}).")
    if latents["never_fired"] > 0.2:
        notes.append(f"{latents['never_fired']:.0%} of the latents never fired on this text.")
    bias = own["length_bias"]
    if bias is None or abs(bias - 1) > 0.1:
        notes.append(f"Reconstructions are {bias or 0:.2f} times as long as they should be: is a scale missing?")
    if own["with_bos"]["fvu"] > 2 * own["fvu"] + 0.05:
        notes.append(f"With position 0 counted, FVU would be {own['with_bos']['fvu']:.2f}: it was not made for <bos>.")
    usual = own["without_outliers"]
    if usual["left_out"] and not 0.9 < usual["fvu"] / max(own["fvu"], 1e-12) < 1.1:
        notes.append(
            f"{usual['left_out']} counted tokens have a {usual['rule']}: FVU is {own['fvu']:.3f} with them and "
            f"{usual['fvu']:.3f} without."
        )
    said = sae.provenance.get("training") or {}
    for name, now in (("l0", own["l0"]), ("fvu", own["fvu"])):
        then = said.get(name)
        if then and abs(math.log(max(now, 1e-9) / then)) > math.log(1.3):
            notes.append(f"{name} is {now:.3g} here; at the end of its training it was {then:.3g}.")
    return notes
