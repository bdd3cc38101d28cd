"""Public names of the version before keep working for one version, and name the new one."""

import importlib

import pytest

import scope
from scope import renamed


@pytest.mark.parametrize(("old", "new"), renamed.MODULES.items(), ids=list(renamed.MODULES))
def test_an_old_module_path_gives_the_module_of_the_new_one(old, new):
    with pytest.warns(renamed.RenamedWarning, match=new):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)


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
