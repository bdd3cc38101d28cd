"""`scope monitor`: fit, run, show; files of any size, interrupted and continued."""

import io
import json

import pandas as pd
import pytest

import scope
from scope.cli.main import run
from scope.workflows.folders import info
from scope.workflows.monitor import RunMonitor, write_rows
from tests.monitor.conftest import rows, write
from tests.steering.conftest import SITE

TEXTS = [r["text"] for r in rows(100)]


@pytest.fixture
def texts(tmp_path):
    write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    return tmp_path / "texts.jsonl"


def test_fit_prints_the_monitor_beside_its_nulls_and_show_the_card(checkpoint, tmp_path, capsys):
    write(tmp_path / "data.jsonl", [{"t": r["text"], "toxic": int(r["label"])} for r in rows(100)])
    flags = ["--text-field", "t", "--label-field", "toxic", "--fpr", "0.1", "--nulls", "1", "--difference"]
    out = str(tmp_path / "m")
    command = ["monitor", "fit", str(tmp_path / "data.jsonl"), "--model", str(checkpoint), "--site", SITE, "--out", out, *flags]
    assert run([*command, "--aggregation", "max"]) == 0
    printed = capsys.readouterr().out
    for part in ("bag of words: AUC", "shuffled labels: AUC", "random direction: AUC", "false alarms", "scope monitor run"):
        assert part in printed
    assert run(["monitor", "show", out]) == 0
    assert "What it is worth" in capsys.readouterr().out
    assert run(["monitor", "show", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fpr"] == 0.1
    assert (info(out).kind, info(out).next) == ("monitor", f'scope monitor run {out} --text "a text"')
    assert run(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert run(["monitor", "fit", str(tmp_path / "data.jsonl"), "--probe"]) == 2
    assert "--out runs/monitor" in capsys.readouterr().err


def test_run_says_score_threshold_alarm_and_token_of_each_text(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog looks at the river\n\n"))
    assert run(["monitor", "run", str(folder), "-", "--text", "a [/b] cat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "threshold" in lines[0]
    assert "'a [/b] cat'" in lines[0]
    assert lines[1].split()[0] in ("ALARM", "quiet")
    assert lines[2].startswith("no score")
    assert run(["monitor", "run", str(folder), "--text", "the dog", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"score", "threshold", "alarm", "probability", "token", "position", "cut", "text"}
    assert run(["monitor", "run", str(folder), "none.jsonl"]) == 2
    assert "There is no file none.jsonl" in capsys.readouterr().err


def test_run_writes_tables_pages_and_lines(folder, texts, tmp_path, capsys):
    flags = ["--out", str(tmp_path / "page.html"), "--csv", str(tmp_path / "rows.csv")]
    assert run(["monitor", "run", str(folder), str(texts), *flags]) == 0
    assert "alarms on 100 texts" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "rows.csv")
    assert run(["monitor", "run", str(folder), str(texts), "--out", str(tmp_path / "rows.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == pytest.approx(frame["score"].tolist(), abs=1e-5)
    assert run(["monitor", "run", str(folder), str(texts), "--out", str(tmp_path / "rows.xlsx")]) == 2
    assert "its name ends in one of" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_after_its_last_whole_row(folder, texts, tmp_path):
    job, out, notes = RunMonitor(folder=folder, texts=texts), tmp_path / "rows.jsonl", []
    part = tmp_path / "rows.jsonl.part"
    rows_ = write_rows(job, out)
    for _ in range(70):
        next(rows_)
    rows_.close()
    assert not out.exists()
    with part.open("a") as file:
        file.write('{"score": 1.0, "thr')  # as a kill leaves it
    assert len(list(write_rows(job, out, notes.append))) == 30
    assert notes[0].startswith("70 texts were scored before")
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == TEXTS
    assert not part.exists()
    other = write_rows(job, out)
    next(other)
    other.close()
    write(texts, [{"text": "another"}])
    assert len(list(write_rows(job, out))) == 1  # other texts: from the start


def test_a_large_file_is_read_as_it_is_scored(folder):
    taken = []

    def endless():
        for text in TEXTS * 1000:
            taken.append(text)
            yield text

    from scope.monitor.files import read
    from scope.monitor.run import score_texts
    from scope.workflows.monitor import RunMonitor

    monitor, weights = read(folder)
    model = RunMonitor(folder=folder).load_model({"model": monitor.model})
    next(score_texts(monitor, weights, model, endless(), at_once=8))
    assert len(taken) == 8


def test_a_chat_is_read_as_the_users_turn(checkpoint, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}model"
    copy = tmp_path / "chat"
    copy.mkdir()
    for file in checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    settings = {"model": str(copy), "site": SITE, "nulls": 1, "fpr": 0.1, "aggregation": "max"}
    monitor = scope.fit_monitor(rows(100), difference=True, chat=True, out=tmp_path / "m", **settings)
    assert (monitor.chat, monitor.chat_template) == (True, template)
    row = scope.run_monitor(tmp_path / "m", text="the river").rows[0]
    assert "".join(row.pieces).replace("<bos>", "").strip() == "user the river model"
