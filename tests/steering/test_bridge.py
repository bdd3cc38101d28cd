"""The same edits on transformers' own model: the same texts, with and without a cache, padded and not."""

import pytest
import torch

from scope.errors import DictionaryError, EditError
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.apply.transformers_hooks import steered_transformers
from scope.steering.edits.interventions import Add, Clamp, Edits
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, twins
from tests.steering.conftest import SITE, random_sae

PROMPTS = ["the dog runs to the river", "my sister"]
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, toy_tokenizer):
    return twins(SHAPES["several kv heads, low caps"], tmp_path_factory.mktemp("twins"), toy_tokenizer)


def editing(model, edits, site=SITE):
    sae = random_sae(site=site)
    resolved = [resolve(e, {site: sae}, {site: StrengthUnits(8.0, "given")}) for e in Edits.of(edits)]
    return Editing(model, {site: sae}, resolved)


def texts_of(theirs, model, prompts, **how):
    """New ids of transformers' greedy generation, padded on the left as it wants."""
    rows = [model.tokenizer.encode(p) for p in prompts]
    longest = max(map(len, rows))
    tokens = torch.tensor([[model.cfg.pad] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    out = theirs.generate(
        tokens,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=model.cfg.pad,
        eos_token_id=model.cfg.eos[0],
        **how,
    )
    new = [row[longest:].tolist() for row in out]
    return [[i for i in ids if i not in (model.cfg.pad, *model.cfg.eos)] for ids in new]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", ["not_bos", "all", "prompt", "generated", "last_prompt", "from:4"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_transformers_writes_under_the_same_edits_what_ours_does(pair, rule, use_cache):
    ours, theirs = pair
    edits = Add(3, 0.6, positions=rule) + Clamp(5, 0.3, unit="norm", positions=rule)
    made = generate(ours, PROMPTS, GREEDY, fwd_hooks=editing(ours, edits).hooks())
    at_work = editing(ours, edits)
    with steered_transformers(theirs, at_work, ours):
        found = texts_of(theirs, ours, PROMPTS, use_cache=use_cache)
    assert found == [list(g.new_ids) for g in made]
    lengths = sum(len(ours.tokenizer.encode(p)) for p in PROMPTS)
    first = {"not_bos": lengths - 2, "all": lengths, "prompt": lengths - 2, "generated": 0, "last_prompt": 2}
    if use_cache and rule in first:
        assert at_work.report().edited_per_step[0] == first[rule]


@pytest.mark.filterwarnings("ignore")
def test_after_the_block_nothing_is_left(pair):
    ours, theirs = pair
    plain = texts_of(theirs, ours, PROMPTS)
    with steered_transformers(theirs, editing(ours, Add(3, 0.9)), ours):
        assert texts_of(theirs, ours, PROMPTS) != plain
    assert texts_of(theirs, ours, PROMPTS) == plain


@pytest.mark.filterwarnings("ignore")
def test_the_site_before_a_block_is_reached_too(pair):
    ours, theirs = pair
    site = "blocks.2.hook_resid_pre"
    made = generate(ours, PROMPTS, GREEDY, fwd_hooks=editing(ours, Add(3, 0.6), site).hooks())
    with steered_transformers(theirs, editing(ours, Add(3, 0.6), site), ours):
        assert texts_of(theirs, ours, PROMPTS) == [list(g.new_ids) for g in made]


def test_other_sites_and_other_models_are_refused(pair, tiny_config, tmp_path, toy_tokenizer):
    ours, theirs = pair
    with (
        pytest.raises(EditError, match=r"not at blocks\.1\.hook_mlp_out"),
        steered_transformers(theirs, editing(ours, Add(3, 0.5), "blocks.1.hook_mlp_out"), ours),
    ):
        pass
    other = random_gemma(tiny_config, toy_tokenizer, seed=9)
    with (
        pytest.raises(DictionaryError, match="other embeddings"),
        steered_transformers(theirs, editing(other, Add(3, 0.5)), other),
    ):
        pass
    _, short = twins(SHAPES["one kv head, three layers"], tmp_path / "short", toy_tokenizer)
    with (
        pytest.raises(DictionaryError, match="has 3"),
        steered_transformers(short, editing(ours, Add(3, 0.5)), ours),
    ):
        pass
