"""`collect`: from a model, a dictionary and text to a pack, in one streaming pass over the activations.

`first_pass` encodes every context once, keeps only what fired (on disk, beside the pack) and adds up all statistics of all
latents; `second_pass` looks up windows, near misses and co-firing in what was kept; `token_effects` reads the rest from the
weights, and measures what each direction does to the next token. A run that was stopped continues at its next chunk.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scope.activations.corpus.inputs import NO_TOKEN, Inputs
from scope.activations.corpus.roles import Role
from scope.activations.harvest.ranks import ProcessRank
from scope.activations.read.store import ActivationStore
from scope.features.collect import first_pass, share
from scope.features.collect.build_folder import begin
from scope.features.collect.config import CollectConfig
from scope.features.collect.map import map_directions, require
from scope.features.collect.scoring import Blocks, measure, seconds_for_scores
from scope.features.collect.second_pass import firing_positions, look_up
from scope.features.collect.source import Source, from_inputs, from_recording, from_tokens, require_tokens
from scope.features.collect.table import make_table
from scope.features.collect.token_effects import OutputScores, TokenEffects, neighbours, token_effects
from scope.features.labels.properties import Text, TextProperties
from scope.features.labels.rule_labels import collected_contexts, collected_peaks, label_columns, rules_table, unclear_latents
from scope.features.labels.rule_search import search_rules
from scope.features.pack.data import PackData
from scope.features.pack.format import N_BINS
from scope.features.pack.write import PackArrays, refuse_foreign, write_pack
from scope.fit import check_fit
from scope.models.face import Model
from scope.progress import LATER, OnProgress
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.sites import in_stream_space
from scope.versions import version_of

_CONTEXTS = 8  # on which the norm at a site is measured that is written and not read


def collect(
    model: Model,
    sae: SAE,
    store: ActivationStore | Tensor | Inputs,
    config: CollectConfig | None = None,
    out: Path | str = "pack",
    on_progress: OnProgress | None = None,
    *,
    health: dict[str, Any] | None = None,
    corpus: dict[str, Any] | None = None,
    dictionary: str | None = None,
    ranks: ProcessRank | None = None,
) -> PackData | None:
    """Write the pack of a dictionary to the folder `out`, from a recording or from contexts of tokens [n context], or of inputs
    whose rows have roles.

    With `ranks` of several processes, each is to be given the same arguments and encodes its share; the first one writes the
    pack and returns it, the others return None when their share is done. Memory and disk: `scope.features.collect.plan`.

    `health` (an evaluation report, training curves) is stored as it is; `corpus` describes given tokens; `dictionary` is
    the folder or hub id of the dictionary, for those who open the pack later.

    Raises:
        DictionaryError: a dictionary of another width, model or site; activations that are not finite.
        UnknownSite: the recording or the model has no such site.
        PackError: the recording is another model's, `out` is no pack, or another process is building it.
    """
    config, out, ranks = config or CollectConfig(), Path(out), ranks or ProcessRank()
    refuse_foreign(out)
    require(config.map)
    check_fit(model, sae)
    if isinstance(store, Tensor | Inputs):
        width = store.shape[1] if isinstance(store, Tensor) else store.tokens.shape[1]
        some = store[: None if config.tokens is None else -(-config.tokens // width)]
        by = from_tokens if isinstance(some, Tensor) else from_inputs
        source = by(model, sae.site, some, corpus)
    else:
        source = from_recording(store, sae.site, model, config.tokens)
    require_tokens(source)
    weights = parameters_sha256(sae)
    identity = {
        "model": model.provenance,
        "site": sae.site,
        "dictionary": weights,
        "chunk_tokens": config.chunk_tokens,
        **source.described,
    }
    if not ranks.leads:
        share.assist(model, sae, source, identity, out, config.chunk_tokens, ranks)
        return None
    began = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    n_ctx = source.contexts.shape[1]
    with begin(out, identity, n_ctx, source.n_tokens) as building:
        if ranks.world > 1:
            share.encode_share(sae, source, building, config.chunk_tokens, ranks, on_progress)
        missing = share.missing_chunk(building, ranks)
        reading = None if on_progress is None else _with_later(on_progress, seconds_for_scores(model, sae, config))
        statistics = first_pass.gather(
            sae, source, building, config.sizes, config.chunk_tokens, len(source.vocab), config.seed, reading, missing
        )
        examples, relations, tokens, controls, pictures = look_up(sae, source, building, statistics, config)
        rho = float(np.median(np.concatenate(statistics.norms)))
        directions = sae.W_dec.detach().float()
        effects = _effects(model, next(iter(sae.writes), sae.site), directions)
        count, blocks = statistics.moments.count, Blocks(model, sae, building, ranks)
        written = rho if sae.autoencodes or effects is None else _norm_at(model, next(iter(sae.writes)), source)
        scores, null = measure(model, sae, effects, written, count, source.n_tokens, config, blocks, on_progress)
        relations |= {**neighbours(directions), **_outputs(effects, scores)}
        of_role = [role for role in Role if statistics.roles.rows[role]]
        by_role = {"role_count": statistics.roles.count[:, of_role], "role_sum": statistics.roles.sum[:, of_role]}
        relations |= by_role if of_role else {}
        totals = np.bincount(source.contexts[source.keep].astype(np.int64), minlength=len(source.vocab))
        table = make_table(sae, source, statistics, tokens, effects, scores, relations, source.vocab, totals, null, config)
        firings = firing_positions(statistics)
        rules = None
        if source.pictures is None:
            rules, table = _rules(source, firings, examples, relations, totals, table, config.seed)
        manifest = _manifest(model, sae, source, statistics, config, rho, null, weights, dictionary)
        places, facts = map_directions(directions, relations["neighbour_id"], config.map, config.seed) or (None, None)
        manifest |= {"map": facts} if facts else {}
        if source.pictures is not None:
            manifest["pictures"] = {name: getattr(source.pictures, name) for name in ("grid", "picture_size", "patch_size")}
        manifest |= {"roles": {role.name.lower(): int(statistics.roles.rows[role]) for role in of_role}} if of_role else {}
        manifest["seconds"] = round(time.monotonic() - began, 1)
        arrays = PackArrays(
            table=table,
            examples=examples,
            relations=relations,
            token_totals=totals,
            controls=controls,
            contexts=source.contexts,
            documents=source.documents,
            document_names=source.document_names,
            vocab=source.vocab,
            manifest=manifest,
            health=health,
            map=places,
            pictures=pictures,
            firings=firings,
            rules=rules,
        )
        write_pack(out, arrays)
    return PackData.open(out)


def _with_later(on_progress: OnProgress, seconds: float) -> OnProgress:
    """Progress of a first part of the work, after which another takes about so many seconds."""
    return lambda done, total, numbers: on_progress(done, total, numbers | {LATER: seconds})


def _rules(source, firings, examples, relations, totals, table, seed) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rules of all latents, and the table with labels by them."""
    text = TextProperties(Text(source.contexts, source.vocab, totals, source.documents, source.document_names))
    scores = search_rules(text, firings, table["count"].to_numpy(), relations.get("promoted_id"), seed)
    rules = rules_table(scores)
    unclear = unclear_latents(table, rules)
    contexts = collected_contexts(unclear, examples, source.contexts, source.vocab)
    return rules, label_columns(table, rules, contexts, collected_peaks(examples, source.contexts, source.vocab))


def _norm_at(model: Model, site: str, source: Source) -> float:
    """Median norm at another site than the one that is read, on the first contexts of the text."""
    some = torch.from_numpy(np.asarray(source.contexts[:_CONTEXTS]).astype(np.int64)).to(model.device)
    norms = model.record(some, [site])[site].float().norm(dim=-1).cpu().numpy()
    return float(np.median(norms[np.asarray(source.keep[:_CONTEXTS])]))


def _effects(model: Model, site: str, directions: Tensor) -> TokenEffects | None:
    """None where the site does not lie in the residual stream: its directions have no logits."""
    if not getattr(model, "has_unembedding", True) or site.startswith("vision."):
        return None
    fits = directions.shape[1] == model.cfg.d_model and in_stream_space(site)
    return token_effects(model, directions) if fits else None


def _outputs(effects: TokenEffects | None, scores: OutputScores | None) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name in ("promoted", "suppressed"):
        out[f"{name}_id"] = getattr(effects, f"{name}_id", None)
        out[f"{name}_logit"] = getattr(effects, f"{name}_logit", None)
    out["logit_histogram"], out["logit_ends"] = getattr(effects, "histogram", None), getattr(effects, "ends", None)
    out["measured_id"], out["measured_rise"] = getattr(scores, "measured_id", None), getattr(scores, "measured_rise", None)
    return {name: array for name, array in out.items() if array is not None}


def _manifest(model: Model, sae: SAE, source, statistics, config, rho, null, weights, dictionary) -> dict[str, Any]:
    norms = np.concatenate(statistics.norms)
    return {
        "site": sae.site,
        **({} if sae.autoencodes else {"site_out": next(iter(sae.writes))}),
        "model": model.provenance,
        "dictionary": {
            "path": dictionary,
            "parameters_sha256": weights,
            "kind": getattr(sae, "kind", type(sae).__name__),
            "d_in": int(sae.W_enc.shape[0]),
            **({"provenance": sae.provenance} if sae.provenance else {}),
        },
        "text": source.described,
        "n_tokens": source.n_tokens,
        "n_contexts": len(source.contexts),
        "n_ctx": int(source.contexts.shape[1]),
        "pad": int(getattr(model.cfg, "pad", NO_TOKEN)),
        "excluded": "<bos>, control tokens and padding: latents are not counted there",
        "window": config.sizes.window,
        "control_half": config.sizes.control_half,
        "histogram": {"low": statistics.low, "bins": N_BINS},
        "norm_median": rho,
        "norm_p99": float(np.quantile(norms, 0.99)),
        "l0": float(statistics.moments.count.sum() / max(source.n_tokens, 1)),
        "tokens_lost": statistics.tokens.lost,
        "output_score": null,
        "flags": asdict(config.flags),
        "config": asdict(config),
        "made": {
            "scope": version_of(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }
