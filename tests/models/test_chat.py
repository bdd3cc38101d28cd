"""Chat turns: laid out by the checkpoint's own template exactly as transformers lays them out, <bos> once."""

import json

import jinja2
import pytest

from scope.errors import CheckpointError, TokensError
from scope.models.load import load_model
from scope.models.text.tokenizer import Tokenizer
from tests.conftest import random_gemma
from tests.models.chat_templates import TEMPLATES
from tests.models.twins import save_checkpoint

# In the manner of the released ones: roles that must alternate, no system turn, trimmed text, and a guideline for a judge.
CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
JUDGE = (
    "{{ bos_token }}You judge a text.\n<start_of_turn>\n{% for message in messages %}\n{{ message['content'] | trim }}\n"
    "{% endfor %}\n<end_of_turn>\n{% if guideline is defined %}* {{ guideline }}\n{% endif %}===\nYes or No?\n\n"
)
TURNS = [
    {"role": "user", "content": " the dog runs \n"},
    {"role": "assistant", "content": "to the river"},
    {"role": "user", "content": "{{ 7 * 7 }} <end_of_turn>"},
]


@pytest.fixture(params=["in the config", "in a file"])
def folder(request, tmp_path, tiny_config, toy_tokenizer):
    save_checkpoint(random_gemma(tiny_config), tmp_path, toy_tokenizer)
    if request.param == "in a file":
        (tmp_path / "chat_template.jinja").write_text(CHAT)
    else:
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT}))
    return tmp_path


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_turns_become_the_text_and_the_ids_that_transformers_makes(folder, ask, n):
    from transformers import AutoTokenizer

    mine, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    text = theirs.apply_chat_template(TURNS[:n], tokenize=False, add_generation_prompt=ask)
    assert mine.chat(TURNS[:n], ask) == text
    assert mine.encode(mine.chat(TURNS[:n], ask)) == theirs(text, add_special_tokens=False)["input_ids"]
    assert mine.encode(mine.chat(TURNS[:n], ask)).count(mine.bos) == 1


def test_what_the_template_refuses_is_refused_with_its_reason(folder):
    words = Tokenizer.from_folder(folder)
    with pytest.raises(TokensError, match="System role not supported"):
        words.chat([{"role": "system", "content": "be good"}])
    with pytest.raises(TokensError, match="Roles must alternate"):
        words.chat([TURNS[0], TURNS[0]])


def test_a_template_may_ask_for_more_than_turns(tmp_path, toy_tokenizer):
    words = Tokenizer(toy_tokenizer.backend, JUDGE)
    assert "* no hats\n===" in words.chat([TURNS[0]], guideline="no hats")
    assert "*" not in words.chat([TURNS[0]])


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0].content.nothing.more }}"])
def test_a_template_that_cannot_be_used_is_said_to_be_so(template, toy_tokenizer):
    with pytest.raises(TokensError, match="cannot be used here"):
        Tokenizer(toy_tokenizer.backend, template).chat(TURNS[:1])


def test_a_reply_ends_with_its_turn_and_a_model_without_a_template_says_so(folder, tiny_model):
    model = load_model(str(folder))
    end = model.words.backend.token_to_id("<end_of_turn>")

    def insist(x, hook):  # the third new token ends the turn
        x = x.clone()
        x[:, -1, :] = -1.0
        new = hook.run.positions[:, -1] - hook.run.prompt_lengths
        x[:, -1, end if int(new[0]) == 1 else 9] = 1.0
        return x

    (reply,) = model.generate(TURNS, 8, do_sample=False, return_type="generations", fwd_hooks=[("unembed.hook_out", insist)])
    assert (reply.new_ids, reply.stopped_by) == ((9, 9), "eos")
    with pytest.raises(TokensError, match="no chat template"):
        tiny_model.generate(TURNS[:1])


# Every template of the table, as transformers renders it, refusals included.

SYSTEM = {"role": "system", "content": "be <b>good</b> & brief"}
CALL = [
    TURNS[0],
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "find", "arguments": {"z": 1, "a": "<é>"}}}]},
    {"role": "tool", "content": "found"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}]
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Finds <it> & more", "parameters": {"z": 1, "a": 2}}}]
DOCUMENTS = [{"title": "A", "text": "first"}, {"title": "B", "text": "second"}]
CONVERSATIONS = [TURNS[:1], TURNS, [SYSTEM, *TURNS], [TURNS[0], TURNS[0]], CALL, PARTS]


@pytest.fixture(scope="module")
def any_folder(tmp_path_factory, toy_tokenizer):
    from scope.pretrain.tokenizer import save_tokenizer

    folder = tmp_path_factory.mktemp("chat")
    save_tokenizer(toy_tokenizer.backend, folder, 64)
    return folder


def settle(folder, **settings):
    file = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key != "chat_template"}
    file.write_text(json.dumps(kept | settings))
    return folder


def theirs_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def both(mine, theirs, turns, ask=True, **variables):
    """(our text, theirs); "refused" for a refusal, which with us is a TokensError."""
    try:
        ours = mine.chat(turns, ask, **variables)
    except TokensError:
        ours = "refused"
    try:
        return ours, theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask, **variables)
    except (jinja2.TemplateError, TypeError, ValueError):
        return ours, "refused"


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_template_in_the_manner_of_a_released_model_gives_the_text_that_transformers_gives(name, any_folder):
    settle(any_folder, chat_template=TEMPLATES[name], eos_token="<end_of_turn>", unk_token="<unk>")
    mine, theirs = Tokenizer.from_folder(any_folder), theirs_of(any_folder)
    rendered = []
    for turns in CONVERSATIONS:
        for ask in (True, False):
            for variables in ({}, {"tools": TOOLS}, {"documents": DOCUMENTS, "guideline": "no hats"}):
                ours, expected = both(mine, theirs, turns, ask, **variables)
                assert ours == expected, (turns, ask, variables)
                rendered.append(ours)
    assert sum(text != "refused" for text in rendered) > 5


@pytest.mark.parametrize("decoder", [None, {}])
def test_the_older_file_of_special_tokens_counts_where_it_does_in_transformers(decoder, any_folder):
    settle(any_folder, chat_template="{{ eos_token }}", eos_token="<end_of_turn>", added_tokens_decoder=decoder)
    mine, theirs = Tokenizer.from_folder(any_folder), theirs_of(any_folder) if decoder is not None else None
    assert mine.chat(TURNS) == ("<eos>" if decoder is None else both(mine, theirs, TURNS)[1])


def test_several_templates_are_chosen_among_as_transformers_does(any_folder):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    settle(any_folder, chat_template=named)
    mine, theirs = Tokenizer.from_folder(any_folder), theirs_of(any_folder)
    assert both(mine, theirs, TURNS) == ("plain", "plain")
    assert both(mine, theirs, TURNS, tools=TOOLS) == ("with tools", "with tools")
    settle(any_folder, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(TokensError, match="chat templates for rag, and none that is called default"):
        Tokenizer.from_folder(any_folder).chat(TURNS)
    settle(any_folder, chat_template=[])
    with pytest.raises(CheckpointError, match="names no template"):
        Tokenizer.from_folder(any_folder)


def test_a_template_in_a_file_goes_before_one_in_the_settings(any_folder):
    settle(any_folder, chat_template="in the settings")
    (any_folder / "chat_template.jinja").write_text("in a file")
    (any_folder / "additional_chat_templates").mkdir()
    (any_folder / "additional_chat_templates/tool_use.jinja").write_text("tools in a file")
    mine, theirs = Tokenizer.from_folder(any_folder), theirs_of(any_folder)
    assert both(mine, theirs, TURNS) == ("in a file", "in a file")
    assert both(mine, theirs, TURNS, tools=TOOLS) == ("tools in a file", "tools in a file")
    (any_folder / "chat_template.jinja").unlink()
    (any_folder / "additional_chat_templates/tool_use.jinja").unlink()


def test_no_turns_are_refused(toy_tokenizer):
    with pytest.raises(TokensError, match="Turns are a list of messages"):
        Tokenizer(toy_tokenizer.backend, "x").chat([])
