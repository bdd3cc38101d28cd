"""The ordinary commands on a recurrent model: SAEs on its stream, on what it writes into its state, and on the state."""

import json

import pytest
import torch

import scope
from scope.circuits.attribution import attribute
from scope.circuits.memory_result import Memory
from scope.cli.main import run
from scope.errors import EditError
from scope.lab import Lab
from scope.sites import in_stream_space, match_sites
from scope.steering.edits.interventions import Add, Forget
from tests.help.labs import save_checkpoint
from tests.models.griffin_twins import tiny_griffin

STATE, WRITE, STREAM = "blocks.1.rec.hook_state", "blocks.1.rec.hook_write", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_tokenizer, toy_text):
    """A folder with a checkpoint, a recording of three sites, and an SAE of each; as many channels as the stream is wide."""
    folder = tmp_path_factory.mktemp("recurrent")
    model = str(save_checkpoint(tiny_griffin(toy_tokenizer, lru_width=32), folder / "checkpoint"))
    corpus = folder / "toy.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in toy_text))
    sites = f"{STATE},{WRITE},{STREAM}"
    scope.harvest(model, corpus=str(corpus), sites=sites, tokens=2000, context=32, out=folder / "recording")
    settings = {"d_sae": 48, "target_l0": 6.0, "steps": 20}
    saes = {s: scope.train(folder / "recording", site=s, out=folder / s, **settings) for s in (STATE, WRITE, STREAM)}
    return folder, model, saes


def test_states_and_writes_are_recorded_and_their_saes_fit_the_model(made):
    folder, model, saes = made
    loaded = scope.load_model(model)
    for site, sae in saes.items():
        assert sae.site == site
        assert sae.d_in == loaded.sites()[site] == 32
        recording = {"recording": folder / "recording", "contexts": 4, "random_model": False}
        scores = scope.evaluate(folder / site, model=model, certificate=False, **recording)
        assert scores["fvu"] > 0


def test_sites_are_named_by_their_ends(made):
    known = scope.load_model(made[1]).sites()
    assert match_sites("state", known) == [f"blocks.{n}.rec.hook_state" for n in (0, 1, 3)]
    assert match_sites("write, resid_mid", known) == [s for s in known if s.endswith(("hook_write", "hook_resid_mid"))]
    assert match_sites("blocks.*.rec.hook_a", known) == [f"blocks.{n}.rec.hook_a" for n in (0, 1, 3)]


def test_a_pack_shows_no_logits_for_directions_of_channels_though_there_are_as_many_as_the_stream_is_wide(made):
    folder, model, _ = made
    collected = {"recording": folder / "recording", "certificate": False, "score_prompts": 2}
    packs = {s: scope.collect_features(folder / s, model=model, out=folder / f"{s}.pack", **collected) for s in (STATE, STREAM)}
    promoted = {s: packs[s][int(packs[s].table["count"].idxmax())].promoted for s in packs}
    assert not list(promoted[STATE])
    assert list(promoted[STREAM])
    assert not in_stream_space(WRITE)
    assert in_stream_space("blocks.1.rec.hook_rec_out")


@pytest.mark.parametrize("site", [STATE, WRITE])
def test_states_and_writes_are_steered_and_every_token_is_counted_once(made, site):
    folder, model, saes = made
    steered = {"prompt": "the dog", "max_new_tokens": 5, "certificate": False}
    steered_run = scope.steer(folder / site, model=model, latent=3, strength=0.7, **steered)
    texts = {c.name: c.samples[0].text for c in steered_run.conditions}
    assert set(texts) == {"plain", "steered", "random"}
    report = next(c for c in steered_run.conditions if c.name == "steered").report
    loaded = scope.load_model(model)
    read = len(loaded.to_tokens("the dog")[0]) + 5 - 1
    assert sum(report.seen_per_step) == read
    assert sum(report.edited_per_step) == read - 1  # all but <bos>
    assert len(steered_run.promoted["latent 3"]) == 10
    assert any("as measured on these prompts" in note for note in steered_run.notes)
    asked = scope.steer(loaded, saes[site], [Add(3, 0.7)], ["the dog"], conditions=("plain", "steered", "prompt"))
    assert asked.instruction


def test_a_lab_reads_and_attributes_at_a_state(made):
    _, model, saes = made
    loaded = scope.load_model(model)
    rows = attribute(loaded, saes[STATE], "the dog runs to", method="ablation", exact=4)
    assert torch.isfinite(torch.tensor([row.value for row in rows.rows])).all()
    rows = attribute(loaded, saes[STATE], "the dog runs to", method="integrated")
    assert abs(sum(row.value for row in rows.rows) - rows.whole) < 1e-2
    with pytest.raises(EditError, match="no part of it"):
        attribute(loaded, saes[STATE], "the dog runs to", method="direct")


def test_a_pack_of_a_state_says_how_long_its_latents_last(made):
    folder, model, saes = made
    collected = {"recording": folder / "recording", "certificate": False, "score_prompts": 0}
    pack = scope.collect_features(folder / STATE, model=model, out=folder / "decay.pack", **collected)
    assert pack.decay.null is not None
    row = pack.decay.latents[0]
    assert pack[row.latent].decay == row
    assert "half-life" in repr(pack[row.latent])
    assert "half-life" in pack[row.latent]._repr_html_()
    lab = Lab(pack, saes[STATE], scope.load_model(model))
    assert len(lab.memory("the dog runs").layer(1).latents)
    run = lab.steer(Forget("dog")).compare("the dog runs", max_new_tokens=2)
    assert run["steered"].report.edits[0]["acted"] == 1
    with lab.steer(Forget("dog")) as editing:
        lab.generate("the dog runs", max_new_tokens=2)
    assert sum(editing.report().edited_per_step) == 1


def test_the_command_says_what_is_remembered_and_asks_for_needles(made, capsys, tmp_path):
    folder, model, _ = made
    files = {name: tmp_path / f"memory.{name}" for name in ("save", "csv", "html")}
    written = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert run(["memory", "the dog runs", "--model", model, "--sae", str(folder / STATE), *written]) == 0
    assert "gap of the sum" in capsys.readouterr().out
    assert Memory.load(files["save"]).text == "the dog runs"
    assert files["csv"].read_text().startswith("layer,")
    asked = ["--needle", "--model", model, "--distances", "0", "2", "--trials", "4", "--corpus", str(folder / "toy.jsonl")]
    assert run(["memory", *asked]) in (0, 2)  # the toy vocabulary may hold none of the words
    assert run(["memory", "--model", model]) == 2
    assert "Give a text" in capsys.readouterr().err


def test_a_streamed_model_remembers_the_same(made):
    _, model, _ = made
    results = [scope.memory(scope.load_model(model, streamed=streamed), "the dog runs") for streamed in (False, True)]
    assert results[0].to_frame().equals(results[1].to_frame())


def test_tokens_are_forgotten_from_the_command_line_and_the_run_is_replayed(made, capsys, tmp_path):
    _, model, _ = made
    file = str(tmp_path / "run.json")
    given = ["--model", model, "--forget", "dog", "--prompt", "the dog runs", "--max-new-tokens", "3", "--json", file]
    assert run(["steer", *given]) == 0
    assert "forget tokens of 'dog'" in capsys.readouterr().out
    assert run(["steer", "--model", model, "--replay", file]) == 0
    assert run(["steer", *given, "--latent", "3"]) == 2
