"""Interventions that are handed over: the folder, the hook for transformers, the control vector, and what each refuses."""

import ast
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.sae.gated import GatedConfig, GatedSAE
from scope.sae.topk import TopKConfig, TopKSAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.steer import steer
from scope.steering.edits.interventions import (
    Ablate,
    Add,
    AtLeast,
    Cap,
    Clamp,
    Direction,
    Edits,
    Floor,
    Hold,
    ProjectOut,
    Scale,
    When,
)
from scope.steering.export import control_vector
from scope.steering.export.intervention import export_intervention, export_run, load_intervention
from scope.steering.export.script import steps
from tests.models.griffin_twins import pair_of
from tests.models.twins import SHAPES, twins
from tests.steering.conftest import SITE, random_sae

PROMPTS = ["the dog runs to the river", "my sister"]
UNITS = StrengthUnits(8.0, "given", maximum={3: 4.0, 5: 2.0})
EVERY_EDIT = (
    Clamp(5, 9.0)
    + AtLeast(6, 1.0, positions="from:3")
    + Ablate(7)
    + Scale(8, 2.5, positions="generated")
    + ProjectOut(9, positions="prompt")
    + Cap(10, 0.1, positions="content")
    + Floor(11, 0.2, positions="last_prompt")
    + Add(3, 0.4, when=When(12, 0.3))
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, toy_tokenizer):
    return twins(SHAPES["several kv heads, low caps"], tmp_path_factory.mktemp("twins"), toy_tokenizer)


@pytest.fixture(scope="module")
def folders(pair, tmp_path_factory):
    """Folder of the twins, and three exports: every edit at once, an addition everywhere, and one beside the stream."""
    ours, _ = pair
    home = tmp_path_factory.mktemp("exports")
    how = {"strength_units": UNITS, "max_new_tokens": 6}
    beside = Direction(tuple(torch.arange(32.0).tolist()), "blocks.2.hook_mlp_out", "a ramp")
    export_intervention(ours, random_sae(), EVERY_EDIT, PROMPTS, home / "every", **how)
    export_intervention(ours, random_sae(), Add(3, 0.9, positions="all"), PROMPTS, home / "add", **how)
    export_intervention(ours, None, Add(beside, 0.5), PROMPTS, home / "beside", max_new_tokens=6)
    return home


def hook_of(folder: Path):
    spec = importlib.util.spec_from_file_location("exported_hook", folder / "hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_fresh_process_without_scope_writes_the_recorded_texts_token_by_token(pair, folders):
    ours, _ = pair
    program = (
        "import sys, runpy; sys.modules['scope'] = None\n"
        "for folder in sys.argv[2:]:\n"
        "    hook = runpy.run_path(folder + '/hook.py')\n"
        "    assert hook['reproduce'](sys.argv[1], folder=folder)\n"
    )
    names = [str(folders / name) for name in ("every", "add", "beside")]
    command = [sys.executable, "-I", "-c", program, ours.provenance["model"], *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("The texts are the same, token by token.") == 3
    texts = load_intervention(folders / "every").texts
    assert any(text.plain.ids != text.steered.ids for text in texts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["every", "beside"])
def test_the_hook_edits_padded_batches_and_texts_without_a_cache_alike(pair, folders, name):
    ours, theirs = pair
    made = load_intervention(folders / name)
    rows = [list(text.prompt_ids) for text in made.texts]
    longest = max(map(len, rows))
    tokens = torch.tensor([[ours.cfg.pad] * (longest - len(r)) + r for r in rows])
    mask = (torch.arange(longest) >= torch.tensor([[longest - len(r)] for r in rows])).long()
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": made.hook["ends"]}
    for use_cache in (True, False):
        with hook_of(folders / name).steer(theirs):
            out = theirs.generate(tokens, attention_mask=mask, use_cache=use_cache, **settings)[:, longest:].tolist()
        assert [row[: len(t.steered.ids)] for row, t in zip(out, made.texts, strict=True)] == [
            list(t.steered.ids) for t in made.texts
        ]


def test_a_folder_that_was_exported_is_the_same_intervention_without_the_sae(pair, folders, tmp_path):
    ours, _ = pair
    back = load_intervention(folders / "every")
    sampling = SamplingConfig(max_new_tokens=6, seed=3)
    before = steer(ours, random_sae(), EVERY_EDIT, PROMPTS, sampling, strength_units=UNITS, any_model=True)
    again = steer(ours, None, back.edits, PROMPTS, sampling, strength_units=back.strength_units)
    assert before.same_texts(again)
    assert back.reproduces(ours) == [True, True]
    once_more = export_run(again, ours, None, tmp_path / "again")
    assert load_intervention(tmp_path / "again").edits == back.edits == once_more.edits
    (clamp,) = [row for row in back.sheet if row["edit"].startswith("clamp")]
    assert (clamp["raw"], clamp["multiple_of_maximum"]) == (9.0, 4.5)
    saved = type(again).from_json(again.to_json())
    assert saved.edits == again.edits
    named: dict = {}
    program = steps(again, [])  # as Python: imports, model, edits
    exec(program[0] + "SAES = []\n" + program[2], named)
    assert Edits.of(named["edits"]) == again.edits


def test_the_python_on_the_card_uses_only_names_that_it_makes(folders):
    block = (folders / "every" / "card.md").read_text().split("```python\n")[1].split("```")[0]
    names = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} - made == {"scope", "MODEL", "PROMPTS"}


def test_the_control_vector_holds_the_vector_bit_for_bit_at_the_layer_that_llama_cpp_adds_it_to(folders, pair):
    ours, _ = pair
    facts, tensors = control_vector.read(folders / "add" / "control_vector.gguf")
    assert facts == {"model_hint": "gemma2", "layer_count": 1}
    added = random_sae().W_dec[3] * (0.9 * 8.0 / float(random_sae().W_dec[3].norm()))
    assert list(tensors) == [1]  # blocks.1.hook_resid_post is what block 1 gives
    assert tensors[1].tobytes() == added.numpy().tobytes()
    assert control_vector.layer_of("blocks.2.hook_resid_pre") == 1
    (one,) = load_intervention(folders / "add").resolved(ours)
    summed = control_vector.vectors([one, one, replace(one, site="blocks.3.hook_resid_post")])
    assert list(summed) == [1, 3]
    assert np.array_equal(summed[1], 2 * summed[3])
    tokens = ours.to_tokens(PROMPTS[0])
    (edit,) = load_intervention(folders / "add").resolved(ours)
    by_hand = ours.run_with_hooks(tokens, fwd_hooks=[(SITE, lambda x, hook: x + torch.tensor(tensors[1]))])
    assert torch.equal(by_hand, ours.run_with_hooks(tokens, fwd_hooks=Editing(ours, {}, [edit]).hooks()))
    assert np.isfinite(tensors[1]).all()


def test_each_form_says_what_it_cannot_carry_and_is_not_written(pair, folders, tmp_path):
    ours, _ = pair
    assert not (folders / "every" / "control_vector.gguf").exists()
    reasons = {
        "depends on what is read": Clamp(3, 1.0, positions="all"),
        "has a condition": Add(3, 0.5, positions="all", when=When(4, 0.1)),
        "--positions all": Add(3, 0.5),
    }
    for words, edit in reasons.items():
        made = export_intervention(
            ours, random_sae(), edit, PROMPTS[1], tmp_path / "one", strength_units=UNITS, max_new_tokens=1
        )
        assert words in made.forms["GGUF control vector"]
        assert f"No GGUF control vector: {made.forms['GGUF control vector']}" in (tmp_path / "one" / "card.md").read_text()
    first = "blocks.0.hook_resid_post"
    how = {"strength_units": UNITS, "max_new_tokens": 1}
    made = export_intervention(ours, random_sae(site=first), Add(3, 0.5, positions="all"), "my", tmp_path / "one", **how)
    assert "after the first block" in made.forms["GGUF control vector"]
    mid = export_intervention(ours, random_sae(site="blocks.1.hook_resid_mid"), Add(3, 0.5), "my", tmp_path / "one", **how)
    assert "hook_resid_mid is no module's" in mid.forms["transformers hook"]
    assert not (tmp_path / "one" / "hook.py").exists()


def test_a_latent_that_cannot_be_read_alone_is_added_and_never_clamped(pair, tmp_path):
    ours, _ = pair
    topk = TopKSAE(TopKConfig(d_in=32, d_sae=48, k=4), SITE)
    gated = GatedSAE(GatedConfig(d_in=32, d_sae=48), SITE)
    generator = torch.Generator().manual_seed(0)
    for sae in (topk, gated):
        sae.provenance = dict(random_sae().provenance)
        with torch.no_grad():
            for p in sae.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    how = {"strength_units": UNITS, "max_new_tokens": 4}
    with pytest.raises(EditError, match="latents compete"):
        export_intervention(ours, topk, Clamp(3, 1.0), PROMPTS, tmp_path / "topk", **how)
    assert export_intervention(ours, topk, Add(3, 0.5), PROMPTS, tmp_path / "topk", **how).reproduces(ours) == [True, True]
    made = export_intervention(ours, gated, Clamp(3, 1.0), PROMPTS, tmp_path / "gated", **how)
    x = torch.randn(50, 32, generator=generator)
    assert torch.allclose(made.edits[0].latent.encoder(x), gated.encode(x)[:, 3], atol=1e-6)


def test_damaged_folders_other_models_and_folders_of_others_are_refused(pair, folders, tmp_path, tiny_model):
    ours, theirs = pair
    made = load_intervention(folders / "add")
    with pytest.raises(EditError, match="was made for"):
        made.check(tiny_model)
    made.check(ours)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(EditError, match="not replaced"):
        export_intervention(ours, random_sae(), Add(3, 0.5), "my", tmp_path / "mine", strength_units=UNITS)
    with pytest.raises(EditError, match="There is no exported intervention"):
        load_intervention(tmp_path / "mine")
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("intervention.json", "vectors.safetensors", "texts.jsonl", "hook.py"):
        (broken / name).write_bytes((folders / "add" / name).read_bytes())
    about = json.loads((broken / "intervention.json").read_text())
    for damage in ({"edits": about["edits"] * 2}, {"edits": [{}]}, {"schema": 9}, {"strength_units": {}}, {"sheet": 3}):
        (broken / "intervention.json").write_text(json.dumps(about | damage))
        with pytest.raises(EditError):
            load_intervention(broken)
    (broken / "intervention.json").write_text(json.dumps(about))
    (broken / "vectors.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EditError, match="damaged"):
        load_intervention(broken)
    about["hook"]["embedding_sha256"] = "0" * 64
    (broken / "intervention.json").write_text(json.dumps(about))
    (broken / "vectors.safetensors").write_bytes((folders / "add" / "vectors.safetensors").read_bytes())
    with pytest.raises(ValueError, match="other embeddings"), hook_of(broken).steer(theirs):
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_recurrent_model_is_handed_over_as_a_hook_and_its_states_are_refused(tmp_path, toy_tokenizer):
    ours, theirs = pair_of(tmp_path / "griffin", toy_tokenizer)
    site = "blocks.1.hook_resid_post"
    width = ours.sites()[site]
    how = {"strength_units": UNITS, "max_new_tokens": 6}
    made = export_intervention(ours, random_sae(width, site=site), Clamp(3, 4.0), PROMPTS, tmp_path / "out", **how)
    assert "no RecurrentGemma with control vectors" in made.forms["GGUF control vector"]
    assert texts_of(theirs, made, tmp_path / "out") == [text.steered.ids for text in made.texts]
    state = Direction((1.0,) * ours.sites()["blocks.0.rec.hook_state"], "blocks.0.rec.hook_state")
    with pytest.raises(EditError, match="state of a recurrence"):
        export_intervention(ours, None, Hold(state, 1.0), PROMPTS, tmp_path / "state", max_new_tokens=2)


def texts_of(theirs, made, folder: Path) -> list[tuple[int, ...]]:
    """What transformers writes greedily after the recorded prompts, with the exported hook."""
    rows = []
    for text in made.texts:
        ids = torch.tensor([text.prompt_ids])
        settings = {"do_sample": False, "max_new_tokens": text.max_new_tokens, "pad_token_id": 0}
        with hook_of(folder).steer(theirs):
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=made.hook["ends"], **settings)
        rows.append(tuple(out[0, ids.shape[1] :].tolist()[: len(text.steered.ids)]))
    return rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "shape", ["Gemma 1, one kv head", "one kv head, three layers", "Gemma 3, scaled positions, one kv head", "recurrent"]
)
def test_the_hook_reaches_the_modules_of_every_family(shape, tmp_path, toy_tokenizer):
    if shape == "recurrent":
        ours, theirs = pair_of(tmp_path / "model", toy_tokenizer)
        sites = ["blocks.0.rec.hook_rec_out", "blocks.1.hook_resid_pre", "blocks.2.hook_attn_out", "blocks.2.hook_mlp_out"]
    else:
        ours, theirs = twins(SHAPES[shape], tmp_path / "model", toy_tokenizer)
        sites = ["blocks.0.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    generator = torch.Generator().manual_seed(0)
    vectors = {site: tuple(torch.randn(ours.sites()[site], generator=generator).tolist()) for site in sites}
    edits = [Add(Direction(vector, site), 0.5) for site, vector in vectors.items()]
    edits.append(Clamp(Direction(vectors[sites[-1]][::-1], sites[-1]), 0.3))
    made = export_intervention(ours, None, edits, PROMPTS[0], tmp_path / "out", max_new_tokens=1)
    assert made.forms["transformers hook"] is None
    tokens = ours.to_tokens(PROMPTS[0])
    expected = ours.run_with_hooks(tokens, fwd_hooks=Editing(ours, {}, made.resolved(ours)).hooks())
    with torch.no_grad(), hook_of(tmp_path / "out").steer(theirs):
        steered = theirs(tokens).logits
    assert torch.allclose(steered, expected, atol=2e-4)
    assert not torch.allclose(steered, ours(tokens), atol=0.05)
