"""lm-evaluation-harness on our models: what its own HFLM scores on the same weights, and edits that act in it."""

import json
from pathlib import Path

import pytest
import torch

from scope.errors import ConfigError
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.interventions import Add, Clamp
from scope.steering.harness.language_model import harness_model
from scope.steering.harness.tasks import TaskComparison, _refuse_unknown, compare_on_tasks
from tests.models.twins import SHAPES, twins
from tests.steering.conftest import SITE, random_sae

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [("the dog runs to", " the river"), ("my sister", " counts 12 apples. a cat"), ("", "the old king"), ("the ", "moon")]
LONG = ". ".join(["the dog runs to the river"] * 20)


@pytest.fixture(scope="module")
def both(tmp_path_factory, toy_tokenizer):
    """(our model, the harness's HFLM of transformers' model) of one folder."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("twins")
    ours, theirs = twins(SHAPES["several kv heads, low caps"], folder, toy_tokenizer)
    return ours, HFLM(pretrained=theirs, tokenizer=str(folder), batch_size=2, max_length=ours.cfg.n_ctx)


def requests(kind: str, arguments: list) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def write_tasks(folder: Path) -> Path:
    """A multiple choice, a text whose perplexity is asked, and a generation, with their data in files."""
    rows = [
        {
            "question": f"the dog {verb}",
            "choices": [" the river", " a value", " nothing"],
            "answer": i % 3,
            "text": f"{LONG[: 30 + i]}",
        }
        for i, verb in enumerate(
            ["runs to", "looks at", "breaks", "asks for", "counts", "returns", "sails over", "sings about"]
        )
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"""dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "rows.jsonl"}
test_split: test
"""
    (folder / "choice.yaml").write_text(
        f"""task: toy_choice
{data}output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
    )
    (folder / "rolling.yaml").write_text(
        f"""task: toy_rolling
{data}output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
"""
    )
    (folder / "write.yaml").write_text(
        f"""task: toy_write
{data}output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "river"
generation_kwargs:
  until: ["."]
  max_gen_toks: 5
metric_list:
  - metric: exact_match
"""
    )
    return folder


def test_log_likelihoods_are_those_of_the_harness_on_transformers(both):
    ours, theirs = both
    mine = harness_model(ours, batch_size=3)
    arguments = [*PAIRS, (LONG, " the moon")]
    pairs = zip(
        mine.loglikelihood(requests("loglikelihood", arguments)),
        theirs.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True),
        strict=True,
    )
    for (score, greedy), (reference, as_well) in pairs:
        assert score == pytest.approx(reference, abs=1e-4)
        assert greedy == as_well
    texts = [("the dog runs",), (LONG,)]
    rolled = mine.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    reference = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert rolled == pytest.approx(reference, abs=1e-4)


def test_what_is_written_is_what_the_harness_lets_transformers_write(both):
    ours, theirs = both
    settings = {"until": [".", "king"], "max_gen_toks": 6, "do_sample": False}
    arguments = [(text, settings) for text in ("the dog runs to", "my", LONG)]
    mine = harness_model(ours, batch_size=2).generate_until(requests("generate_until", arguments))
    assert mine == theirs.generate_until(requests("generate_until", arguments), disable_tqdm=True)
    with pytest.raises(ConfigError, match="context holds"):
        harness_model(ours).generate_until(requests("generate_until", [("my", {"max_gen_toks": 4000})]))


def test_edits_act_on_a_request_as_they_do_while_the_model_writes(both):
    ours, _ = both
    units = {SITE: StrengthUnits(8.0, "given")}
    sae = random_sae()

    def hooks(positions: str) -> list:
        return Editing(ours, {SITE: sae}, [resolve(Add(3, 0.8, positions=positions), {SITE: sae}, units)]).hooks()

    context, rest = PAIRS[1]
    ids = ours.words.encode(context + rest)
    start = len(ours.words.encode(context))
    push = sae.W_dec[3] * (0.8 * 8.0 / float(sae.W_dec[3].norm()))
    where = {"generated": range(start, len(ids)), "prompt": range(1, start), "not_bos": range(1, len(ids))}
    for rule, places in where.items():

        def by_hand(x, hook, places=tuple(places)):
            x = x.clone()
            x[:, list(places)] += push
            return x

        log_p = ours.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(SITE, by_hand)])[0].log_softmax(-1)
        expected = sum(float(log_p[at - 1, ids[at]]) for at in range(start, len(ids)))
        ((score, _),) = harness_model(ours, hooks(rule)).loglikelihood(requests("loglikelihood", [(context, rest)]))
        assert score == pytest.approx(expected, abs=1e-4)
    text = [("the dog runs",)]
    plain = harness_model(ours).loglikelihood_rolling(requests("loglikelihood_rolling", text))
    for counts_as, changed in (("prompt", False), ("generated", True)):
        model = harness_model(ours, hooks("generated"), texts_count_as=counts_as)
        assert (model.loglikelihood_rolling(requests("loglikelihood_rolling", text)) != plain) == changed


def test_tasks_of_a_folder_are_compared_sample_by_sample(both, tmp_path):
    ours, theirs = both
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    folder, sae, seen = write_tasks(tmp_path), random_sae(), []
    resolved = [resolve(Clamp(3, 30.0), {SITE: sae}, {SITE: StrengthUnits(8.0, "given")})]
    arms = {
        "plain": [],
        "steered": Editing(ours, {SITE: sae}, resolved).hooks(),
        "random": Editing(ours, {SITE: sae}, resolved, control=0).hooks(),
    }
    names = ["toy_choice", "toy_rolling", "toy_write"]
    made = compare_on_tasks(
        ours, arms, names, include_path=folder, limit=6, on_progress=lambda done, total, numbers: seen.append((done, total))
    )
    assert seen[-1] == (90, 90)  # 6 samples: 3 choices, a text, a generation; three conditions
    scores = {score.task: score for score in made.scores}
    assert list(scores) == names
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    reference = evaluate(theirs, manager.load(names), limit=6, bootstrap_iters=0)["results"]
    assert scores["toy_choice"].values["plain"] == reference["toy_choice"]["acc,none"]
    assert scores["toy_rolling"].values["plain"] == pytest.approx(reference["toy_rolling"]["word_perplexity,none"], rel=1e-5)
    assert scores["toy_write"].values["plain"] == reference["toy_write"]["exact_match,none"]
    choice = scores["toy_choice"]
    mean, low, high = choice.differences["steered - plain"]
    assert mean == pytest.approx(choice.values["steered"] - choice.values["plain"])
    assert low <= mean <= high
    assert choice.n == 6
    assert choice.higher_is_better
    assert scores["toy_rolling"].values["steered"] != scores["toy_rolling"].values["plain"]
    made.save(tmp_path / "tasks.json")
    assert str(TaskComparison.load(tmp_path / "tasks.json")) == str(made)
    with pytest.raises(ConfigError, match=r"no task 'toy_choise'. Nearest: toy_choice"):
        _refuse_unknown(["toy_choise"], manager)
    with pytest.raises(ConfigError, match="There is no folder"):
        compare_on_tasks(ours, arms, ["toy_choice"], include_path=tmp_path / "none")
