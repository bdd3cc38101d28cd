"""Several processes make the pack of one, to the last bit; what one finished another takes up."""

import threading

import pytest
from scope.activations.harvest.ranks import ProcessRank

from scope.errors import PackError
from scope.features.collect import build_folder, first_pass, scoring, share
from scope.features.collect.config import CollectConfig
from tests.conftest import random_gemma
from tests.features.test_collect import SIZES, toy_contexts, toy_sae  # noqa: F401
from tests.features.test_resume import same
from tests.features.toy_pack import collect

CONFIG = CollectConfig(chunk_tokens=200, sizes=SIZES, score_prompts=1, score_null=4)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Three blocks of the 48 latents; sums are rounded by block, so what is compared has blocks of one size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BLOCK", 16)
        yield


@pytest.fixture(scope="module")
def lab(tiny_config, toy_tokenizer, toy_contexts):  # noqa: F811
    """Makers of equal models and dictionaries, one for each process; and the text."""

    def make():
        model = random_gemma(tiny_config, toy_tokenizer)
        return model, toy_sae(model)

    return make, toy_contexts[:40]


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory):
    make, contexts = lab
    return collect(*make(), contexts, CONFIG, tmp_path_factory.mktemp("whole") / "pack")


def test_three_processes_make_the_pack_of_one_and_each_encodes_its_share(lab, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(build_folder, "_POLL", 0.005)
    encoded, scored, names = {}, {}, {}
    encode, score = first_pass.encode, scoring.score_block

    def counted(sae, source, a, b):
        encoded.setdefault(names[threading.get_ident()], []).append(a)
        return encode(sae, source, a, b)

    def counted_score(model, sae, plan, number):
        scored.setdefault(names[threading.get_ident()], []).append(number)
        return score(model, sae, plan, number)

    monkeypatch.setattr(share, "encode", counted)
    monkeypatch.setattr(first_pass, "encode", counted)
    monkeypatch.setattr(scoring, "score_block", counted_score)
    make, contexts = lab
    packs, labs = {}, [make() for _ in range(3)]

    def work(rank):
        names[threading.get_ident()] = rank
        packs[rank] = collect(*labs[rank], contexts, CONFIG, tmp_path / "pack", ranks=ProcessRank(rank, 3))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert packs[1] is None
    assert packs[2] is None
    assert same(packs[0], whole)
    assert sorted(a for some in encoded.values() for a in some) == list(range(0, 40, 6))
    assert {rank: len(some) for rank, some in encoded.items()} == {0: 3, 1: 2, 2: 2}
    assert scored == {0: [0], 1: [1], 2: [2]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pack"]


def test_what_processes_left_unfinished_one_alone_finishes(lab, whole, tmp_path, monkeypatch):
    make, contexts = lab
    monkeypatch.setattr(build_folder, "PATIENCE", 0.01)  # the other process never comes
    shared = collect(*make(), contexts, CONFIG, tmp_path / "pack", ranks=ProcessRank(0, 2))
    assert same(shared, whole)


def test_a_process_whose_first_never_begins_says_so(lab, tmp_path, monkeypatch):
    make, contexts = lab
    monkeypatch.setattr(build_folder, "PATIENCE", 0.01)
    with pytest.raises(PackError, match="has not begun"):
        collect(*make(), contexts, CONFIG, tmp_path / "pack", ranks=ProcessRank(1, 2))


def test_output_scores_that_were_finished_are_taken_up_by_the_next_run(lab, whole, tmp_path, monkeypatch):
    make, contexts = lab

    def stop(done, total, numbers):
        if "output scores" in numbers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(*make(), contexts, CONFIG, tmp_path / "pack", stop)
    asked, score = [], scoring.score_block
    monkeypatch.setattr(scoring, "score_block", lambda *given: asked.append(given[-1]) or score(*given))
    assert same(collect(*make(), contexts, CONFIG, tmp_path / "pack"), whole)
    assert asked == [1, 2]
