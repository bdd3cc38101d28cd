"""What stands for a version where there is none."""

from importlib.metadata import version

from scope.versions import version_of


def test_a_tree_that_was_not_installed_is_called_source():
    assert version_of("torch") == version("torch")
    assert version_of("no-such-package-here") == "source"
