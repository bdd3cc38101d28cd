import math
import zlib

import pytest
import torch

from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.scores import Scores, distinct, judge, typical_pmi, zipped
from scope.steering.compare.steer import steer
from scope.steering.compare.text_scorer import moved
from scope.steering.edits.interventions import Add
from tests.steering.conftest import SITE

SHORT = SamplingConfig(max_new_tokens=8, temperature=1.0, top_p=None, repetition_penalty=1.0)


def test_different_pairs_are_counted():
    assert distinct([1, 2, 3, 4]) == 1
    assert distinct([1, 2] * 4) == pytest.approx(2 / 7)
    assert distinct([1]) is None


def test_text_that_repeats_itself_zips_better():
    assert zipped("abc" * 50) == len(zlib.compress(b"abc" * 50, 9)) / 150
    assert zipped("abc" * 50) < zipped("the quick brown fox jumps over the lazy dog and then runs away from it all")
    assert zipped("") is None


def test_a_latent_has_moved_if_its_mean_did_by_three_standard_errors():
    before = torch.zeros(8, 5)
    after = before.clone()
    after[:, 1] = 0.5  # always
    after[0, 2] = 4.0  # once: its mean rose as much, by chance perhaps
    after[:, 3] = torch.tensor([1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.0])
    after[:, 4] = torch.tensor([1.0, -1.0] * 4)
    assert moved(before, after).tolist() == [False, True, False, True, False]
    assert not moved(before[:1], after[:1]).any()


def test_off_target_counts_the_unedited_latents_that_moved_on_the_same_text(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), "the dog", SHORT, strength_units=units)
    assert run["plain"].samples[0].scores.off_target == 0
    (sample,) = run["steered"].samples
    n = len(sample.new_ids)
    x = tiny_model.record(torch.tensor([sample.prompt_ids + sample.new_ids]), [SITE])[SITE][0, -n:]
    unit = sae.W_dec[3] / sae.W_dec[3].norm()
    found = moved(sae.encode(x), sae.encode(x + 4.0 * unit))
    found[3] = False
    assert sample.scores.off_target == int(found.sum()) > 0


def test_pmi_is_what_the_prompt_adds_to_the_texts_log_probability(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), "the dog runs", SHORT, strength_units=units)
    (sample,) = run["steered"].samples
    said = torch.tensor(sample.new_ids)

    def log_p(before):
        logits = tiny_model(torch.tensor([[*before, *sample.new_ids]]))[0].detach().log_softmax(-1)
        return logits[len(before) - 1 : -1].gather(1, said[:, None]).mean()

    expected = log_p(sample.prompt_ids) - log_p([tiny_model.cfg.bos])
    assert sample.scores.pmi == pytest.approx(float(expected), abs=1e-5)


def sample(share=0.0, log_prob=-2.0, repetition=0.0, zipped=1.0, pmi=0.5, concept=0.0) -> Scores:
    target = {"latent 3": share}
    return Scores(
        log_prob=log_prob,
        repetition=repetition,
        kl=0.0,
        concept={"latent 3": concept},
        active=target,
        share=target,
        mass=target,
        readings={},
        kl_steps=[],
        distinct=1.0,
        zipped=zipped,
        pmi=pmi,
        off_target=0,
    )


def test_the_score_is_the_harmonic_mean_of_concept_relevance_and_fluency():
    plain = sample(share=0.1)
    judged = judge(sample(share=0.6, log_prob=-3.0, repetition=0.2, zipped=0.5, pmi=0.25), plain, 0.5, "latent 3")
    fluency = math.exp(-1) * 0.8 * 0.5
    assert judged.concept == pytest.approx(0.5)
    assert judged.relevance == pytest.approx(0.5)
    assert judged.fluency == pytest.approx(fluency)
    assert judged.score == pytest.approx(3 / (1 / 0.5 + 1 / 0.5 + 1 / fluency))


def test_plain_text_scores_zero_and_likelier_text_is_not_more_fluent_than_plain():
    plain = sample(share=0.3)
    assert judge(plain, plain, 0.5, "latent 3").score == 0
    assert judge(sample(share=0.5, log_prob=-0.1, zipped=2.0), plain, 0.5, "latent 3").fluency == 1


def test_where_the_prompt_says_nothing_relevance_is_unknown_and_the_other_two_count():
    judged = judge(sample(share=0.5), sample(), -0.1, "latent 3")
    assert judged.relevance is None
    assert judged.score == pytest.approx(2 / (1 / 0.5 + 1))
    assert typical_pmi([sample(pmi=0.2), sample(pmi=0.4)]) == pytest.approx(0.3)
    assert typical_pmi([None]) is None


def test_the_concept_may_be_read_by_the_latent_itself_instead():
    judged = judge(sample(share=0.0, concept=0.4), sample(), None, "latent 3", by="concept")
    assert judged.concept == pytest.approx(0.4)
