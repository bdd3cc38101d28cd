import csv

import pytest

from scope.cli.main import run
from tests.conftest import random_gemma
from tests.help.labs import make_lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("attribute"), random_gemma(tiny_config, toy_tokenizer), toy_text)


@pytest.fixture
def attribute(folder, capsys):
    def command(*flags: str) -> tuple[int, str, str]:
        code = run(
            ["attribute", "--sae", f"{folder}/dictionary", "--model", f"{folder}/checkpoint", "--no-certificate", *flags]
        )
        out = capsys.readouterr()
        return code, out.out, out.err

    return command


@pytest.mark.parametrize("method", ["gradient", "integrated", "ablation"])
def test_rows_are_printed_with_their_sum_and_written_as_csv(attribute, tmp_path, method):
    file = tmp_path / "rows.csv"
    steps = ["--steps", "16"] if method == "integrated" else []
    code, out, _ = attribute("--prompt", "the dog runs to the", "--method", method, "--csv", str(file), *steps)
    assert code == 0
    for said in ("rather than", "error", "sum", "null"):
        assert said in out
    with file.open() as f:
        rows = list(csv.DictReader(f))
    total = sum(float(row["value"]) for row in rows)
    assert float(out.split("sum", 1)[1].split()[0]) == pytest.approx(total, abs=1e-3)


REFUSED = {
    "tokens, not one": ["--prompt", "the dog", "--token", " the river runs"],
    "prompt is empty": ["--prompt", " "],
    "is no pack": ["--prompt", "the dog", "--pack", "nowhere"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_ends_with_a_message_and_exit_code_2(attribute, message):
    code, _, err = attribute(*REFUSED[message])
    assert code == 2
    assert "Traceback" not in err
    if message != "is no pack":
        assert message in " ".join(err.split())
