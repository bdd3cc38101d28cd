"""Score an SAE of a model that reads pictures: as on text, with what replaces the loss where the model has none.

A PaliGemma has the loss of its answers. A SigLIP and a ColPali have none: there, `output_change` is 1 - the cosine of what the
model gives (a vector for a picture or a text, one for each position of a page) with the splice and without.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from scope.activations.corpus.inputs import Inputs, counted
from scope.activations.corpus.roles import RULES, Role, left_out_by
from scope.errors import ConfigError
from scope.evaluation.contexts import Text
from scope.evaluation.evaluate import Run
from scope.evaluation.metrics import OUTLIER_TIMES, kl, token_losses
from scope.evaluation.result import EvaluateConfig, Evaluation
from scope.evaluation.tally import Tally, by_unit
from scope.models.face import VisionModel
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.shapes import Mask

CHANGE = "1 - cosine of what the model gives with the reconstruction spliced in and without, mean over pictures or positions"
REGISTERS = f"rows of a norm above {OUTLIER_TIMES:g} x the median of the rows of their kind"


@torch.no_grad()
def evaluate_pictures(
    model: VisionModel,
    sae: SAE,
    inputs: Inputs,
    config: EvaluateConfig | None = None,
    on_progress: OnProgress | None = None,
    *,
    beside: Mapping[str, SAE] | None = None,
) -> Evaluation:
    """Score `sae` on contexts whose rows have roles, as `model.inputs_for` makes them; of a PaliGemma they hold the answers
    whose loss is taken, at a site of its tower too.

    Rows count as in a recording; those of the kind alone (image, text) that the SAE was trained on, if it was on one. Scores
    are also given for each kind, with the high-norm patches that vision transformers use as registers counted and left out.

    Raises:
        DictionaryError: a dictionary was made for another model or site.
        ConfigError: too few contexts, none with an answer, or an activation that is NaN or Inf.
    """
    config = config or EvaluateConfig()
    units = torch.as_tensor(inputs.documents).long()
    text = Text.draw(torch.as_tensor(inputs.tokens), units, config)
    if text.said["units"] == "contexts" and len(text.tokens) >= 2:  # each context is a picture of its own
        text.said["units"] = "documents"
    run = PictureRun(model, sae, text, config, on_progress or (lambda done, total, numbers: None), dict(beside or {}))
    run.inputs = inputs[torch.tensor(text.said["contexts"]).numpy()]
    return run.go()


class PictureRun(Run):
    """The passes over pictures. A batch is `Inputs` on the model's device."""

    inputs: Inputs

    def __init__(self, model, sae, text, config, on_progress, beside):
        super().__init__(model, sae, text, config, on_progress, beside)
        rows = (sae.provenance.get("recording") or {}).get("rows", "all")
        self.rules, self.rows = (*RULES, *left_out_by(rows)), rows
        self.answers = getattr(model, "has_unembedding", True)
        self.kinds: dict[str, Tally] = {}
        self.norms: dict[str, list[Tensor]] = {"image": [], "text": []}
        self.sums = {kind: torch.zeros(sae.d_in, dtype=torch.float64) for kind in self.norms}

    def _batches(self, stage: str) -> Iterator[tuple[Any, Tensor]]:
        size = self.config.batch_contexts
        for a in range(0, len(self.inputs), size):
            batch = self.inputs[slice(a, a + size)].to(self.model.device)
            yield batch, self.text.units[a : a + size].to(self.model.device)
            self._report(stage, len(batch), len(self.inputs))

    def _roles(self, batch: Inputs, x: Tensor) -> Tensor:
        """The role of each row of activations: the tower's are patches, which stand first."""
        return batch.roles[:, : x.shape[1]]

    def _record(self, batch: Inputs, stop: int | None, model: Any = None) -> tuple[Tensor, Mask, Tensor | None]:
        model = self.model if model is None else model
        kept: dict[str, Tensor] = {}
        with model.hooks([(self.site, lambda x, hook: kept.__setitem__("x", x))]):
            output = model(batch) if stop is None else model(batch, stop_at_layer=stop, return_type=None)
        x = kept["x"].float()
        x = x.flatten(2) if x.dim() > 2 else x[:, None]
        mask = counted(self._roles(batch, x), self.rules)
        if not torch.isfinite(x[mask].sum()):
            raise ConfigError(f"The model gives NaN or Inf at {self.site}. Load it in float32 or bfloat16.")
        return x, mask, output if stop is None else None

    def _spliced(self, batch: Inputs, x: Tensor, mask: Mask, x_hat: Tensor) -> Tensor:
        replaced = x.clone()
        replaced[mask] = x_hat
        with self.model.hooks([(self.site, lambda old, hook: replaced.to(old.dtype).view_as(old))]):
            return self.model(batch)

    def _first_batch(self, batch: Inputs, x: Tensor, mask: Mask) -> None:
        for kind, of_kind in self._by_kind(batch, x, mask).items():
            self.norms[kind].append(x[of_kind].norm(dim=1).cpu())
            self.sums[kind] += x[of_kind].double().sum(0).cpu()

    def _by_kind(self, batch: Inputs, x: Tensor, mask: Mask) -> dict[str, Mask]:
        image = self._roles(batch, x) == int(Role.IMAGE)
        return {"image": mask & image, "text": mask & ~image}

    def _real(self, batch: Inputs) -> Mask:
        return batch.roles != int(Role.PADDING)

    def _second_pass(self, batch: Inputs, units: Tensor) -> None:
        x, mask, output = self._record(batch, None)
        assert output is not None
        real = self._real(batch)[:, : x.shape[1]]
        of_rows = units[:, : x.shape[1]]
        flat, of = x[mask], of_rows[mask]
        clean = self._measured(batch, output, output, units)
        self.loss += clean[0]
        self.predicted += clean[2]
        own = self.own.add(x, real, mask, of_rows)
        for arm in self.arms:
            x_hat, firing = own if arm.name == "sae" else arm.apply(flat)
            arm.tally.add(flat, x_hat, of, firing)
            loss, divergence, _ = self._measured(batch, self._spliced(batch, x, mask, x_hat), output, units)
            arm.loss += loss
            arm.kl += divergence
        for kind, of_kind in self._by_kind(batch, x, mask).items():
            chosen = of_kind[mask]
            limit = OUTLIER_TIMES * self.medians.get(kind, float("inf"))
            for name, rows in ((kind, chosen), (f"{kind} usual", chosen & (flat.norm(dim=1) <= limit))):
                if rows.any():
                    self.kinds.setdefault(name, Tally(self._mean(kind), self.text.n_units))
                    self.kinds[name].add(flat[rows], own[0][rows], of[rows], own[1][rows])

    def _measured(self, batch: Inputs, output: Tensor, clean: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss or change, KL divergence, how many were measured) in each unit."""
        n = self.text.n_units
        if not self.answers:
            change = 1 - cosine_similarity(output.double(), clean.double(), dim=-1)
            of = units[:, : change.shape[1]] if change.dim() == 2 else units[:, 0]
            wanted = self._real(batch)[:, : change.shape[1]] if change.dim() == 2 else torch.ones_like(change, dtype=torch.bool)
            change, of = change[wanted], of[wanted]
            return by_unit(change, of, n), torch.zeros(n, dtype=torch.float64), by_unit(torch.ones_like(change), of, n)
        types = batch.arguments["token_type_ids"][:, 1:] == 1
        target = types & self._real(batch)[:, 1:]
        if not bool(target.any()):
            raise ConfigError("No context has an answer, so there is no loss. Give a corpus with answers or captions.")
        losses = token_losses(output[:, :-1][target], batch.tokens[:, 1:][target]).double()
        at = units[:, 1:][target]
        divergence = kl(clean[:, :-1][target][None], output[:, :-1][target][None])[0].double()
        return by_unit(losses, at, n), by_unit(divergence, at, n), by_unit(torch.ones_like(losses), at, n)

    def _scores(self) -> dict[str, dict[str, Any]]:
        arms = super()._scores()
        for scores in arms.values():
            if not self.answers:
                scores["output_change"] = scores.pop("loss")
                for name in ("delta_loss", "kl", "recovered_vs_zero", "recovered_vs_mean"):
                    scores.pop(name, None)
                intervals = scores["interval"]
                intervals["output_change"] = intervals.pop("loss")
                for name in ("delta_loss", "kl", "recovered_vs_zero", "recovered_vs_mean"):
                    intervals.pop(name, None)
        own = arms["sae"]
        for name in ("with_bos", "with_special"):
            own.pop(name, None)
        own["by_kind"] = {kind: self._of_kind(kind) for kind in self.norms if kind in self.kinds}
        return arms

    def _mean(self, kind: str) -> Tensor:
        """The mean of the rows of a kind, of which FVU measures the distances."""
        return (self.sums[kind] / sum(map(len, self.norms[kind]))).to(self.moments.mean)

    def _positions(self) -> list[dict[str, Any]]:
        """None: a position is a place in a picture, and tells nothing of how much was read before it."""
        return []

    def _of_kind(self, kind: str) -> dict[str, Any]:
        whole, usual = self.kinds[kind], self.kinds.get(f"{kind} usual")
        found = whole.result() | {"tokens": whole.n, "interval": whole.intervals(self.resampled)}
        high = whole.n - (usual.n if usual else 0)
        return found | {"registers": high, "rule": REGISTERS, "fvu_without_registers": usual.result()["fvu"] if usual else None}

    @property
    def medians(self) -> dict[str, float]:
        """Median norm of the rows of each kind, known after the first pass."""
        return {kind: torch.cat(norms).median().item() for kind, norms in self.norms.items() if sum(map(len, norms))}

    def _result(self, arms: dict[str, dict[str, Any]]) -> Evaluation:
        evaluation = super()._result(arms)
        if not self.answers:
            evaluation.counted["loss"] = None
            evaluation.definitions["output_change"] = CHANGE
        evaluation.provenance["rule"] = f"rows left out: {', '.join(self.rules)}"
        evaluation.counted["rows"] = self.rows
        for kind, scores in arms["sae"]["by_kind"].items():
            high = f", {scores['registers']:,} of them {REGISTERS}" if scores["registers"] else ", none of an outlying norm"
            evaluation.notes.append(
                f"{kind} rows: {scores['tokens']:,}{high}; FVU {scores['fvu']:.3f}, L0 {scores['l0']:.1f}, median norm "
                f"{self.medians[kind]:.3g}."
            )
        return evaluation
