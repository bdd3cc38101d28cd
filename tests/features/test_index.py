"""What answers a large table at once answers as the plain way would."""

import numpy as np
import pandas as pd
import pytest

from scope.features.pack.index import FLAGS, Index, order_of


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_the_stable_sort_with_nan_last(seed):
    rng = np.random.default_rng(seed)
    values = [rng.random(5000), rng.integers(-3, 3, 5000) / 7, 1 + rng.random(5000) * 1e-15, rng.lognormal(0, 40, 5000)][seed]
    values[rng.random(5000) < 0.1] = np.nan
    assert np.array_equal(order_of(values), np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable"))


def test_zeros_of_both_signs_infinities_and_nothing_at_all_are_ordered():
    assert order_of(np.array([0.0, -0.0, -1.0, np.inf, -np.inf, np.nan])).tolist() == [4, 2, 0, 1, 3, 5]
    assert order_of(np.array([])).tolist() == []


def test_flags_and_texts_are_found_as_pandas_finds_them():
    table = pd.DataFrame(
        {"flags": ["", "dead", "rare,single-token", "dense"], "label": ["Dogs run", "hotdog", "a dog's", "ÄRGER"]}
    )
    index = Index(table)
    assert index.flagged(("dead", "rare")).tolist() == [False, True, True, False]
    assert all(
        index.flagged((flag,)).sum() == table["flags"].str.split(",").map(lambda f, x=flag: x in f).sum() for flag in FLAGS
    )
    label = index.text("label")
    assert label.containing("dog").tolist() == [True, True, True, False]
    assert label.with_word("dogs").tolist() == [True, False, False, False]
    assert label.equal("ärger").tolist() == [False, False, False, True]


def test_falling_and_rising_orders_put_what_has_no_figure_last():
    index = Index(pd.DataFrame({"x": [1.0, np.nan, 3.0, 3.0]}))
    assert index.order("x").tolist() == [2, 3, 0, 1]
    assert index.order("x", rising=True).tolist() == [0, 2, 3, 1]
