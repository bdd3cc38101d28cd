"""Two models of one shape compared: weights, activations, latents of the base's SAE, and what the update reads and writes."""

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scope.diffing.config import DiffConfig
from scope.diffing.latents import MovedLatents, moved_latents
from scope.diffing.reading import BASE, TUNED, Reader, Reading
from scope.diffing.result import Diff, GroupChange, Moved, SiteChange, TokenChange, Transfer
from scope.diffing.text import DiffText
from scope.diffing.updates import update_latents
from scope.diffing.weights import dense, weight_changes
from scope.errors import ConfigError
from scope.evaluation.splice import replacing
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.sites import match_sites

_LISTED = 20


def check_pair(base: LanguageModel, tuned: LanguageModel) -> list[str]:
    """Notes on what differs besides the weights.

    Raises:
        ConfigError: models that cannot read the same tokens or have other sites.
    """
    sizes = [(m.cfg.n_layers, m.cfg.d_model, m.cfg.d_vocab) for m in (base, tuned)]
    if sizes[0] != sizes[1] or base.sites() != tuned.sites():
        shapes = [f"{n} layers of {d} numbers and {v:,} tokens" for n, d, v in sizes]
        raise ConfigError(
            f"These models have not the same shape: the base has {shapes[0]}, the tuned one {shapes[1]}.\n"
            "  Latents of two unlike models are compared by: scope match"
        )
    notes = []
    if base.words.sha256 != tuned.words.sha256:
        notes.append("The tuned model has a tokenizer of its own; both read the token ids that the base's gives.")
    if base.dtype != tuned.dtype:
        notes.append(f"The base runs in {_name(base)}, the tuned model in {_name(tuned)}: rounding is part of the difference.")
    return notes


def _name(model: LanguageModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def diff(
    base: LanguageModel,
    tuned: LanguageModel,
    text: DiffText,
    sae: SAE | None = None,
    config: DiffConfig = DiffConfig(),
    *,
    any_model: bool = False,
    reading: Reading | None = None,
    after_batch: Callable[[Reading], None] = lambda reading: None,
    on_progress: OnProgress | None = None,
) -> Diff:
    """Compare two models on text. `reading` is what an earlier call had read of the same text; `after_batch` may keep it.

    Raises:
        ConfigError: models that are not of one shape.
        DictionaryError: the SAE does not fit the base.
        UnknownSite: a site that these models do not have.
    """
    notes = check_pair(base, tuned)
    if sae is not None:
        check_fit(base, sae, any_model, reconstructs=True)
    wanted = {*match_sites(config.sites, base.sites()), *([sae.site] if sae is not None else [])}
    sites = [site for site in base.sites() if site in wanted]
    n_losses = min(config.loss_contexts, len(text.tokens))
    total = len(text.tokens) + n_losses

    def step(done: int, **numbers: float) -> None:
        if on_progress:
            on_progress(done, total, numbers)

    weights, directions = weight_changes(base, tuned)
    if not weights and base.dtype == tuned.dtype:
        notes.append("The two models are the same.")
    reader = Reader(base, tuned, text, sites, sae, config)

    def after(state: Reading) -> None:
        step(state.done)
        after_batch(state)

    state = reader.run(reading or Reading(), after)
    losses = [
        _Losses.of(model, text, sae, n_losses, lambda done, at=at: step(len(text.tokens) + (at * n_losses + done) // 2))
        for at, model in enumerate((base, tuned))
    ]
    rows, drawn = _sites(state, sites, base)
    sums = state.sums
    moved, frame, updates, transfer = None, None, [], ()
    if sae is not None:
        firing = [sums[f"{who}/firing"].double() for who in (BASE, TUNED)]
        test = moved_latents(
            sums[f"{BASE}/activation"],
            sums[f"{TUNED}/activation"],
            (firing[0] + firing[1]).sum(0),
            sums["unit/tokens"],
            config.redraws,
            config.level,
            config.seed,
        )
        frame = _latents(test, firing, sums["group/tokens"], text.names, base, sae)
        moved = Moved(
            latents=int(frame["moved"].sum()),
            of=len(frame),
            threshold=test.threshold,
            level=config.level,
            redraws=config.redraws,
            by_chance=test.by_chance,
            any_by_chance=test.any_by_chance,
        )
        updates = update_latents(base, sae, directions, seed=config.seed)
        transfer = tuple(
            Transfer(
                model=who,
                fvu=state.fvu(f"{who}/fvu"),
                fvu_inliers=state.fvu(f"{who}/inliers"),
                l0=(sums[f"{who}/firing"].sum() / sums["group/tokens"].sum()).item(),
                loss=loss.mean(loss.plain),
                spliced=loss.mean(loss.spliced),
            )
            for who, loss in zip((BASE, TUNED), losses, strict=True)
        )
    return Diff(
        weights=tuple(weights),
        sites=tuple(rows),
        groups=tuple(_groups(sums, text, reader, losses)),
        tokens=tuple(_tokens(sums, base)),
        transfer=transfer,
        moved=moved,
        updates=tuple(updates),
        notes=tuple(notes),
        provenance={
            "base": dict(base.provenance),
            "tuned": dict(tuned.provenance),
            "text": {**text.described, "tokens": int(sums["group/tokens"].sum())},
            "dictionary": None if sae is None else {"site": sae.site, "parameters_sha256": parameters_sha256(sae)},
            "config": asdict(config),
        },
        latents=frame,
        directions=drawn,
    )


class _Losses:
    """Loss in nats by group of the plain model and with the SAE spliced in, over the first contexts of the text."""

    def __init__(self, groups: int, spliced: bool):
        self.tokens, self.plain = torch.zeros(groups, dtype=torch.float64), torch.zeros(groups, dtype=torch.float64)
        self.spliced = torch.zeros_like(self.plain) if spliced else None

    def mean(self, sums: Tensor | None) -> float | None:
        return None if sums is None or not self.tokens.sum() else (sums.sum() / self.tokens.sum()).item()

    def of_group(self, group: int) -> float | None:
        return (self.plain[group] / self.tokens[group]).item() if self.tokens[group] else None

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, text: DiffText, sae: SAE | None, contexts: int, step: Callable[[int], None]) -> "_Losses":
        from scope.activations.corpus.inputs import counted_tokens

        losses = cls(len(text.names), sae is not None)
        for row in range(contexts):
            tokens, groups = text.tokens[row : row + 1], text.groups[row : row + 1]
            counted = counted_tokens(tokens, model.special_ids)
            at = counted[:, :-1] & counted[:, 1:]
            group = groups[:, :-1][at]
            losses.tokens.index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
            losses.plain.index_add_(0, group, cls._nats(model, tokens, at))
            if sae is not None and losses.spliced is not None:
                with model.hooks([(sae.site, replacing(sae, model.special_ids))]):
                    losses.spliced.index_add_(0, group, cls._nats(model, tokens, at))
            step(row + 1)
        return losses

    @staticmethod
    def _nats(model: LanguageModel, tokens: Tensor, at: Tensor) -> Tensor:
        logits = model(tokens.to(model.device))[:, :-1][at.to(model.device)]
        return cross_entropy(logits.float(), tokens[:, 1:][at].to(logits.device), reduction="none").double().cpu()


def _sites(state: Reading, sites: list[str], base: LanguageModel) -> tuple[list[SiteChange], dict[str, Tensor]]:
    n, rows, directions = state.sums["group/tokens"].sum().item(), [], {}
    for site in sites:
        difference, total = state.sums[f"{site}/difference"].item(), state.sums[f"{site}/base"].item()
        mean = (state.sums[f"{site}/mean"] / n).float()
        values, factors = dense(state.sums[f"{site}/rows"].double())
        share = values.square() / values.square().sum().clamp_min(1e-300)
        promotes: tuple[str, ...] = ()
        if difference:
            directions |= {f"{site}/mean": mean, f"{site}/first": factors.reads[:, 0].clone()}
            if len(mean) == base.cfg.d_model and not site.endswith(("hook_z", "hook_normalized")):
                ids = base.direct_logits(mean[None].to(base.device))[0].topk(8).indices.tolist()
                promotes = tuple(base.words.pieces(ids))
        rows.append(
            SiteChange(
                site=site,
                relative=state.sums[f"{site}/relative"].item() / n,
                pooled=math.sqrt(difference / total) if total else 0.0,
                constant=(mean.double().square().sum() * n / difference).item() if difference else 0.0,
                first=share[0].item() if difference else 0.0,
                rank=int((share.cumsum(0) < 0.99).sum()) + 1 if difference else 0,
                promotes=promotes,
            )
        )
    return rows, directions


def _groups(sums: dict[str, Tensor], text: DiffText, reader: Reader, losses: list[_Losses]) -> list[GroupChange]:
    at = reader.sites.index(reader.listed)
    rows = []
    for i, name in enumerate(text.names):
        n = sums["group/tokens"][i].item()
        if not n:
            continue
        l0 = [sums[f"{who}/firing"][i].sum().item() / n if reader.sae is not None else None for who in (BASE, TUNED)]
        rows.append(
            GroupChange(
                group=name,
                tokens=int(n),
                relative=sums["group/relative"][at, i].item() / n,
                loss_tokens=int(losses[0].tokens[i]),
                loss_base=losses[0].of_group(i),
                loss_tuned=losses[1].of_group(i),
                l0_base=l0[0],
                l0_tuned=l0[1],
            )
        )
    return rows


def _tokens(sums: dict[str, Tensor], base: LanguageModel) -> list[TokenChange]:
    """The tokens at which activations lie most apart, of those seen at least twice."""
    counts = sums["token/tokens"]
    mean = torch.where(counts >= 2, sums["token/relative"] / counts.clamp_min(1), -1.0)
    ids = [i for i in mean.topk(min(_LISTED, len(mean))).indices.tolist() if mean[i] > 0]
    pieces = base.words.pieces(ids)
    return [
        TokenChange(token=piece, count=int(counts[i]), relative=mean[i].item()) for piece, i in zip(pieces, ids, strict=True)
    ]


def _latents(
    test: MovedLatents, firing: list[Tensor], tokens: Tensor, names: tuple[str, ...], base: LanguageModel, sae: SAE
) -> pd.DataFrame:
    n = tokens.sum().item()
    columns = {
        "latent": np.arange(len(test.z)),
        "moved": np.abs(test.z) > test.threshold,
        "z": test.z,
        "p": test.p,
        "base": test.base,
        "tuned": test.tuned,
        "spread": test.spread,
        "frequency_base": firing[0].sum(0).numpy() / n,
        "frequency_tuned": firing[1].sum(0).numpy() / n,
    }
    for i, name in enumerate(names if len(names) > 1 else ()):
        for who, counts in zip((BASE, TUNED), firing, strict=True):
            columns[f"frequency_{who} {name}"] = (counts[i] / tokens[i].clamp_min(1)).numpy()
    if sae.d_in == base.cfg.d_model:
        columns["promotes"] = [" ".join(row) for row in _promoted(base, sae)]
    return pd.DataFrame(columns)


@torch.no_grad()
def _promoted(base: LanguageModel, sae: SAE, top: int = 5) -> list[list[str]]:
    """The tokens that each latent's decoder row raises most, by the weights after it."""
    rows = []
    for part in sae.W_dec.detach().float().to(base.device).split(512):
        ids = base.direct_logits(part).topk(top, dim=1).indices.tolist()
        rows += [base.words.pieces(some) for some in ids]
    return rows
