"""Replies of language models are read as what they are; what is no answer never becomes a label or a score."""

import json

import pytest

from scope.errors import ConfigError
from scope.features.labels.answers import Busy, NoAnswer, label_in, reply_in, windows_in
from tests.features.replies import ANSWERS, JUDGED, REPLIES, again, no, stop


@pytest.mark.parametrize(("body", "outcome"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
def test_every_reply_of_the_table_becomes_what_it_is(body, outcome):
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    if isinstance(outcome, str):
        assert label_in(reply_in(data)) == outcome
        return
    kind = {no: NoAnswer, again: Busy, stop: ConfigError}[type(outcome)]
    with pytest.raises(kind, match=outcome.why):
        label_in(reply_in(data))


@pytest.mark.parametrize(("answer", "label"), ANSWERS)
def test_every_answer_of_the_table_gives_its_label_or_none(answer, label):
    if label is None:
        with pytest.raises(NoAnswer):
            label_in(answer)
    else:
        assert label_in(answer) == label


@pytest.mark.parametrize(("answer", "windows"), JUDGED)
def test_every_judgement_of_the_table_is_read_or_counts_for_nothing(answer, windows):
    assert windows_in(answer, 6) == (None if windows is None else [i in windows for i in range(1, 7)])
