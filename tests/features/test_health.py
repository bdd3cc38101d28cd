"""What is known of the dictionary goes into the pack: report, certificate, training curve."""

import json

import pytest

from scope.errors import PackError
from scope.evaluation.certificate import Certificate
from scope.features.health import find_health


def certificate(said: str) -> Certificate:
    return Certificate(True, said, {"l0": 8.0, "fvu": 0.2, "tokens": 2000}, {}, {"fvu": 0.7}, [{"name": "another reading"}])


def test_the_certificate_that_was_just_found_stands_before_the_one_that_was_kept(tmp_path):
    kept = {"certificates": {"a": {"said": "old", "fits": True, "tried": []}, "b": {"said": "kept", "fits": True, "tried": []}}}
    (tmp_path / "certificate.json").write_text(json.dumps(kept))
    assert find_health(tmp_path)["certificate"] == {"said": "kept", "fits": True}
    found = find_health(tmp_path, certificate=certificate("just found"))["certificate"]
    assert (found["said"], found["null"], "tried" in found) == ("just found", {"fvu": 0.7}, False)


def test_nothing_is_known_of_a_dictionary_without_files(tmp_path):
    assert find_health(tmp_path) is None
    with pytest.raises(PackError, match="scope evaluate"):
        find_health(tmp_path, tmp_path / "evaluation.json")
    (tmp_path / "certificate.json").write_text("{")
    with pytest.raises(PackError, match="no JSON"):
        find_health(tmp_path)
