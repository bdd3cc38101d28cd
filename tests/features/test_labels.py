"""Labels are written from some windows, tested on others, beside another latent's; a server may be slow, busy or gone."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scope.cli.main import run
from scope.errors import ConfigError
from scope.features.face import Pack
from scope.features.labels import detection
from scope.features.labels.answers import NoAnswer
from scope.features.labels.ask import ROOM, Endpoint, Local
from scope.features.labels.evidence import gather
from scope.features.labels.label import FRUITLESS, label_latents, open_latents
from scope.features.pack.notes import FILE, NotSaved
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "toy.pack"
    return folder, make_toy_pack(folder)


@pytest.fixture
def pack(toy, tmp_path):
    return Pack.open(shutil.copytree(toy[0], tmp_path / "toy.pack"))


class Server:
    """Speaks chat completions on the loopback address. It labels by the word after «, and finds the windows with that word."""

    def __init__(self):
        self.asked: list[str] = []
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.failures: list[tuple[int, dict]] = []
        self.thinks = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                outer.asked.append(question)
                outer.bodies.append(body)
                outer.headers.append(dict(self.headers))
                if outer.failures:
                    code, headers, *text = outer.failures.pop(0)
                    return self._send(code, headers, (text or ['{"error": "not now"}'])[0].encode())
                answer = outer.answer(question)
                cut = outer.thinks > body.get("max_tokens", body.get("max_completion_tokens", 0))
                choice = {"message": {"role": "assistant", "content": None if cut else answer}}
                reply = {"choices": [choice | {"finish_reason": "length" if cut else "stop"}]}
                return self._send(200, {}, json.dumps(reply).encode())

            def _send(self, code, headers, body):
                self.send_response(code)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, question: str) -> str:
        if "JSON list" not in question:
            words = re.findall(r"«\s*(.+?)»", question)
            return f'"{max(set(words), key=words.count)}"'
        word = re.search(r"fire on this: (.*)", question)[1]
        rows = re.findall(r"^(\d+)\. (.*)$", question, re.MULTILINE)
        return "I think " + json.dumps([int(i) for i, text in rows if word in text])


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_what_is_shown_and_what_is_tested_share_no_context(pack):
    testable = 0
    for f in range(1, pack.d_sae):
        evidence = gather(pack[f])
        testable += evidence.testable
        shown = {w.ids for w in evidence.shown}
        assert not shown & {w.ids for w in evidence.windows}
        contexts = {e.context for g in ("top", "bands") for e in pack[f].examples(g, 99) if _ids(e) in shown}
        held = {
            e.context
            for g in ("bands", "random")
            for e in pack[f].examples(g, 99)
            if _ids(e) in {w.ids for w in evidence.windows}
        }
        assert not contexts & held or not evidence.testable
    assert testable > 5


def _ids(example):
    from scope.features.labels.evidence import window_of

    return window_of(example).ids


def test_silent_windows_are_silent_and_firing_ones_fire(pack, toy):
    brute, seen = toy[1], 0
    flat = [tuple(row.tolist()) for row in brute.tokens]
    for f in range(1, pack.d_sae, 3):
        evidence = gather(pack[f])
        for window, fires in zip(evidence.windows, evidence.fires, strict=True):
            if fires:
                assert max(window.acts) > 0
                continue
            places = [
                (c, o) for c, row in enumerate(flat) for o in range(len(row)) if row[o : o + len(window.ids)] == window.ids
            ]
            assert any((brute.latents[c, o : o + len(window.ids), f] == 0).all() for c, o in places)
            seen += 1
    assert seen > 20


def test_balanced_accuracy_of_guessing_and_of_saying_yes_to_all_is_a_half():
    fires = [True, True, True, False]
    assert detection.balanced_accuracy([True] * 4, fires) == 0.5
    assert detection.balanced_accuracy(fires, fires) == 1
    assert detection.balanced_accuracy([True, True, False, False], fires) == pytest.approx(5 / 6)


def test_labels_of_a_server_are_kept_with_source_prompt_and_score_beside_the_null(pack, server):
    writer = Endpoint(server.base, "toy-model", key="secret")
    made = {m.latent: m for m in label_latents(pack, [1, 4, 9], writer)}
    assert made[4].text == pack.table["top_token"][4].strip()
    assert made[4].score == 1
    assert made[4].null < 0.8
    label = pack.notes.label(4)
    assert (label.source, label.score) == ("toy-model at 127.0.0.1", 1.0)
    assert label.detail["prompt"] == "label-1, detection-1"
    assert label.detail["firing"] + label.detail["silent"] == len(gather(pack[4]).fires)
    assert label.made > 0
    pack.refresh()
    assert pack[4].label == made[4].text
    assert len(server.asked) == 9
    assert all(h["Authorization"] == "Bearer secret" for h in server.headers)
    for question in server.asked:
        if "JSON list" in question:
            assert "«" not in question.split("Below", 1)[1]  # a judge is not shown where it fires


def test_the_same_call_goes_on_where_it_stopped_and_leaves_what_people_wrote(pack, server):
    writer = Endpoint(server.base, "toy-model")
    pack.notes.set_label(9, "mine", "you")
    list(label_latents(pack, [1, 4, 9, 0], writer, max_requests=3))
    assert len(server.asked) == 3
    assert open_latents(pack, [1, 4, 9, 0], writer) == [4]  # 0 is dead
    list(label_latents(pack, [1, 4, 9, 0], writer))
    assert len(server.asked) == 6
    assert pack.notes.label(9).text == "mine"
    assert open_latents(pack, [1, 4], writer, again=True) == [1, 4]


def test_stopping_keeps_what_was_asked(pack, server):
    writer = Endpoint(server.base, "toy-model")
    made = label_latents(pack, [1, 4, 9, 10], writer, at_once=2)
    next(made)
    made.close()  # as Ctrl-C does
    assert 1 <= len(pack.notes.labels()) <= 3


def test_a_busy_server_is_asked_again_and_a_refusal_is_said(pack, server):
    writer = Endpoint(server.base, "toy-model")
    server.failures = [(429, {"Retry-After": "0.01"}), (503, {"Retry-After": "0"})]
    assert writer.answer("1. «dog»") == '"dog"'
    assert len(server.asked) == 3
    server.failures = [(401, {})]
    with pytest.raises(ConfigError, match=r"401: .*not now[\s\S]*key"):
        writer.answer("x")
    server.failures = [(302, {"Location": "http://127.0.0.1:1/"})]
    with pytest.raises(ConfigError, match="302"):
        writer.answer("x")


def test_a_server_that_is_gone_is_given_up(monkeypatch):
    writer = Endpoint("http://127.0.0.1:1/v1", "m")
    monkeypatch.setattr(writer._stopped, "wait", lambda seconds: False)
    with pytest.raises(ConfigError, match="did not answer 6 times"):
        writer.answer("x")


@pytest.mark.parametrize(
    ("base", "key", "match"),
    [("ftp://x/v1", None, "address"), ("x", None, "address"), ("http://far.example/v1", "k", "unencrypted")],
)
def test_addresses_that_cannot_be_or_would_show_the_key_are_refused(base, key, match):
    with pytest.raises(ConfigError, match=match):
        Endpoint(base, "m", key)


def test_requests_keep_to_the_rate(server, monkeypatch):
    writer, waited = Endpoint(server.base, "m", per_minute=60), []
    monkeypatch.setattr(writer._stopped, "wait", lambda seconds: bool(waited.append(seconds)))
    for _ in range(3):
        writer.answer("1. «dog»")
    assert waited[0] <= 0.01
    assert 1.5 < waited[2] <= 2.0


def test_token_statistics_are_tested_without_a_model(pack):
    made = {m.latent: m for m in label_latents(pack, range(24), None)}
    assert made[4].score == 1
    assert made[4].requests == 0
    assert pack.notes.label(4).source == "token statistics"
    nulls = [m.null for m in made.values() if m.null is not None]
    assert abs(sum(nulls) / len(nulls) - 0.5) < 0.2


def test_token_statistics_replace_nobodys_label(pack, server):
    pack.notes.set_label(4, "eights", "some-model", 0.9)
    list(label_latents(pack, range(24), None, again=True))
    assert pack.notes.label(4).text == "eights"
    assert pack.notes.label(1).source == "token statistics"


def test_a_local_model_answers_by_generating(tiny_model, pack):
    local = Local(tiny_model, "tiny")
    assert isinstance(local.answer("the dog", 4), str)
    with pytest.raises(ConfigError, match="room"):
        local.answer("the dog runs to the river. " * 40, 4)


def test_the_command_labels_reports_and_refuses(pack, server, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = ["label", str(pack.folder), "--with", server.base, "--latents", "1,4", "--at-once", "1"]
    assert run(flags) == 2
    assert "--model" in capsys.readouterr().err
    assert run([*flags, "--model", "toy-model"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "6 requests" in told
    assert "another latent's label" in told
    assert "Authorization" not in server.headers[0]
    assert run([*flags, "--model", "toy-model"]) == 0
    assert "Nothing is left to label" in capsys.readouterr().out
    assert run(["label", str(pack.folder), "--with", "tokens", "--latents", "7-5"]) == 2
    assert "backwards" in capsys.readouterr().err


def test_a_pack_without_control_windows_gives_labels_without_a_score_and_says_so(pack, server, capsys):
    pack.__dict__["controls"] = None
    found = next(label_latents(pack, [4], Endpoint(server.base, "m")))
    assert (found.score, found.null, found.requests) == (None, None, 1)


def test_a_model_that_refuses_leaves_latents_without_label_and_the_command_says_why(pack, server, capsys):
    words = server.answer
    server.answer = lambda question: "I'm sorry, but I can't help with that." if "«" in question else words(question)
    assert run(["label", str(pack.folder), "--with", server.base, "--model", "m", "--latents", "1,4"]) == 0
    assert "2 latents got no label: 2 times it refused" in " ".join(capsys.readouterr().out.split())
    assert pack.notes.labels() == {}
    many = [i for i in range(24) if pack.table["count"][i]]
    with pytest.raises(ConfigError, match=f"no label for the first {FRUITLESS} latents"):
        list(label_latents(pack, many, Endpoint(server.base, "m"), at_once=1))


def test_a_judge_that_thinks_without_an_end_gives_no_score(pack, server):
    words = server.answer
    server.answer = lambda question: "<think> perhaps [1, 2]" if "JSON list" in question else words(question)
    found = next(label_latents(pack, [4], Endpoint(server.base, "m")))
    assert found.text
    assert (found.score, found.null) == (None, None)


def test_reasoning_models_are_asked_with_the_settings_that_they_take(server):
    refusals = ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "'temperature' does not support 0")
    server.failures = [(400, {}, json.dumps({"error": {"message": text}})) for text in refusals]
    server.thinks = 1000
    writer = Endpoint(server.base, "o4")
    assert writer.answer("1. «dog»") == '"dog"'
    assert writer.answer("1. «cat»") == '"cat"'
    assert len(server.bodies) == 4
    assert {"max_tokens", "temperature"} & set(server.bodies[-1]) == set()
    assert server.bodies[-1]["max_completion_tokens"] == ROOM


def test_a_model_that_thinks_first_is_given_more_room_once(server):
    server.thinks = 1000
    writer = Endpoint(server.base, "qwen")
    assert [writer.answer("1. «dog»"), writer.answer("1. «dog»")] == ['"dog"'] * 2
    assert [body["max_tokens"] for body in server.bodies] == [200, ROOM, ROOM]
    server.thinks = 10**6
    with pytest.raises(NoAnswer, match="thinking"):
        writer.answer("1. «dog»")


def test_a_question_that_a_filter_holds_back_does_not_end_the_command(server):
    server.failures = [(400, {}, '{"error": {"code": "content_filter", "message": "held back"}}')]
    with pytest.raises(NoAnswer, match="filter"):
        Endpoint(server.base, "m").answer("x")


def test_nothing_is_asked_where_nothing_could_be_saved(pack, server, monkeypatch):
    (pack.folder / FILE).mkdir()
    with pytest.raises(NotSaved):
        next(label_latents(pack, [4], Endpoint(server.base, "m")))
    assert server.asked == []
