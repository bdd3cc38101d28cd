"""Labelled texts as people have them: what is read, what is left out and said, what is refused; splits without leakage."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from scope.monitor.labelled import SPLITS, MonitorError, RecordReader, assign, labelled, read_texts
from tests.monitor.conftest import rows, write

FIELDS = RecordReader()


def with_labels(yes, no, n=80):
    return [{"text": f"text {i}", "label": yes if i % 2 else no} for i in range(n)]


@pytest.mark.parametrize(
    ("yes", "no"),
    [(True, False), (1, 0), ("1", "0"), ("unsafe", "safe"), ("Yes", "No"), (1.0, 0.0), ("1.0", "0.0"), ("poem", "no")],
)
def test_labels_may_be_of_any_type(yes, no):
    data = labelled(with_labels(yes, no), FIELDS)
    assert data.labels.mean() == 0.5
    assert all(int(text.split()[1]) % 2 for text in np.array(data.texts)[data.labels])


def test_where_it_is_not_clear_for_what_the_alarm_is_it_has_to_be_named():
    records = with_labels("poem", "code")
    with pytest.raises(MonitorError, match=r"'code' \(40\), 'poem' \(40\)[\s\S]*--positive LABEL"):
        labelled(records, FIELDS)
    assert labelled(records, FIELDS, positive="Code").positive == "code"
    with pytest.raises(MonitorError, match="No text has the label 'x'"):
        labelled(records, FIELDS, positive="x")
    three = [*records, *({"text": f"a {i}", "label": "list"} for i in range(9))]
    data = labelled(three, FIELDS, positive="poem")
    assert data.negative == "not poem"
    assert "against 2 others: code, list" in data.notes[0]


def test_one_label_alone_and_too_few_texts_are_refused():
    with pytest.raises(MonitorError, match=r"tells two labels apart; the texts have these: 'true' \(9\)"):
        labelled([{"text": f"t {i}", "label": True} for i in range(9)], FIELDS)
    with pytest.raises(MonitorError, match="too few texts: of 2 with the label"):
        labelled(with_labels(1, 0, 5), FIELDS)


def test_texts_without_label_empty_repeated_and_contradictory_ones_are_left_out_and_counted():
    records = with_labels(1, 0)
    odd = [("a", None), ("b", math.nan), ("c", ""), ("", 1), ("  ", 0), ("text 1", 1), ("both", 1), ("both", 0)]
    data = labelled([*records, *({"text": t, "label": label} for t, label in odd)], FIELDS)
    assert len(data) == 80
    said = " ".join(data.notes)
    for part in ("3 of 88 texts have no label", "2 texts are empty", "1 texts occur with both labels", "2 repetitions"):
        assert part in said


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet", "json"])
def test_files_of_every_kind_give_the_same_texts(tmp_path, suffix):
    frame = pd.DataFrame(rows(80))
    file = tmp_path / f"texts.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(file)
    elif suffix in ("csv", "tsv"):
        frame.to_csv(file, index=False, sep="\t" if suffix == "tsv" else ",")
    else:
        frame.to_json(file, orient="records", lines=suffix == "jsonl")
    data, same = labelled(file, FIELDS), labelled(frame, FIELDS)
    assert data.texts == same.texts
    assert data.labels.tolist() == same.labels.tolist()
    assert data.splits.tolist() == same.splits.tolist()
    assert set(data.groups) == set(frame["group"])


def test_fields_of_other_names_are_named_by_flags(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": r["text"], "toxic": r["label"]} for r in rows(80)])
    with pytest.raises(MonitorError, match=r'no column "text"; there are: prompt, toxic\. Name one with --text-field'):
        labelled(tmp_path / "a.jsonl", FIELDS)
    assert len(labelled(tmp_path / "a.jsonl", RecordReader(text="prompt", label="toxic"))) == 80
    for name in ("a.txt", "a.rst"):
        (tmp_path / name).write_text("a\nb\n")
        plain = RecordReader(label=None)
        assert [record.text for record in read_texts(tmp_path / name, plain)] == ["a", "b"]
    with pytest.raises(MonitorError, match="plain text, which has no labels"):
        labelled(tmp_path / "a.txt", FIELDS)
    with pytest.raises(MonitorError, match="There is no file"):
        labelled(tmp_path / "none.jsonl", FIELDS)
    with pytest.raises(MonitorError, match=r'holds a list in "text"'):
        labelled([{"text": ["a"], "label": 1}], FIELDS)


def test_texts_alike_but_for_case_and_space_and_texts_of_a_group_come_into_one_split():
    records = [r for i, r in enumerate(with_labels(1, 0, 200)) for r in (r, r | {"text": f"  TEXT   {i}"})]
    data = labelled(records, FIELDS)
    splits = {}
    for text, split in zip(data.texts, data.splits, strict=True):
        assert splits.setdefault(" ".join(text.lower().split()), split) == split
    grouped = labelled([r | {"group": f"g{i // 2 % 23}"} for i, r in enumerate(records)], FIELDS, by_group=True)
    by_group = {}
    for group, split in zip(grouped.groups, grouped.splits, strict=True):
        by_group.setdefault(group, set()).add(int(split))
    assert set(map(len, by_group.values())) == {1}
    with pytest.raises(MonitorError, match="They hang together in 1 cluster, which is not split"):
        labelled([r | {"group": "one"} for r in records], FIELDS, by_group=True)
    with pytest.raises(MonitorError, match="Some texts have no group"):
        labelled(records, FIELDS, by_group=True)


def test_splits_are_stratified_and_follow_the_seed():
    data = labelled(with_labels(1, 0, 400), FIELDS)
    for split, share in zip(SPLITS, (200, 100, 100), strict=True):
        assert len(data.where(split)) == share
        assert data.labels[data.where(split)].sum() == share // 2
    assert labelled(with_labels(1, 0, 400), FIELDS, seed=1).splits.tolist() != data.splits.tolist()
    part = assign(np.arange(9), np.arange(9) < 3, [1 / 3] * 3, 0)
    assert [int(((part == p) & (np.arange(9) < 3)).sum()) for p in range(3)] == [1, 1, 1]


def test_splits_of_the_file_are_taken_and_leaked_test_texts_left_out():
    names = ["train", "Validation", "test", "train"]
    records = [r | {"split": names[i // 2 % 4]} for i, r in enumerate(with_labels(1, 0, 160))]
    leak = {"text": "TEXT 1 ", "label": 1, "split": "test"}
    data = labelled([*records, leak], FIELDS)
    assert data.where("test").size == 40
    assert "1 texts of the split test are in an earlier one too" in data.notes[0]
    thirds = labelled([r | {"split": "train" if r["split"] == "Validation" else r["split"]} for r in records], FIELDS)
    assert thirds.where("validation").size == 40
    with pytest.raises(MonitorError, match="Splits are called 'holdout'"):
        labelled([*records, leak | {"split": "holdout"}], FIELDS)
    with pytest.raises(MonitorError, match="No text is in the split test"):
        labelled([r | {"split": "train"} for r in records], FIELDS)
    with pytest.raises(MonitorError, match="The group 'g' is in the split"):
        labelled([r | {"group": "g" if i in (0, 5) else str(i)} for i, r in enumerate(records)], FIELDS, by_group=True)


def test_half_characters_in_json_do_not_stop_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r | {"text": r["text"] + "\ud83d"}) + "\n" for r in rows(80)))
    assert len(labelled(tmp_path / "a.jsonl", FIELDS)) == 80
