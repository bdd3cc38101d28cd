"""What is known of the dictionary goes into the pack: report, certificate, training curve."""

import pytest

from scope.errors import PackError
from scope.evaluation.certificate.certificate import Certificate, keep
from scope.features.collect.health import find_health


def certificate(said: str) -> Certificate:
    return Certificate(True, said, {"l0": 8.0, "fvu": 0.2, "tokens": 2000}, {}, {"fvu": 0.7}, [{"name": "another reading"}])


def test_the_certificate_that_was_just_found_stands_before_the_one_that_was_kept(tmp_path):
    kept = Certificate(True, "It fits.", {"l0": 8.0, "fvu": 0.2, "tokens": 2000}, {}, {"fvu": 0.7})
    for key in ("a", "b"):
        keep(tmp_path, key, kept)
    assert find_health(tmp_path)["certificate"]["said"] == "It fits."
    found = find_health(tmp_path, certificate=certificate("just found"))["certificate"]
    assert (found["said"], found["null"], "tried" in found) == ("just found", {"fvu": 0.7}, False)


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 1, "certificates": []}'])
def test_a_damaged_or_edited_certificate_does_not_reach_the_pack(tmp_path, damage):
    keep(tmp_path, "a", Certificate(True, "It fits.", {"l0": 8.0, "fvu": 1.2, "tokens": 2000}, {}, {"fvu": 0.7}))
    assert find_health(tmp_path) is None
    (tmp_path / "certificate.json").write_text(damage)
    assert find_health(tmp_path) is None


def test_nothing_is_known_of_a_dictionary_without_files(tmp_path):
    assert find_health(tmp_path) is None
    with pytest.raises(PackError, match="scope evaluate"):
        find_health(tmp_path, tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(PackError, match="not JSON"):
        find_health(tmp_path)
