from scope.activations.corpus.sources import Corpus, Document
from scope.activations.read.heldout import following

from tests.activations.toy import ByteTokenizer, record


class InOrder(Corpus):
    def documents(self, seed=None):
        return self.source()


def test_text_that_repeats_what_was_recorded_under_another_name_is_not_held_out(tmp_path):
    def source():
        for module in ("a", "b"):
            for i in range(40):
                yield Document(f"{module}.f{i}", f"{module}.f{i}\n\nThe text number {i}, which is long enough.")
        yield Document("new", "Something that was never recorded. " * 8)

    corpus = InOrder("inherited", {"kind": "inherited"}, source)
    store = record(tmp_path / "r", corpus=corpus, tokens=29 * 64)
    assert 33 < store.entries[-1].cursor.documents <= 40
    found = "".join(chr(i - 4) for i in following(store, corpus, ByteTokenizer(), 100).tokens.ravel() if i > 3)
    assert "never recorded" in found
    assert "b.f1\n" not in found
