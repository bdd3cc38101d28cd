import pytest
from scope.activations import errors

from scope.errors import ScopeError, UnknownSite
from scope.renamed import RenamedWarning


def test_what_recordings_refuse_is_caught_like_every_refusal_of_scope():
    assert issubclass(errors.RecordingError, ScopeError)
    assert issubclass(errors.CorpusError, errors.ActivationsError)


def test_the_old_name_of_an_unknown_site_is_the_new_class_and_says_so():
    with pytest.warns(RenamedWarning, match=r"UnknownSiteError is now scope\.errors\.UnknownSite"):
        assert errors.UnknownSiteError is UnknownSite
