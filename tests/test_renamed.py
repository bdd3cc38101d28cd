"""Public names of the version before keep working for one version, and name the new one."""

import importlib
import sys

import pytest

import scope
from scope import renamed


@pytest.mark.parametrize(("old", "new"), renamed.MODULES.items(), ids=list(renamed.MODULES))
def test_an_old_module_path_gives_the_module_of_the_new_one(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)  # another test may have imported it: a module is loaded once
    with pytest.warns(renamed.RenamedWarning, match=new):
        module = importlib.import_module(old)
    parts = [importlib.import_module(name) for name in new.split()]
    assert module is parts[0] if len(parts) == 1 else all(hasattr(module, name) for part in parts for name in vars(part))


def test_names_of_a_module_that_became_a_folder_or_two_modules_are_found_where_they_were():
    from scope.features.collect.collect_pack import collect
    from scope.features.reading.two_texts import compared
    from scope.features.reading.view import ranked

    with pytest.warns(renamed.RenamedWarning):
        from scope.features.collect import collect as old_collect
    prompt = importlib.import_module("scope.features.prompt")
    assert (old_collect, prompt.ranked, prompt.compared) == (collect, ranked, compared)
    with pytest.warns(renamed.RenamedWarning, match="Pack"):
        from scope.features.face import FeatureStore
    assert FeatureStore is scope.Pack


@pytest.mark.parametrize(("old", "new"), renamed.NAMES.items(), ids=list(renamed.NAMES))
def test_an_old_name_of_scope_gives_what_bears_the_new_one(old, new):
    with pytest.warns(renamed.RenamedWarning, match=new):
        assert getattr(scope, old) is getattr(scope, new)


def test_what_never_existed_is_still_refused():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("scope.models.nothing")


def test_old_keywords_and_attributes_give_what_bears_the_new_names():
    class Run:
        conditions = ("plain",)
        arms = renamed.old_attribute("arms", "conditions")

    @renamed.old_keywords(arms="conditions")
    def steer(n, conditions=()):
        return n, conditions

    with pytest.warns(renamed.RenamedWarning, match="conditions="):
        assert steer(1, arms=("plain",)) == (1, ("plain",))
    with pytest.warns(renamed.RenamedWarning, match="Run.arms is now conditions"):
        assert Run().arms == ("plain",)


def test_the_manifest_of_a_recording_is_read_by_key_for_one_version():
    from pathlib import Path

    from scope.activations.read.store import ActivationStore

    store = ActivationStore.open(Path(__file__).parent / "data" / "version_0_1_0" / "recording")
    with pytest.warns(renamed.RenamedWarning, match=r"manifest\['model'\] is now manifest\.model"):
        assert store.manifest["model"] == store.manifest.model
