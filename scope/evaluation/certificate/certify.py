"""Check on a few thousand tokens of a model that a dictionary does what it declares.

The dictionary is applied at its site as it is. Where L0 or FVU differ from what is declared, or a neighbouring site does
better,
other readings of the same files (`readings`: site, scale, bias ...) are tried, and the dictionary is refused with the reading
that explains it. The result is kept beside the dictionary under the hashes of both weights and the number of the rules.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.activations.corpus.inputs import Inputs, counted_tokens
from scope.activations.corpus.inputs import record as record_rows
from scope.activations.corpus.roles import RULES
from scope.errors import ConfigError, DictionaryError
from scope.evaluation.baselines import Moments, RandomDictionary
from scope.evaluation.certificate.certificate import Certificate, find, keep, key_of
from scope.evaluation.certificate.readings import Reading, as_it_stands, elsewhere, farther, otherwise
from scope.evaluation.certificate.rules import rules_hash, rules_hash_of_0_1_0
from scope.evaluation.certificate.training_pictures import training_pictures
from scope.evaluation.certificate.training_text import CONTEXT, TOKENS, Text, sample_text, training_text
from scope.evaluation.certificate.verdict import judge, middle, problems
from scope.evaluation.metrics import cosine, fvu, length_bias
from scope.fit import check_fit
from scope.models.face import Model, VisionModel
from scope.progress import OnProgress
from scope.provenance import ModelId
from scope.sae.base import SAE
from scope.sae.claims import claims_of
from scope.sae.files import parameters_sha256
from scope.shapes import Tokens
from scope.versions import version_of

SOME = 512
"""Tokens on which other readings are tried."""

_AT_ONCE = 8  # sites that are held in memory together

OUTLIER = 20.0
"""Times the median norm beyond which a token is left out: no dictionary is trained on these (P2)."""

_ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


def certify(
    model: Model,
    sae: SAE,
    where: Path | str | None = None,
    tokens: Tokens | Inputs | None = None,
    *,
    any_model: bool = False,
    on_progress: OnProgress | None = None,
) -> Certificate:
    """The certificate of `sae` for `model`: the kept one, or a new one, which is then kept beside the dictionary.

    `where` is what it was loaded from; `tokens` are contexts [batch pos] that begin with <bos>, or inputs whose rows have
    roles, as of pictures; by default about 2,000 tokens or rows of what it was trained on where that is on this machine, else
    of the bundled text or of synthetic scenes. `any_model` allows other weights than it was made for, as a fine-tune of the
    same base.

    Raises:
        DictionaryError: it does not fit: another model, site or width by name; or its numbers here are not the
            declared ones, with the readings tried and the one that explains it.
        ConfigError: no tokens were given and the model has no tokenizer.
    """
    check_fit(model, sae, any_model)
    trained_on = training_pictures if isinstance(model, VisionModel) else training_text
    text = trained_on(model, sae) if tokens is None else Text(tokens)
    kept, damage = _beside(model, sae, where, text)
    if (
        kept is None and text.missing and text.tokens is None
    ):  # an earlier version measured it on the bundled text, and it fitted there
        earlier, _ = _beside(model, sae, where, Text())
        kept = earlier if earlier is not None and earlier.fits else None
    if kept is None:
        kept = examine(model, sae, sample_text(model) if text.tokens is None else text.tokens, on_progress, text)
        if damage:
            kept.notes.append(f"{damage}; it was measured again.")
        keep(where, key_of(model, sae, rules_hash(what_decides(model, sae, text))), kept)
    if not kept.fits:
        raise DictionaryError(refusal(kept, sae))
    return kept


def _beside(model, sae: SAE, where: Path | str | None, text: Text) -> tuple[Certificate | None, str]:
    """(the certificate beside the dictionary, or None; why the file was ignored, if it was)."""
    depends_on = what_decides(model, sae, text)

    def earlier_key(sampled: bool = False) -> str | None:
        return key_of(model, sae, rules_hash_of_0_1_0(depends_on), sampled)

    kept, damage = find(where, lambda: key_of(model, sae, rules_hash(depends_on)), earlier_key)
    if kept is None and (kept := find(where, lambda: earlier_key(sampled=True))[0]):
        ModelId.of(kept.provenance.get("model")).same_weights(ModelId.of(model.provenance))  # warns
    return kept, damage


def what_decides(model, sae: SAE, text: Text = Text()) -> bytes:
    """The bytes on which a certificate depends beside weights and rules: the text, and what the SAE declares. Their form is
    part of the keys of certificates on disk."""
    tokens, tokenizer = text.tokens, getattr(model.tokenizer, "sha256", None)
    identity = ["bundled", TOKENS, CONTEXT, tokenizer, *([text.missing] if text.missing else [])]
    if isinstance(tokens, Inputs):
        identity = ["inputs", tokens.digest(), sorted(text.rules), text.missing]
    elif tokens is not None:
        identity = tokens.int().cpu().numpy().tobytes().hex()
    return json.dumps([identity, OUTLIER, claims_of(sae.provenance), sae.site]).encode()


def refusal(certificate: Certificate, sae: SAE) -> str:
    shown = [f"    {r['name']}: L0 {r['l0']:.1f}, FVU {r['fvu']:.3g}" for r in certificate.tried[:4]]
    return "\n".join(
        [
            f"This dictionary does not fit at {sae.site}: {certificate.line()}.",
            *(["  Tried beside it, best first:", *shown] if shown else []),
            "  To use it all the same, skip the certificate: --no-certificate, or certify=False.",
        ]
    )


@torch.no_grad()
def examine(
    model, sae: SAE, tokens: Tokens | Inputs, on_progress: OnProgress | None = None, text: Text = Text()
) -> Certificate:
    """Measure `sae` on contexts of tokens, and other readings where its numbers are wrong. Position 0, special tokens and
    tokens of huge norm are left out. `text` says where the tokens are from."""
    sites = model.sites()
    others = elsewhere(sae, sites)
    wanted = {sae.site, *(r.site for r in others)} | ({sae.site_out} if not sae.autoencodes else set())
    acts, outliers = record(model, tokens, sorted(wanted), sae.site, text.rules)
    x = acts[sae.site]
    y = None if sae.autoencodes else acts[sae.site_out]
    declared = claims_of(sae.provenance)
    own = as_it_stands(sae)
    measured = measure(own, x, y) | {"tokens": len(x), "outliers": outliers}
    null = _null(sae, x, measured["l0"]) if sae.autoencodes else {"fvu": 1.0}
    wrong = problems(measured, {} if text.missing else declared, null["fvu"])
    others = [r for i, r in enumerate(others) if not _known(acts[r.site], [x, *(acts[o.site] for o in others[:i])])]
    trials = others + (otherwise(sae, x, middle(declared.get("l0"))) if wrong else [])
    some = torch.arange(0, len(x), max(1, len(x) // SOME))
    here = measure(own, x[some], None if y is None else y[some])
    tried: list[dict[str, Any]] = []
    for done, reading in enumerate(trials):
        found = measure(reading, acts[reading.site][some], None if y is None else y[some])
        tried.append({"name": reading.name, "site": reading.site, "remedy": reading.remedy} | found)
        if on_progress:
            on_progress(done + 1, len(trials), {})
    if "fvu" in wrong and sae.autoencodes:
        tried += _far(model, sae, tokens, sites, some, text.rules)
    notes = _notes(model, sae, x, outliers, text.unit)
    if declared.get("l0") is None:
        notes.append("It declares no L0, so thresholds that are all too low or too high cannot be detected.")
    if text.missing:
        notes.append(
            f"It was trained on {text.missing}, which is not where its training read it. It was measured on {text.instead}, "
            "so the numbers that it declares were not held against it."
        )
    fits, said, more, tried = judge(measured, declared, null, tried, here, bool(text.missing))
    about = _provenance(model, sae) | {k: v for k, v in (("text", text.place), ("text_missing", text.missing)) if v}
    if isinstance(tokens, Inputs):
        left_out = f"{', '.join(text.rules)} and norms above {OUTLIER:g} medians are left out"
        about |= {"unit": text.unit, "pictures": len(tokens), "rule": left_out}
    return Certificate(fits, said, measured, declared, null, tried, notes + more, about, here)


def _far(
    model, sae: SAE, tokens: Tokens | Inputs, sites: dict[str, int], some: Tensor, rules: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure the SAE at the sites of all other blocks, a few sites at a time to bound memory."""
    found, far = [], farther(sae, sites)
    for start in range(0, len(far), _AT_ONCE):
        few = far[start : start + _AT_ONCE]
        acts, _ = record(model, tokens, sorted({sae.site, *(r.site for r in few)}), sae.site, rules)
        for r in few:
            found.append({"name": r.name, "site": r.site, "remedy": r.remedy} | measure(r, acts[r.site][some]))
    return found


def _known(x: Tensor, others: list[Tensor]) -> bool:
    """Whether x equals one of the others, as the stream after a block is the stream before the next; or all its rows are equal,
    as those of image tokens are before their patches come in."""
    return bool((x == x[0]).all()) or any(torch.equal(x, other) for other in others)


def measure(reading: Reading, x: Tensor, y: Tensor | None = None) -> dict[str, Any]:
    """L0, FVU and length bias of a reading of `x`, which reconstructs `x` or predicts `y`."""
    latents, predicted, target = 0, [], x if y is None else y
    for part in x.split(SOME):
        encoded, x_hat = reading.apply(part)
        latents += int((encoded > 0).sum())
        predicted.append(x_hat)
    x_hat = torch.cat(predicted)
    if not torch.isfinite(x_hat).all():
        return {"l0": latents / len(x), "fvu": float("inf"), "cosine": 0.0, "length_bias": None}
    return {
        "l0": latents / len(x),
        "fvu": fvu(target, x_hat).item(),
        "cosine": cosine(target, x_hat).item(),
        "length_bias": length_bias(target, x_hat).item(),
    }


def record(
    model, tokens: Tokens | Inputs, sites: list[str], measured_at: str, rules: Sequence[str] = RULES
) -> tuple[dict[str, Tensor], int]:
    """(activations [tok width] of each site at the tokens that count, how many were left out for their norm at that site). Of
    inputs, `rules` say which rows do not count."""
    unit = "rows" if isinstance(tokens, Inputs) else "tokens"
    acts = _record_inputs(model, tokens, sites, rules) if unit == "rows" else _record_tokens(model, tokens, sites)
    if len(acts[measured_at]) < 64:
        raise ConfigError(f"Only {len(acts[measured_at])} {unit} count; a certificate needs 64 at least. Give more text.")
    norms = acts[measured_at].norm(dim=1)
    usual = norms <= OUTLIER * norms.median()
    return {site: rows[usual] for site, rows in acts.items()}, int((~usual).sum())


def _record_inputs(model, inputs: Inputs, sites: list[str], rules: Sequence[str]) -> dict[str, Tensor]:
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(inputs), 4):
        batch = inputs[slice(start, start + 4)]
        mask = torch.from_numpy(batch.counted(rules).reshape(-1))
        for site, x in record_rows(model, batch, sites).items():
            kept[site].append(x[mask.to(x.device)].float())
    return {site: torch.cat(rows) for site, rows in kept.items()}


def _record_tokens(model, tokens: Tokens, sites: list[str]) -> dict[str, Tensor]:
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}
    tokens = tokens.to(model.device).long()
    for batch in tokens.split(4):
        found: dict[str, Tensor] = {}
        real = batch != model.cfg.pad
        real[:, 0] = True
        hooks = [(sites, lambda x, hook, found=found: found.__setitem__(hook.name, x.flatten(2).float()))]
        with model.hooks(hooks):
            model(batch, stop_at_layer=model.layers_for(sites), attention_mask=real, return_type=None)
        mask = counted_tokens(batch, model.special_ids, model.run.positions, real)
        for site in sites:
            kept[site].append(found[site][mask])
    return {site: torch.cat(rows) for site, rows in kept.items()}


def _null(sae: SAE, x: Tensor, l0: float) -> dict[str, float]:
    """FVU of a random dictionary of as many latents (at most 8,192) and equal L0, fitted to the same tokens."""
    moments = Moments(sae.d_in)
    moments.add(x)
    d_sae = min(sae.d_sae, 8192)
    random = RandomDictionary(moments, d_sae, max(1e-3, min(l0, d_sae / 2)), seed=0)
    return {"fvu": fvu(x, random(x)).item()}


def _notes(model, sae: SAE, x: Tensor, outliers: int, unit: str) -> list[str]:
    notes = []
    if outliers:
        notes.append(f"{outliers} {unit} of more than {OUTLIER:g} times the median norm were left out.")
    named = str((sae.provenance.get("model") or {}).get("model") or "")
    have = ModelId.of(model.provenance).name or ""
    same = named.rstrip("/").rsplit("/", 1)[-1] == have.rstrip("/").rsplit("/", 1)[-1]
    if named and have and not same:
        notes.append(f"It was made for {named}, and this is {have}; only the numbers can say whether that matters.")
    coarse = (sae.provenance.get("stored") or {}).get("threshold")
    if coarse in _ROUNDING:
        notes.append(
            f"Its thresholds were stored as {coarse}: {_undecided(sae, x[:SOME], _ROUNDING[coarse]):.2%} of its firings lie "
            "within that rounding of their threshold."
        )
    return notes


def _undecided(sae: SAE, x: Tensor, rounding: float) -> float:
    """Of the latents that fire, the share whose pre-activation is nearer to the threshold than its stored form can tell."""
    pre = sae.pre_activations(x)
    close = ((pre - sae.threshold).abs() <= rounding * sae.threshold.abs()).sum()
    return (close / (pre > sae.threshold).sum().clamp_min(1)).item()


def _provenance(model, sae: SAE) -> dict[str, Any]:
    about = model.provenance
    return {
        "model": {name: about.get(name) for name in ("model", "revision", "weights_sha256")},
        "dictionary": {"weights_sha256": parameters_sha256(sae), "source": sae.provenance.get("source")},
        "site": sae.site,
        "rule": f"position 0, special tokens and norms above {OUTLIER:g} medians are left out",
        "versions": {"scope": version_of(), "torch": torch.__version__},
    }
