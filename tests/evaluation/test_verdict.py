"""Numbers in, a verdict out: no reading is named as the right one that explains little."""

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
