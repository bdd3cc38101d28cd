"""Chat turns: laid out by the checkpoint's own template exactly as transformers lays them out, <bos> once."""

import json

import pytest

from scope.errors import TokensError
from scope.models.load import load_model
from scope.models.text.tokenizer import Tokenizer
from tests.conftest import random_gemma
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
