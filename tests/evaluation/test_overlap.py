"""Text that was read in training is known by what it is, and not by the name of its corpus."""

import numpy as np
import pytest

from scope.evaluation import overlap as at
from scope.evaluation.overlap import RUN, load_hashes, overlap, save_hashes, smallest


def contexts(n: int, seed: int, length: int = 65) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 50_000, (n, length)).astype(np.int32)


def test_p07_text_that_was_read_is_found_wherever_it_stands_in_its_context():
    read, other = contexts(50, 1), contexts(50, 2)
    known = smallest(read)
    assert overlap(known, other).shared == 0
    assert overlap(known, read).shared == overlap(known, read).compared == 50 * (65 - RUN)
    moved = other.copy()
    moved[:10, 11 : 11 + RUN + 4] = read[:10, 30 : 30 + RUN + 4]  # 28 tokens of it: 5 runs
    assert overlap(known, moved).shared == 10 * 5
    assert overlap(known, moved).compared == 50 * (65 - RUN)


def test_a_sample_of_all_that_was_read_answers_for_all_of_it(monkeypatch):
    read, other = contexts(400, 1), contexts(400, 2)
    half = np.concatenate([read[:200], other[:200]])
    monkeypatch.setattr(at, "KEPT", 2000)
    found = overlap(smallest(read), half)
    assert len(smallest(read)) == 2000
    assert found.compared == pytest.approx(2000, rel=0.1)  # of 16,400
    assert found.shared / found.compared == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(smallest(np.concatenate([read, read[::-1]])), smallest(read))


def test_neither_the_first_token_of_a_context_nor_padding_is_compared():
    tokens, documents = contexts(4, 1), np.zeros((4, 65), np.int32)
    tokens[:, 0], documents[:, 40:] = 2, -1
    assert len(smallest(tokens, documents)) == 4 * (40 - RUN)
    padded = tokens.copy()
    padded[:, 40:] = 0
    assert np.array_equal(smallest(padded, documents), smallest(tokens, documents))
    started = tokens.copy()
    started[:, 0] = 3
    assert np.array_equal(smallest(started), smallest(tokens))


def test_text_that_cannot_be_compared_is_said_to_be(tmp_path):
    short = contexts(4, 1, length=RUN)
    assert overlap(smallest(contexts(4, 2)), short).compared == 0
    assert "may have been trained on it" in overlap(smallest(contexts(4, 2)), short).sentence()
    assert "0.0% of 164 runs" in overlap(smallest(contexts(4, 2)), contexts(4, 1)).sentence()
    assert load_hashes(tmp_path) is None
    (tmp_path / at.FILE).write_bytes(b"torn")
    assert load_hashes(tmp_path) is None
    save_hashes(tmp_path, smallest(short))
    assert len(load_hashes(tmp_path)) == 0
