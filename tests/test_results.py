"""Every result of a measurement is a table, a figure, a page and a file, under the same four names."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import scope
from scope.errors import ConfigError
from scope.lab import Lab
from scope.result import FIGURES, Result, save_figure
from tests.conftest import random_gemma
from tests.help.labs import make_lab

FEW = {"max_new_tokens": 3, "temperature": 0.0}
MARKUP = "<script>alert(1)</script>"
BASES = {"Result", "JsonResult"}
NO_RESULTS = {"PictureExample", "PictureExamples"}
"""Classes that show themselves in a notebook and are no result of a measurement."""
ALIKE = {"PictureView"}
"""Results that take all four from a class that is tried here."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_config, toy_tokenizer, toy_text) -> Lab:
    folder = make_lab(tmp_path_factory.mktemp("results"), random_gemma(tiny_config, toy_tokenizer), toy_text)
    return scope.open(folder, certify=False)  # its dictionary is random


def _sweep(lab: Lab):
    return lab.steer(3).sweep(["the dog", "a cat"], [0.5], conditions=("plain", "steered", "random"), **FEW)


def _evaluation(lab: Lab):
    from scope.evaluation.result import Evaluation

    return Evaluation({"sae": {"fvu": 0.1, "l0": 3.0, "interval": {}}, "zero": {"fvu": 1.0, "l0": 0.0}}, {}, {}, [MARKUP])


def _certificate(lab: Lab):
    from scope.evaluation.certificate.certificate import Certificate

    tried = [{"name": MARKUP, "l0": 4.0, "fvu": 0.3}]
    return Certificate(True, "It fits.", {"l0": 3.0, "fvu": 0.2, "tokens": 9}, {"l0": 3.1}, {"fvu": 0.9}, tried)


def _match(lab: Lab):
    from scope.features.compare.partners import Match

    arrays = {"latents": np.arange(3), "partners": np.arange(3), "mutual": np.array([True, False, True])}
    numbers = {"threshold": 0.3, "share": 0.6, "share_by_chance": 0.01, "ceiling": None, "words": 9, "documents": 3}
    return Match(**arrays, correlation=np.array([0.9, 0.1, 0.5]), by_chance=np.array([0.1, 0.2, 0.1]), **numbers)


def _triggers(lab: Lab):
    from scope.retrieval.trigger_result import TriggerResult
    from scope.retrieval.triggers import Announcement, Score

    scores = {"latent": Score(0.9, 0.8), "null": Score(None, 0.0)}
    return TriggerResult(announcements=(Announcement(1, 9, 3, 0.5, (3,), scores),), notes=(MARKUP,), provenance={})


def _recall(lab: Lab):
    from scope.circuits.recall import Recall, RecallRow

    numbers = {
        "trials": 9,
        "accuracy": 0.5,
        "low": 0.3,
        "high": 0.7,
        "chance": 0.1,
        "gain": 1.0,
        "gain_low": 0.5,
        "gain_high": 1.5,
    }
    rows = tuple(RecallRow(model=MARKUP, task="needle", distance=d, **numbers) for d in (0, 4))
    return Recall(rows=rows, words=("apple", "king"), corpus="", seed=0)


def _lookahead(lab: Lab):
    from scope.features.pack.lookahead import Beyond, LatentLookahead, Lookahead

    beyond = Beyond(threshold=3.0, found=1.0, confirmed=1.0, nominal=0.1)
    numbers = {"z": 5.0, "z_held_out": 4.0, "p_held_out": 0.01, "own": 2.0, "others": 0.5}
    row = LatentLookahead(latent=3, examples=9, own_density=0.2, others_density=0.1, **numbers)
    text = {"model": MARKUP, "site": "blocks.1.hook_resid_post", "dictionary": "abc", "form": "psm"}
    counts = {"examples": 9, "documents": 9, "suffixes": 4, "permutations": 99, "seed": 0, "tested": 1}
    return Lookahead(**text, **counts, own=beyond, null=beyond, latents=(row,))


def _decay(lab: Lab):
    from scope.features.pack.decay import Decay, LatentDecay

    row = LatentDecay(latent=3, writes=9, half_life=2.0, low=1.0, high=3.0, profile=(0.7, 0.4))
    text = {"model": MARKUP, "site": "blocks.0.hook_state", "dictionary": "abc"}
    counts = {"tokens": 99, "contexts": 3, "ages": (1, 2), "kept_at": 2, "share": 0.1, "low": 0.0, "high": 0.2}
    return Decay(**text, **counts, latents=(row,))


def _memory(lab: Lab):
    from scope.circuits.memory_result import LayerMemory, Memory

    heat, two = np.array([[1.0, 0.5], [0.0, 1.0]]), np.ones(2)
    rest = {"starts": np.array([True, False]), "state_norm": two, "gap": 0.0, "latents": np.array([3]), "bias": np.ones(1)}
    sums = {"contribution": heat[None], "activation": np.ones((1, 2))}
    layer = LayerMemory(layer=0, length=heat, share=heat, written=two, lengthening=two, **rest, **sums)
    return Memory(text=MARKUP, pieces=("<bos>", MARKUP), ids=(2, 3), model="tiny", times=(0, 1), layers=(layer,))


def _diff(lab: Lab):
    from scope.diffing.result import Diff, GroupChange, Moved, SiteChange, TokenChange
    from scope.diffing.weights import WeightChange

    site = SiteChange(site="blocks.1.hook_resid_post", relative=0.1, pooled=0.1, constant=0.5, first=0.6, rank=3)
    moved = Moved(latents=1, of=2, threshold=3.0, level=0.05, redraws=9, by_chance=0.1, any_by_chance=0.05)
    columns = {"latent": [0, 1], "base": [0.5, 0.2], "tuned": [0.9, 0.2], "moved": [True, False], "z": [9.0, 0.1]}
    directions = {"blocks.1.hook_resid_post/mean": torch.ones(3)}
    return Diff(
        weights=(WeightChange(parameter="w", shape=(3, 3), relative=0.1),), sites=(site,), moved=moved, notes=(MARKUP,),
        groups=(GroupChange(group=MARKUP, tokens=9, relative=0.1),), tokens=(TokenChange(token=MARKUP, count=3, relative=0.2),),
        latents=pd.DataFrame(columns), directions=directions,
    )  # fmt: skip


def _modalities(lab: Lab):
    from scope.circuits.modalities import Modalities, WordRow

    numbers = {"pictures": 0.9, "pictures_by_chance": 0.6, "texts": 0.8, "texts_by_chance": 0.6, "frequency": 0.1}
    row = WordRow(word=MARKUP, n_pictures=9, latent=3, **numbers)
    return Modalities(rows=(row,), n_held_out=20, cosine=0.2, n_fires_on_texts=3, n_fires_on_pictures=5)


def _moderation(lab: Lab):
    from scope.moderation.verdicts import Moderation, Verdict

    return Moderation((Verdict(0, MARKUP, None, "hate", 1.0, 0.0, 9), Verdict(0, MARKUP, None, "sex", 0.0, 1.0, 9)), {})


def _tasks(lab: Lab):
    from scope.steering.harness.tasks import TaskComparison, TaskScore

    values, apart = {"plain": 0.5, "steered": 0.4, "random": 0.5}, {"steered - plain": (-0.1, -0.2, 0.0)}
    told = {"task": MARKUP, "metric": "acc", "filter": "none", "higher_is_better": True}
    score = TaskScore(**told, n=9, values=values, differences=apart)
    return TaskComparison(scores=(score,), limit=9, shots=0, harness="0.4", counts_as="prompt")


def _refusals(lab: Lab):
    from scope.moderation.refusals import Answer, Refusals

    answers = [Answer(c, MARKUP, "harmful", MARKUP, c == "plain", 0.7) for c in ("plain", "steered", "random")]
    return Refusals(answers=tuple(answers), chat=False, policy=MARKUP, moderator="tiny", notes=(MARKUP,))


def _side_effects(lab: Lab):
    from scope.workflows.side_effects import SideEffects

    steered = lab.steer(3)
    cost = steered.cost("the dog looks at the river")
    run = steered.compare("the dog", **FEW)
    return SideEffects(run=run, cost=cost, tasks=_tasks(lab), refusals=_refusals(lab), text=MARKUP)


def _contributions(lab: Lab):
    from scope.moderation.contributions import Contributions
    from scope.moderation.prompt import Item

    return Contributions(Item(MARKUP), {"hate": lab.attribute("the dog", method="direct")})


def _moderated_sweep(lab: Lab):
    from scope.moderation.moderated_sweep import ModeratedSweep
    from scope.moderation.policies import Policy

    swept = _sweep(lab)
    return ModeratedSweep(swept, Policy("hate", "No hate.", "No hate."), 0.5, "response", tuple([0.1] * len(swept.rows)), {})


def _monitor(lab: Lab):
    texts = [{"text": f"{MARKUP} the {'dog' if i % 2 else 'moon'} counts {i}", "label": i % 2} for i in range(80)]
    return scope.fit_monitor(
        texts, difference=True, aggregation="max", nulls=1, fpr=0.1, model=lab.pack.model.name, site=lab.pack.site
    )


def _monitor_run(lab: Lab):
    from scope.monitor.run import MonitorRun, Scored

    row = {"text": MARKUP, "threshold": 0.5, "probability": 0.7, "token": "the", "position": 1, "pieces": ("<bos>", MARKUP)}
    return MonitorRun((Scored(score=1.0, alarm=True, values=(None, 1.0), **row),), _monitor(lab))


def _picture(name: str):
    from PIL import Image

    from scope.circuits import picture_attribution_result
    from scope.circuits.attribution_result import Row

    row = {
        "prompt": MARKUP,
        "pieces": ("p0", "p1", "p2", "p3", "the"),
        "token": " a",
        "other": " b",
    }
    sums = {
        "method": "integrated",
        "site": "s",
        "logit_difference": 1.0,
        "whole": 1.0,
        "whole_is": "",
        "gap": 0.0,
        "p_token": 0.5,
        "p_other": 0.1,
    }
    arrays = {"effects": np.ones((5, 1)), "activations": np.ones((5, 1)), "nulls": np.ones((5, 1)), "errors": np.zeros(5)}
    boxes = tuple((x, y, x + 8, y + 8) for y in (0, 8) for x in (0, 8))
    return getattr(picture_attribution_result, name)(
        **row, **sums, **arrays, rows=(Row(name="latent 3", value=5.0, latent=3, activation=1.0, n_active=5),), answer="",
        picture=Image.new("RGB", (16, 16)), grid=(2, 2), boxes=boxes, latents=(3,), patch_rows=(0, 1, 2, 3), ablation=None,
        provenance={},
    )  # fmt: skip


class _Index:
    """What a result of `scope.pages` draws itself with."""

    @staticmethod
    def shown(page: int, longest: int = 448):
        from PIL import Image

        return Image.new("RGB", (16, 16))

    class model:
        @staticmethod
        def patch_boxes(size):
            return [(x, y, x + 8, y + 8) for y in (0, 8) for x in (0, 8)]


def _hits(lab: Lab):
    from scope.pages.hits import Hit, Hits

    hits = tuple(Hit(rank=i + 1, page=i, name=MARKUP, score=2.0 - i) for i in range(2))
    return Hits(query=MARKUP, hits=hits, n_pages=2, asked=5, median=1.0, index=_Index)


def _maps(lab: Lab):
    from scope.pages.maps import SimilarityMaps

    values, text = np.arange(8.0).reshape(2, 2, 2), np.ones((2, 1))
    names = {"query": MARKUP, "pieces": (MARKUP, "dog"), "page": 0, "name": MARKUP, "text_pieces": ("<bos>",)}
    return SimilarityMaps(values=values, text=text, **names, index=_Index)


def _explanation(lab: Lab):
    from scope.pages.explanation import Explanation

    pairs = {"token": [0, 0, 1], "position": [0, 0, 3], "query_latent": [3, -1, 4], "page_latent": [5, 6, -2]}
    names = {"query": MARKUP, "pieces": (MARKUP, "dog"), "page": 0, "name": MARKUP, "site": "s", "query_site": "s"}
    return Explanation(
        **{name: np.array(value) for name, value in pairs.items()}, **names, value=np.array([1.0, 0.5, 0.25]), score=1.75,
        rounding=np.zeros(2), smaller=0.0, grid=(2, 2), first_patch=0, page_pieces=("<image>",) * 4, index=_Index,
    )  # fmt: skip


def _suppressed(lab: Lab):
    from scope.pages.suppress import Suppressed

    ranks = {"random_ranks": np.array([[1, 2]]), "random_latents": ((4,),), "rates": (0.1,), "seed": 0}
    scores = {"before": np.array([2.0, 1.0]), "after": np.array([1.0, 2.0])}
    return Suppressed(query=MARKUP, latents=(3,), site="s", names=(MARKUP, "b"), **scores, **ranks)


def _firing(lab: Lab):
    from scope.pages.firing import Firing

    return Firing(site=MARKUP, n_pages=2, n_vectors=9, pages=np.ones(3), vectors=np.ones(3), mean=np.ones(3))


def _weights(lab: Lab):
    from scope.pages.weigh import Weight, Weights

    rows = (Weight(condition=MARKUP, share=0.5, nbytes=9, ndcg=0.5, random=(0.4, 0.3)),)
    return Weights(rows=rows, chance=0.1, n_pages=2, n_queries=1, unanswered=0, everywhere=(), dead=0, seed=0)


SAMPLES: dict[str, Callable[[Lab], Any]] = {
    "Attribution": lambda lab: lab.attribute("the dog", method="gradient"),
    "Certificate": _certificate,
    "Contributions": _contributions,
    "Cost": lambda lab: lab.steer(3).cost("the dog looks at the river"),
    "Decay": _decay,
    "Diff": _diff,
    "Effects": lambda lab: lab.effects(3, "the dog", nulls=1),
    "Evaluation": _evaluation,
    "Explanation": _explanation,
    "FeatureCard": lambda lab: lab[int(lab.best(1, words=False).index[0])],
    "Firing": _firing,
    "Hits": _hits,
    "LogitLens": lambda lab: lab.logit_lens("the dog"),
    "Lookahead": _lookahead,
    "Match": _match,
    "MatchAttribution": lambda lab: _picture("MatchAttribution"),
    "Memory": _memory,
    "Modalities": _modalities,
    "ModeratedSweep": _moderated_sweep,
    "Moderation": _moderation,
    "Monitor": _monitor,
    "MonitorRun": _monitor_run,
    "Patching": lambda lab: lab.patch("the boat", "the moon", nulls=1),
    "PictureAttribution": lambda lab: _picture("PictureAttribution"),
    "Recall": _recall,
    "SimilarityMaps": _maps,
    "Refusals": _refusals,
    "SideEffects": _side_effects,
    "SteeringRun": lambda lab: lab.steer(3).compare("the dog", **FEW),
    "Suppressed": _suppressed,
    "Sweep": _sweep,
    "TaskComparison": _tasks,
    "TokenView": lambda lab: lab.read("the dog"),
    "TriggerResult": _triggers,
    "Weights": _weights,
}


def _classes() -> dict[str, tuple[set[str], set[str]]]:
    """Class -> (its bases, its methods), of every module of scope but the command line and the rooms that have their own."""
    root, classes = Path(scope.__file__).parent, {}
    for file in root.rglob("*.py"):
        if file.relative_to(root).parts[0] not in ("cli", "pretrain"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                    known = classes.get(node.name, (set(), set()))  # a command's settings may have a result's name
                    classes[node.name] = known[0] | bases, known[1] | methods
    return classes


def test_every_class_with_a_table_or_a_notebook_view_is_a_result_that_is_tried_here():
    classes = _classes()

    def is_result(name: str) -> bool:
        return name == "Result" or any(map(is_result, classes[name][0] & classes.keys()))

    shown = {name for name, (_, methods) in classes.items() if methods & {"to_frame", "_repr_html_"}}
    results = {name for name in classes if is_result(name)}
    assert shown - BASES - NO_RESULTS <= results
    assert results - BASES - ALIKE == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_result_is_a_table_a_figure_a_page_and_a_file(lab, name, tmp_path, monkeypatch):
    monkeypatch.setattr("plotly.io._html.get_plotlyjs", lambda: "/* five megabytes */")
    result = SAMPLES[name](lab)
    assert type(result).__name__ == name
    frame = result.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame)
    assert frame.columns.is_unique
    assert len(result.plot().data)
    html = result.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == html
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert MARKUP not in html
    for suffix in (".csv", ".html"):
        file = tmp_path / "new" / f"result{suffix}"
        assert result.save(file) == file
        assert file.stat().st_size
    assert len(pd.read_csv(tmp_path / "new" / "result.csv")) == len(frame)
    own = result.save(tmp_path / ("folder" if name == "Diff" else "own.json"))
    assert own.exists()


def test_a_formula_in_a_text_is_no_formula_in_the_table(tmp_path):
    class Formula(Result):
        def to_frame(self):
            return pd.DataFrame({"text": ["=1+1", "dog"], "value": [-1.0, 2.0]})

    file = Formula().save(tmp_path / "t.csv")
    assert file.read_text().splitlines() == ["text,value", "'=1+1,-1.0", "dog,2.0"]


@pytest.mark.parametrize("suffix", FIGURES)
def test_a_figure_without_what_draws_it_is_refused_with_the_way_out(tmp_path, suffix):
    class Undrawn:
        def to_image(self, **how):
            raise ValueError("Image export requires the Kaleido package.")

    with pytest.raises(ConfigError, match="pip install kaleido"):
        save_figure(Undrawn(), tmp_path / f"figure{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FIGURES)
def test_a_figure_is_drawn_in_the_format_of_its_name(tmp_path, suffix, monkeypatch):
    class Drawn(Result):
        def plot(self):
            class Figure:
                def to_image(self, format, scale):
                    return f"a {format}".encode()

            return Figure()

    assert Drawn().save(tmp_path / f"figure{suffix}").read_text() == f"a {suffix[1:]}"
