"""Score an SAE on text: each number with its interval over documents, beside those of its baselines."""

import math
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.errors import ConfigError, DictionaryError
from scope.evaluation.baselines import PCA, MeanAblation, Moments, RandomDictionary, ZeroAblation
from scope.evaluation.breakdown import SaeBreakdown, variants_of
from scope.evaluation.caveats import notes_of
from scope.evaluation.contexts import Text
from scope.evaluation.latent_statistics import geometry, shared
from scope.evaluation.metrics import OUTLIER_TIMES, kl, l0, loss_recovered, token_losses
from scope.evaluation.random_model import randomised
from scope.evaluation.result import EvaluateConfig, Evaluation
from scope.evaluation.tally import Resampled, Tally, by_unit
from scope.fit import check_fit
from scope.models.face import LanguageModel, Model
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.shapes import Mask, Tokens
from scope.versions import version_of

Apply = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    sae: SAE,
    tokens: Tokens,
    config: EvaluateConfig | None = None,
    on_progress: OnProgress | None = None,
    *,
    documents: Tensor | None = None,
    beside: Mapping[str, SAE] | None = None,
) -> Evaluation:
    """Score `sae` on contexts of tokens, each beginning with <bos>, padded with the pad id where short.

    Position 0 and special tokens are left out everywhere: neither reconstructed nor counted (`with_bos` and `with_special` are
    the scores with them). Losses are those of predictions made from counted positions. `documents` [batch pos] gives the
    document of each token, -1 for none: intervals are then over documents, else over contexts. `beside` are further SAEs of
    the same site, for example of another seed, each a column of its own.

    Raises:
        DictionaryError: a dictionary was made for another model or site.
        ConfigError: too few contexts, documents that do not go with the tokens, or an activation that is NaN or Inf.
    """
    config = config or EvaluateConfig()
    text = Text.draw(tokens, documents, config)
    return Run(model, sae, text, config, on_progress or (lambda done, total, numbers: None), dict(beside or {})).go()


class _Condition:
    """One replacement (the SAE or a baseline) and the sums of its scores."""

    def __init__(self, name: str, apply: Apply, centre: Tensor, n_units: int):
        self.name, self.apply = name, apply
        self.tally = Tally(centre, n_units, by_dimension=True)
        self.loss = torch.zeros(n_units, dtype=torch.float64)
        self.kl = torch.zeros(n_units, dtype=torch.float64)


def _with_l0(replace: Any) -> Apply:
    """A function x -> (x_hat, L0 of each token) for an SAE or the random dictionary."""

    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = replace.encode(x)
        return replace.decode(latents), l0(latents)

    return apply


class Run:
    """The passes over the text: moments first, then every condition spliced in, then the model of random weights."""

    def __init__(
        self,
        model: Model,
        sae: SAE,
        text: Text,
        config: EvaluateConfig,
        on_progress: OnProgress,
        beside: dict[str, SAE],
    ):
        self.model, self.sae, self.text, self.config = model, sae, text, config
        self.on_progress, self.beside = on_progress, beside
        self.site = check_fit(model, sae, reconstructs=True)
        for name, other in beside.items():
            if check_fit(model, other, reconstructs=True) != self.site:
                raise DictionaryError(f"{name} reads {other.site}; it cannot be scored beside an SAE of {self.site}.")
        self.stop = model.layers_for([self.site])
        self.said: list[str] = []
        part = 1.0 if self.stop is None or not hasattr(model, "blocks") else self.stop / len(model.blocks)
        arms = 1 + len(beside) + (4 if config.nulls else 0)
        spliced = 1 - part if self.site.endswith("hook_resid_post") else 1.0
        self.costs = {"first": part, "second": 1 + arms * spliced}  # of a context, in runs of the whole model
        if config.nulls and config.random_model:
            self.costs["random model"] = part
        self.done = 0.0

    def go(self) -> Evaluation:
        self._first_pass()
        self.arms = self._arms()
        for tokens, units in self._batches("second"):
            self._second_pass(tokens, units)
        self.resampled = Resampled(self.text.n_units, self.config.seed, self.config.resamples)
        arms = self._scores()
        if "random model" in self.costs:
            self._on_random_model(arms)
        return self._result(arms)

    def _batches(self, stage: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Contexts and their units; each batch is reported as progress once it is done."""
        for tokens, units in self.text.batches(self.config.batch_contexts):
            yield tokens.to(self.model.device), units.to(self.model.device)
            self._report(stage, len(tokens), len(self.text.tokens))

    def _report(self, stage: str, contexts: int, of: int) -> None:
        """Report progress in runs of the model, of which a context of each pass costs a known number."""
        self.done += contexts * self.costs[stage]
        total = math.ceil(of * sum(self.costs.values()))
        self.on_progress(min(total, round(self.done)), total, {})

    def _real(self, tokens: Tokens) -> Mask:
        text = tokens != self.model.cfg.pad
        text[:, 0] = True
        return text.flip(1).cumsum(1).flip(1) > 0  # padding is followed by no text; some models end documents with the same id

    def _record(self, tokens: Tokens, stop: int | None, model: Any = None) -> tuple[Tensor, Mask, Tensor | None]:
        """Activations [batch pos d_in], which of them count, and the logits if the model runs to its end (`stop` None)."""
        model = self.model if model is None else model
        kept: dict[str, Tensor] = {}
        real = self._real(tokens)
        with model.hooks([(self.site, lambda x, hook: kept.__setitem__("x", x.flatten(2).float()))]):
            logits = model(tokens, stop_at_layer=stop, attention_mask=real)
        mask = counted_tokens(tokens, self.model.special_ids, model.run.positions, real)
        if not torch.isfinite(kept["x"][mask].sum()):
            raise ConfigError(f"The model gives NaN or Inf at {self.site}. Load it in float32 or bfloat16.")
        return kept["x"], mask, logits if stop is None else None

    def _spliced(self, tokens: Tokens, x: Tensor, mask: Mask, x_hat: Tensor) -> Tensor:
        """Logits with x_hat in place of the counted activations. For the end of a block, only later blocks are run."""
        real, replaced = self._real(tokens), x.clone()
        replaced[mask] = x_hat
        block = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", self.site)
        if block:
            return self.model.logits_from(int(block[1]) + 1, replaced.to(self.model.dtype), tokens, real)
        with self.model.hooks([(self.site, lambda old, hook: replaced.to(old.dtype).view_as(old))]):
            return self.model(tokens, attention_mask=real)

    def _first_pass(self) -> None:
        """Gather what scoring needs: moments, the norm of an outlier, the means with <bos> and with special tokens."""
        self.moments = Moments(self.sae.d_in)
        norms, sums, self.n = [], {"with_bos": [], "with_special": []}, torch.zeros(self.text.n_units, dtype=torch.float64)
        for tokens, units in self._batches("first"):
            x, mask, _ = self._record(tokens, self.stop)
            self.moments.add(x[mask])
            self._first_batch(tokens, x, mask)
            norms.append(x[mask].norm(dim=1).cpu())
            of_rows = units[:, : x.shape[1]]
            self.n += by_unit(torch.ones_like(of_rows[mask]), of_rows[mask], self.text.n_units)
            for name, more in variants_of(self._real(tokens)[:, : x.shape[1]], mask).items():
                sums[name].append((x[more].double().sum(0).cpu(), int(more.sum())))
        if self.moments.n < 2:
            raise ConfigError("No token counts: all are at position 0 or are special tokens.")
        outlier_above = OUTLIER_TIMES * torch.cat(norms).median().item()
        centres = {name: sum(s for s, _ in found) / sum(n for _, n in found) for name, found in sums.items()}
        self.own = SaeBreakdown(self.sae, self.moments.mean, centres, outlier_above, self.text)

    def _first_batch(self, tokens: Any, x: Tensor, mask: Mask) -> None:
        """Gather more from a batch of the first pass; of text there is nothing more."""

    def _arms(self) -> list[_Condition]:
        m, n_units = self.moments, self.text.n_units
        arms: dict[str, Apply] = {"sae": _with_l0(self.sae)}
        arms |= {f"beside {name}": _with_l0(other) for name, other in self.beside.items()}
        if self.config.nulls:
            mean_l0 = self._mean_l0()
            mean, zero = MeanAblation(m), ZeroAblation()
            self.pca = PCA(m, round(mean_l0))
            random = RandomDictionary(m, self.sae.d_sae, mean_l0, self.config.seed)
            arms |= {
                "random": _with_l0(random),
                "pca": lambda x: (self.pca(x), None),
                "mean": lambda x: (mean(x), None),
                "zero": lambda x: (zero(x), None),
            }
        self.loss, self.predicted = torch.zeros(n_units, dtype=torch.float64), torch.zeros(n_units, dtype=torch.float64)
        return [_Condition(name, apply, m.mean, n_units) for name, apply in arms.items()]

    def _mean_l0(self) -> float:
        """The SAE's mean L0 on the sample that the baselines are fitted to."""
        sample = self.moments.sample.to(self.model.device)
        return sum(int((self.sae.encode(part) > 0).sum()) for part in sample.split(1024)) / len(sample)

    def _second_pass(self, tokens: Tokens, units: Tensor) -> None:
        x, mask, logits = self._record(tokens, None)
        assert logits is not None
        flat, of = x[mask], units[mask]
        target = mask[:, :-1] & self._real(tokens)[:, 1:]
        at, n_units = units[:, :-1][target], self.text.n_units
        clean = self._losses(logits, tokens)[target].double()
        self.loss += by_unit(clean, at, n_units)
        self.predicted += by_unit(torch.ones_like(clean), at, n_units)
        own = self.own.add(x, self._real(tokens), mask, units)
        for arm in self.arms:
            x_hat, firing = own if arm.name == "sae" else arm.apply(flat)
            arm.tally.add(flat, x_hat, of, firing)
            spliced = self._spliced(tokens, x, mask, x_hat)
            loss = self._losses(spliced, tokens)[target].double()
            arm.loss += by_unit(loss, at, n_units)
            arm.kl += by_unit(kl(logits, spliced)[:, :-1][target], at, n_units)
            if arm.name == "sae":
                self.own.add_losses(target, units, loss - clean)

    @staticmethod
    def _losses(logits: Tensor, tokens: Tokens) -> Tensor:
        return token_losses(logits[:, :-1], tokens[:, 1:])

    def _scores(self) -> dict[str, dict[str, Any]]:
        r, predicted = self.resampled, self.predicted
        made = {arm.name: arm for arm in self.arms}
        clean = (self.loss.sum() / predicted.sum()).item()
        arms: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            scores: dict[str, Any] = arm.tally.result()
            interval: dict[str, Any] = arm.tally.intervals(r)
            scores["loss"] = (arm.loss.sum() / predicted.sum()).item()
            scores["delta_loss"] = scores["loss"] - clean
            scores["kl"] = (arm.kl.sum() / predicted.sum()).item()
            interval |= {
                "loss": r.ratio(arm.loss, predicted),
                "delta_loss": r.ratio(arm.loss - self.loss, predicted),
                "kl": r.ratio(arm.kl, predicted),
            }
            for name in ("zero", "mean") if self.config.nulls else ():
                ablated = made[name].loss
                scores[f"recovered_vs_{name}"] = loss_recovered(clean, scores["loss"], (ablated.sum() / predicted.sum()).item())
                harm = r.sums(ablated - self.loss)
                kept = torch.where(harm > 0, r.sums(ablated - arm.loss) / harm, torch.nan)
                told = scores[f"recovered_vs_{name}"] is not None
                interval[f"recovered_vs_{name}"] = r.interval(kept) if told else None
            arms[arm.name] = scores | {"interval": interval}
        arms["sae"]["interval"] |= self.own.intervals(r)
        arms["sae"] |= self.own.scores(r)
        if self.config.nulls:
            arms["pca"]["l0"] = float(self.pca.k)
        return arms

    def _on_random_model(self, arms: dict[str, dict[str, Any]]) -> None:
        """Score the SAE on the same text through a model of random weights, scaled to the norm it was trained on."""
        try:
            model = randomised(self.model, self.stop if hasattr(self.model, "blocks") else None, self.config.seed)
        except ConfigError as error:
            self.said.append(f"The random-model baseline was not scored: {error}.")
            return
        moments, found = Moments(self.sae.d_in, most=0), []
        for tokens, units in self._batches("random model"):
            x, mask, _ = self._record(tokens, self.stop, model)
            moments.add(x[mask])
            found.append((x[mask].cpu(), units[:, : x.shape[1]][mask]))
        scale = (self._mean_square(self.moments) / self._mean_square(moments)) ** 0.5
        tally = Tally(moments.mean * scale, self.text.n_units)
        apply = _with_l0(self.sae)
        for x, units in found:
            x = x.to(self.model.device) * scale
            x_hat, firing = apply(x)
            tally.add(x, x_hat, units, firing)
        arms["random_model"] = tally.result() | {"scale": scale, "interval": tally.intervals(self.resampled)}

    @staticmethod
    def _mean_square(m: Moments) -> float:
        return (m.products.diagonal().sum() / m.n).item()

    def _positions(self) -> list[dict[str, Any]]:
        """Scores by position in the context."""
        return self.own.curve.result(self.resampled)

    def _result(self, arms: dict[str, dict[str, Any]]) -> Evaluation:
        c, text = self.config, self.text
        counted = {
            "contexts": len(text.tokens),
            text.said["units"]: int((self.n > 0).sum()),
            "units": text.said["units"],
            "one_document": text.said.get("one_document", False),
            "tokens": int(self.n.sum()),
            "predictions": int(self.predicted.sum()),
            "loss": (self.loss.sum() / self.predicted.sum()).item(),
        }
        latents = self.own.firing.result(self.n, c.dense_above, self.resampled) | geometry(self.sae)
        if self.beside:
            latents["shared"] = {name: shared(self.sae, other) for name, other in self.beside.items()}
        positions = self._positions()
        provenance = {
            "model": dict(self.model.provenance),
            "site": self.site,
            "dictionary": self.sae.provenance.get("weights_sha256"),
            "dictionary_source": self.sae.provenance.get("source"),
            "parameters_sha256": parameters_sha256(self.sae),
            "beside": {name: parameters_sha256(other) for name, other in self.beside.items()},
            "config": asdict(c),
            "drawn": text.said,
            "rule": "position 0 and special tokens are neither replaced nor counted",
            "versions": {"scope": version_of(), "torch": torch.__version__, "python": platform.python_version()},
            "device": str(self.model.device),
        }
        notes = notes_of(arms, counted, latents, positions, self.sae) + self.said
        return Evaluation(arms, counted, latents, notes, provenance, positions)
