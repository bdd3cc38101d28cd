"""Flags in the words of other tools: refused, with the name that the command has for the same thing."""

import pytest

from scope.cli.main import run


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("evaluate x --tokens 9", "Here, give --contexts instead of --tokens."),
        ("train x --l0=32", "Here, give --target-l0 instead of --l0."),
        ("harvest --layer 3", "Here, give --site instead of --layer."),
        ("steer --sae x --alpha 3 --feature 7", "Here, give --strength instead of --alpha."),
    ],
)
def test_a_flag_of_another_tool_is_refused_with_ours(line, ours, capsys):
    with pytest.raises(SystemExit) as refused:
        run(line.split())
    assert refused.value.code == 2
    assert ours in capsys.readouterr().err


def test_a_flag_that_no_tool_has_is_refused_without_a_hint(capsys):
    with pytest.raises(SystemExit):
        run(["evaluate", "x", "--colour", "9"])
    assert "Here, give" not in capsys.readouterr().err
