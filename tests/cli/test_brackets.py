"""Whatever a folder or a text is called, commands print it as it is: brackets are no markup, colons no emoji."""

import sys

import pytest
from rich.table import Table

from scope.cli.main import run
from scope.cli.progress import console, print_note, progress_bar
from tests.conftest import random_gemma
from tests.help.labs import make_lab

NAME = "a[/b] [red] :smile:"


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("brackets") / NAME, random_gemma(tiny_config, toy_tokenizer), toy_text)


def test_the_console_prints_text_as_it_is_and_makes_visible_what_a_terminal_would_obey(capsys):
    table = Table(NAME, title=NAME)
    table.add_row(NAME)
    console.print(table)
    console.print(f"{NAME} \x1b[31m \u202e")
    print_note(NAME, NAME)
    with progress_bar(NAME) as on_progress:
        on_progress(1, 1, {NAME: NAME})
    out = capsys.readouterr().out
    assert out.count(NAME) >= 8
    assert "\x1b" not in out
    assert "\u202e" not in out


COMMANDS = """
harvest --model DIR/checkpoint --corpus DIR/corpus.txt --site blocks.1.hook_resid_post --tokens 1000 --context 32 --out DIR/rec
recording verify DIR/rec
recording convert DIR/rec --out DIR/cached --to safetensors
steer --sae DIR/dictionary --model DIR/checkpoint --latent 3 --max-new-tokens 2 --no-certificate --json DIR/run.json
attribute --prompt dog --sae DIR/dictionary --model DIR/checkpoint --no-certificate --csv DIR/rows.csv
features DIR/dictionary --model DIR/checkpoint --corpus DIR/corpus.txt --tokens 500 --context 32 --out DIR/2 --no-certificate
export DIR/pack --to csv --out DIR/table.csv
label DIR/pack --with tokens --latents 3
map DIR/pack --dictionary DIR/dictionary
convert DIR/dictionary DIR/other --to gemma_scope
"""


def test_every_command_works_in_a_folder_whose_name_looks_like_markup(lab, toy_text, capsys):
    (lab / "corpus.txt").write_text("\n".join(toy_text))
    for command in COMMANDS.strip().splitlines():
        code = run([part.replace("DIR", str(lab)) for part in command.split()])
        out, err = capsys.readouterr()
        place = err.removesuffix(" on cpu in float32\n")  # the first line, with the model's folder as it is
        assert code == 0, command
        assert place in ("", "the dictionary's model", str(lab / "checkpoint")), command
        assert NAME in out.replace("\n", "") or NAME in " ".join(out.split()), command


@pytest.mark.parametrize("command", ["runs", "app", "recording show", "train", "export --to csv", "map"])
def test_every_refusal_names_such_a_folder_whole(tmp_path, capsys, command):
    assert run([*command.split(), str(tmp_path / NAME / "none")]) == 2
    assert f"{NAME}/none" in capsys.readouterr().err


def test_bytes_in_a_path_that_are_no_utf8_are_printed_by_their_numbers(capsys):
    assert run(["runs", "no-such-\udcff"]) == 2
    assert "\\udcff" in capsys.readouterr().err
    assert sys.stdout.errors == "backslashreplace"
