"""Fitting: what a monitor finds, its nulls, what is refused, and the folder it is written into."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import scope
from scope.errors import ConfigError, DictionaryError, ScopeError, UnknownSite
from scope.monitor.card import card
from scope.monitor.files import read
from scope.monitor.labelled import MonitorError
from scope.monitor.statistics import Rate
from scope.steering.edits.directions import Direction
from tests.conftest import random_gemma
from tests.help.labs import save_checkpoint
from tests.monitor.conftest import rows
from tests.steering.conftest import SITE

FEW = {"nulls": 1, "fpr": 0.1}


@pytest.fixture(scope="module")
def place(checkpoint):
    return {"model": str(checkpoint), "site": SITE}


def score(monitor, name):
    return next(s for s in monitor.scores if s.name == name)


def test_a_probe_is_above_its_nulls_on_texts_that_it_has_not_seen(folder):
    monitor = scope.open_monitor(folder)
    assert monitor.scores[0].auc > 0.95
    for null in ("shuffled labels", "random direction", "length"):
        assert score(monitor, null).difference > 0.1
    assert score(monitor, "bag of words").auc == pytest.approx(1, abs=0.02)  # the word itself tells
    assert "bag of words" in monitor.beaten_by()
    assert {s.name: s.positive + s.negative for s in monitor.splits} == {"train": 80, "validation": 40, "test": 40}
    assert monitor.cost.layers == 2
    assert 0 < monitor.cost.flops < monitor.cost.model_flops
    assert monitor.validation_fpr.share <= monitor.fpr
    assert sum(g.n for g in monitor.groups) == 40
    assert sum(choice.chosen for choice in monitor.choices) == 1


def test_shuffled_training_labels_leave_nothing_and_the_same_call_gives_the_same_monitor(place):
    labels = np.random.default_rng(0).permutation([r["label"] for r in rows(100)])
    shuffled = [r | {"label": bool(label)} for r, label in zip(rows(100), labels, strict=True)]
    one, two = (scope.fit_monitor(shuffled, difference=True, aggregation="max", **place, **FEW) for _ in range(2))
    assert one.scores[0].interval.low < 0.5
    assert "not shown to be better" in card(one)
    assert replace(one, cost=two.cost) == two


def test_latents_are_chosen_on_the_training_texts_and_one_alone_scores_as_its_activation(checkpoint, sae_folder, model):
    monitor = scope.fit_monitor(rows(100), latents="auto", sae=str(sae_folder), model=str(checkpoint), aggregation="max", **FEW)
    assert monitor.site == SITE
    assert len(monitor.latents) in (1, 4, 16)
    assert {s.name for s in monitor.scores} >= {"random latents", "random direction", "bag of words"}
    assert monitor.dictionary["parameters_sha256"]
    latent = int(monitor.latents[0])
    alone = scope.fit_monitor(rows(100), latents=[latent], sae=str(sae_folder), model=str(checkpoint), aggregation="max", **FEW)
    sae = scope.load_sae(sae_folder).requires_grad_(False)
    acts = sae.encode(model.record(model.to_tokens(alone.check[0].text), [SITE])[SITE][0])[1:, latent]
    assert alone.check[0].score in (pytest.approx(float(acts.max()), abs=1e-4), pytest.approx(float(-acts.min()), abs=1e-4))


def test_a_direction_gets_the_sign_of_the_training_texts_and_groups_stay_together(folder, place, tmp_path):
    vector = -read(folder)[1]["weight"][:, 0].numpy()
    Direction(tuple(map(float, vector)), SITE, "turned").save(tmp_path / "turned.safetensors")
    settings = {"aggregation": scope.open_monitor(folder).aggregation, "by_group": True, "model": place["model"], **FEW}
    monitor = scope.fit_monitor(rows(), direction=tmp_path / "turned.safetensors", **settings)
    assert monitor.scores[0].auc > 0.7
    assert (monitor.direction, monitor.site) == ("turned", SITE)
    assert 0 < len(monitor.groups) < 7


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"probe": True, "fpr": 0.001},
            MonitorError,
            r"0\.100% cannot be set with 20 negative[\s\S]*--fpr 0\.05 or more",
        ),
        ({"probe": True, "fpr": 1.5}, ConfigError, "between 0 and 1"),
        ({"probe": True, "difference": True}, ConfigError, "one of these and not --probe and --difference"),
        ({}, ConfigError, "Say what the monitor reads"),
        ({"latents": "3"}, ConfigError, "Whose latents"),
        ({"latents": "3,x", "sae": "SAE"}, ConfigError, "numbers with commas"),
        ({"latents": [99], "sae": "SAE"}, MonitorError, "no latent 99"),
        ({"latents": [1], "sae": "SAE", "site": "blocks.0.hook_resid_pre"}, ConfigError, "This SAE reads"),
        ({"probe": True, "site": "blocks.9.hook_resid_post"}, ConfigError, r"no site of this model[\s\S]*Nearest"),
        ({"probe": True, "site": None}, ConfigError, "Which site"),
        ({"probe": True, "model": None}, ConfigError, "Which model"),
        ({"probe": True, "nulls": 0}, ConfigError, "at least 1"),
        ({"probe": True, "chat": True}, ScopeError, "chat template"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(place, sae_folder, settings, error, message):
    if settings.get("sae"):
        settings = {"site": None} | settings | {"sae": str(sae_folder)}
    with pytest.raises(error, match=message):
        scope.fit_monitor(rows(), **(place | settings))


def test_texts_that_exceed_the_context_are_cut_and_counted(place):
    long = [r | {"text": r["text"] + " the moon" * 80} for r in rows(100)]
    monitor = scope.fit_monitor(long, difference=True, aggregation="mean", **place, **FEW)
    assert monitor.notes[-1] == "100 texts are longer than 64 tokens; only their beginnings were read."
    assert monitor.context == 64


def test_a_folder_is_written_whole_never_over_another_and_read_back(folder, place, tmp_path, monkeypatch):
    assert sorted(f.name for f in folder.iterdir()) == ["card.md", "monitor.json", "score.py", "weights.safetensors"]
    with pytest.raises(ConfigError, match="is there already"):
        scope.fit_monitor(rows(), probe=True, out=folder, **place)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scope.monitor.files.card", fail)
    with pytest.raises(KeyboardInterrupt):
        scope.fit_monitor(rows(100), difference=True, aggregation="max", out=tmp_path / "killed", **place, **FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("monitor.json", '"threshold"', '"threshhold"', "missing required field `threshold`"),
        ("monitor.json", '"aggregation": "', '"aggregation": "x', "no aggregation"),
        ("monitor.json", '"schema": 1', '"schema": 2', "this version reads 1"),
        ("monitor.json", "{", "[", "damaged"),
        ("weights.safetensors", "F32", "F64", "is not the file"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, file, old, new, message):
    broken = shutil.copytree(folder, tmp_path / "broken")
    data = (broken / file).read_bytes()
    (broken / file).write_bytes(data.replace(old.encode(), new.encode(), 1))
    with pytest.raises(MonitorError, match=message):
        scope.open_monitor(broken)
    with pytest.raises(MonitorError, match="is no monitor"):
        scope.open_monitor(tmp_path)


def test_texts_are_scored_as_they_were_when_the_threshold_was_set(folder, checkpoint):
    run = scope.run_monitor(folder, texts=[r["text"] for r in rows()])
    frame = run.to_frame()
    river = np.array([r["label"] for r in rows()])
    assert frame["alarm"][river].mean() > 0.9 > 0.2 > frame["alarm"][~river].mean()
    assert ((frame["score"] > run.monitor.threshold) == frame["alarm"]).all()
    assert frame["probability"][river].mean() > 0.8
    one = scope.run_monitor(folder, text=rows()[0]["text"]).rows[0]
    assert one.score == pytest.approx(frame["score"][0], abs=1e-5)
    counted = [v for v in one.values if v is not None]
    assert one.values[0] is None
    assert one.pieces[one.position] == one.token
    monitor = run.monitor
    assert one.score == pytest.approx(
        {"max": max, "mean": np.mean, "last": lambda v: v[-1]}[monitor.aggregation](counted), abs=1e-5
    )


def test_empty_and_long_texts_and_markup_are_scored_and_said(folder):
    run = scope.run_monitor(folder, texts=["", "<script>alert(1)</script>", "the river " * 90])
    empty, markup, long = run.rows
    assert (empty.score, empty.alarm, empty.token) == (None, None, None)
    assert long.cut > 0
    assert "<script>alert" not in run._repr_html_()
    assert f"{long.cut:,} tokens at the end were not read" in run._repr_html_()
    assert markup.score is not None
    with pytest.raises(MonitorError, match="no text to score"):
        scope.run_monitor(folder)


def test_another_model_or_site_is_refused_unless_allowed(folder, tmp_path, tiny_config, toy_tokenizer, sae_folder):
    other = save_checkpoint(random_gemma(tiny_config, toy_tokenizer, seed=1), tmp_path / "other")
    with pytest.raises(MonitorError, match=r"fitted to another model[\s\S]*weights: fitted to"):
        scope.run_monitor(folder, text="a", model=str(other))
    notes = []
    assert scope.run_monitor(folder, text="the dog", model=str(other), any_model=True, on_note=notes.append).rows[0].score
    assert "do not hold here" in notes[0]
    broken = shutil.copytree(folder, tmp_path / "elsewhere")
    file = broken / "monitor.json"
    file.write_text(file.read_text().replace(f'"site": "{SITE}"', '"site": "blocks.9.hook_resid_post"'))
    with pytest.raises(UnknownSite):
        scope.run_monitor(broken, text="a")
    with pytest.raises(DictionaryError):
        scope.fit_monitor(rows(), latents=[1], sae=str(sae_folder), model=str(other))


def test_the_card_says_everything_beside_its_null(folder):
    text = (folder / "card.md").read_text()
    for part in (
        "bag of words",
        "shuffled labels",
        "random direction",
        "at worst",
        "1 in 1,000",
        "calibration",
        "| the dog |",
        "Seed 0",
    ):
        assert part in text
    assert str(folder.parent) not in text


def test_few_test_texts_without_a_false_alarm_do_not_promise_right_alarms(folder):
    monitor, _ = read(folder)
    spotless = replace(monitor, scores=(replace(monitor.scores[0], tpr=Rate.of(8, 8), fpr=Rate.of(0, 9)), *monitor.scores[1:]))
    assert spotless.precision(0.001) == 1
    assert spotless.precision_at_worst(0.001) == pytest.approx(0.00226, abs=1e-4)  # 67.6 % caught, 29.9 % false alarms


def test_the_weights_are_those_of_one_readout(folder):
    _, weights = read(folder)
    assert {name: tuple(t.shape) for name, t in weights.items()} == {"weight": (32, 1), "bias": (1,)}
    assert weights["weight"].dtype == torch.float32
