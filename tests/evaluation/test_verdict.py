"""Numbers in, a verdict out: no reading is named as the right one that explains little, and one line judges an evaluation."""

import pytest

from scope.evaluation.caveats import verdict
from scope.evaluation.certificate.verdict import judge


def said(left: float, **declared: float) -> str:
    measured = {"l0": 20.0, "fvu": 1.47}
    tried = [{"name": "it reads elsewhere", "site": "b", "remedy": "mend it", "l0": 20.0, "fvu": left}]
    fits, words, _, _ = judge(measured, declared, {"fvu": 0.7}, tried, measured)
    assert not fits
    return words


def test_a_reading_explains_an_undeclared_dictionary_only_where_little_is_left():
    assert "no other reading explains it (the best that was tried leaves FVU 0.886)" in said(0.886)
    assert said(0.2).startswith("it reads elsewhere")
    assert said(0.2, fvu=0.1).startswith("it reads elsewhere")
    assert "no other reading explains it" in said(0.4, fvu=0.1)


def test_on_other_text_only_another_reading_refuses_a_dictionary_and_its_numbers_are_noted():
    measured = {"l0": 3.0, "fvu": 0.95}
    other = {"name": "it reads elsewhere", "site": "b", "remedy": "mend it", "l0": 3.0}
    declared = {"l0": 20.0, "fvu": 0.1}
    for left, fitting in ((0.8, True), (0.2, False)):
        tried = [other | {"fvu": left}]
        assert not judge(measured, declared, {"fvu": 0.97}, tried, measured)[0]
        fits, words, notes, _ = judge(measured, declared, {"fvu": 0.97}, tried, measured, other_text=True)
        assert fits is fitting
        assert "FVU is 0.95" in " ".join([words, *notes])


def scored(zero: float | None = 0.97, mean: float = 0.9, fvu: float = 0.1, dead: float = 0.03, **more) -> tuple[dict, dict]:
    """Conditions and latents of an evaluation, as far as they are judged."""
    sae = {"fvu": fvu, "l0": 64.4, "recovered_vs_zero": zero, "recovered_vs_mean": mean}
    nulls = {"random": {"fvu": 0.6}, "pca": {"fvu": 0.3}, "zero": {"fvu": 1.2}, "mean": {"fvu": 1.0}}
    return {"sae": sae} | nulls | more, {"never_fired": dead, "dense": 0.0, "dense_above": 0.1}


WORDS = {
    "Usable: keeps 97% of the loss that zero ablation costs, L0 64, 3% never fired": {},
    "Weak: keeps 97% of the loss that zero ablation costs, L0 64, 3% never fired": {"mean": 0.79},
    "Weak: keeps 89% of the loss that zero ablation costs, L0 64, 3% never fired": {"zero": 0.89},
    "Not usable: keeps 69% of the loss that zero ablation costs, L0 64, 3% never fired": {"zero": 0.69},
    "Not usable: keeps 97% of the loss that zero ablation costs, L0 64, 3% never fired; also PCA with as many components "
    "explains as much": {"fvu": 0.6},
    "Usable: keeps 97% of the loss that zero ablation costs, L0 64, 40% never fired; but more "
    "than 20% of the latents never fired on this text": {"dead": 0.4},
    "Not judged: FVU 0.100, L0 64, 3% never fired": {"zero": None},
}


@pytest.mark.parametrize("words", WORDS)
def test_the_same_numbers_are_always_judged_in_the_same_words(words):
    assert verdict(*scored(**WORDS[words])) == words


def test_vectors_are_judged_by_how_much_less_they_change_than_under_ablation():
    arms, latents = scored(zero=None)
    for name, change in {"sae": 0.02, "zero": 0.8, "mean": 0.4}.items():
        arms[name]["output_change"] = change
    assert verdict(arms, latents).startswith("Usable: keeps 98% of the output that zero ablation changes")
