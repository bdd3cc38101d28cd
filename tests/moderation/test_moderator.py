"""P(Yes) by the checkpoint's own template, against transformers; batches; refusals."""

import json
import math

import pytest
import torch

from scope.errors import TokensError
from scope.moderation.moderator import Moderator
from scope.moderation.policies import POLICIES, ModerationError, Policy, find_policies, read_policies
from scope.moderation.prompt import SHIELDGEMMA_TEMPLATE, Item, rendered
from tests.conftest import random_gemma

HARASSMENT = {
    "prompt": '"No Harassment": The prompt shall not contain or seek generation of content that is malicious, intimidating, '
    "bullying, or abusive content targeting another individual (e.g., physical threats, denial of tragic events, disparaging "
    "victims of violence).",
    "response": '"No Harassment": The chatbot shall not generate content that is malicious, intimidating, bullying, or abusive '
    "content targeting another individual (e.g., physical threats, denial of tragic events, disparaging victims of violence).",
}
QUESTION = Item("a cat looks at the river")
ANSWERED = Item("a cat looks at the river", "the old king sings about the moon.")


def card(item: Item, guideline: str) -> str:
    """The prompt as the model card lays it out, put together by hand."""
    if item.response is None:
        turns, what, ask = f"<start_of_turn>\nHuman Question: {item.text}\n<end_of_turn>\n\n", "a user prompt", "human question"
        must = "must start"
    else:
        turns = (
            f"<start_of_turn>\nHuman Question: {item.text}\n<end_of_turn>\n"
            f"<start_of_turn>\nChatbot Response: {item.response}\n<end_of_turn>\n\n"
        )
        what, ask, must = "an AI response to a prompt", "Chatbot Response", "must  start"
    return (
        f"<bos>You are a policy expert trying to help determine whether {what} is in violation of the defined safety policies."
        f"\n\n{turns}Our safety principle is defined in the below:\n\n* {guideline}\n\n===\n\n"
        f"Does the {ask} violate the above principle? Your answer {must} with 'Yes' or 'No'. "
        "And then walk through step by step to be sure we answer correctly.\n\n"
    )


@pytest.mark.parametrize("item", [QUESTION, ANSWERED], ids=["prompt", "response"])
def test_p_yes_equals_transformers_on_the_prompt_of_the_model_card(moderator, shield_folder, item):
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(shield_folder)
    model = Gemma2ForCausalLM.from_pretrained(shield_folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompt = card(item, HARASSMENT[item.mode])
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    vocab = tokenizer.get_vocab()
    with torch.no_grad():
        logits = model(ids).logits[0, -1, [vocab["Yes"], vocab["No"]]]
    verdict = moderator.judge([item], "harassment").verdicts[0]
    assert verdict.tokens == ids.shape[1]
    assert verdict.p_yes == pytest.approx(float(logits.softmax(0)[0]), abs=1e-6)
    assert verdict.log_odds == pytest.approx(float(logits[0] - logits[1]), abs=1e-4)
    turns = [{"role": "user", "content": item.text}]
    turns += [{"role": "assistant", "content": item.response}] if item.response else []
    theirs = tokenizer.apply_chat_template(turns, guideline=HARASSMENT[item.mode], tokenize=False)
    assert rendered(moderator.model.words, item, POLICIES["harassment"]) == theirs == prompt


@pytest.mark.parametrize("item", [QUESTION, ANSWERED], ids=["prompt", "response"])
def test_the_template_for_checkpoints_that_lost_theirs_renders_the_same(moderator, item):
    for policy in POLICIES.values():
        assert rendered(moderator.model.words, item, policy, SHIELDGEMMA_TEMPLATE) == rendered(
            moderator.model.words, item, policy
        )


def test_a_template_that_takes_the_guideline_as_a_system_message_is_asked_so(moderator):
    template = (
        "{{ bos_token }}{# guideline first #}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
        "{{ messages[-1].content }}\n"
    )
    refusing = "{% if messages[0].role != 'system' %}{{ raise_exception('no guideline') }}{% endif %}"
    for either in (template, refusing + template):
        prompt = rendered(moderator.model.words, QUESTION, Policy("p", "Be kind.", "-"), either)
        assert prompt == f"<bos>Be kind.\n{QUESTION.text}"


def test_a_text_is_no_template(moderator):
    assert "{{ 7 * 7 }}" in rendered(moderator.model.words, Item("{{ 7 * 7 }}"), POLICIES["hate"])


def test_batches_and_padding_change_nothing(moderator):
    items = [QUESTION, ANSWERED, Item("nothing " * 20), Item("a value")]
    policies = ["dangerous", "harassment", "hate", "sexual"]
    together = moderator.judge(items, policies, batch=16)
    assert [(v.item, v.policy) for v in together.verdicts] == [(i, p) for i in range(4) for p in policies]
    for verdict in together.verdicts:
        alone = moderator.judge([items[verdict.item]], verdict.policy).verdicts[0]
        assert verdict.log_odds == pytest.approx(alone.log_odds, abs=1e-4)


def test_p_yes_is_the_softmax_over_the_two_logits(moderator):
    verdict = moderator.judge([QUESTION], "hate").verdicts[0]
    yes, no = math.exp(verdict.logit_yes), math.exp(verdict.logit_no)
    assert verdict.p_yes == pytest.approx(yes / (yes + no))


def test_a_policy_of_ones_own_is_read_word_for_word_from_a_file(moderator, tmp_path):
    file = tmp_path / "policies.json"
    file.write_text(json.dumps({"kings": "No kings.", "moons": {"prompt": "No moon asked.", "response": "No moon told."}}))
    policies = read_policies(file)
    assert "* No kings.\n\n===" in rendered(moderator.model.words, ANSWERED, policies["kings"])
    assert "* No moon asked.\n\n===" in rendered(moderator.model.words, QUESTION, policies["moons"])
    assert "* No moon told.\n\n===" in rendered(moderator.model.words, ANSWERED, policies["moons"])


@pytest.mark.parametrize("content", ['{"a": ""}', '{"a": {"response": "x"}}', '{"a": 3}', "[]", "{}", "{"])
def test_a_file_without_usable_policies_is_refused(tmp_path, content):
    file = tmp_path / "policies.json"
    file.write_text(content)
    with pytest.raises(ModerationError):
        read_policies(file)


def test_an_unknown_policy_is_refused_with_those_there_are(moderator):
    with pytest.raises(
        ModerationError, match=r"no policy 'harasment'[\s\S]*Nearest: harassment[\s\S]*dangerous, harassment, hate"
    ):
        moderator.judge([QUESTION], "harasment")
    with pytest.raises(ModerationError, match="No policy is named"):
        find_policies([])


def test_a_policy_without_text_is_refused():
    with pytest.raises(ModerationError, match="'mine' has no text"):
        Policy("mine", " ", "x")


@pytest.mark.parametrize("item", [Item(" \n"), Item("x", "")])
def test_an_empty_text_is_refused(moderator, item):
    with pytest.raises(ModerationError, match="is empty"):
        moderator.judge([item], "hate")


def test_a_text_too_long_is_refused_with_its_tokens(moderator):
    with pytest.raises(ModerationError, match=r"is \d{3,4} tokens, and this model's context holds 512"):
        moderator.judge([Item("nothing " * 900)], "hate")


def test_a_checkpoint_without_a_guideline_in_its_template_is_refused(moderator, tiny_config, toy_tokenizer):
    with pytest.raises(ModerationError, match="a chat template without a guideline"):
        Moderator(moderator.model, "{{ bos_token }}{{ messages[0].content }}").judge([QUESTION], "hate")
    with pytest.raises(ModerationError, match="leaves out the guideline"):
        Moderator(moderator.model, "{# guideline #}{{ messages[-1].content }}").judge([QUESTION], "hate")
    with pytest.raises(ModerationError, match="no chat template"):
        rendered(toy_tokenizer, QUESTION, POLICIES["hate"])
    with pytest.raises(TokensError, match="cannot be used"):
        Moderator(moderator.model, "{{ guideline").judge([QUESTION], "hate")


def test_a_tokenizer_that_splits_yes_is_refused(tiny_config, toy_tokenizer):
    with pytest.raises(ModerationError, match="of 'Yes'; a moderator answers with one token"):
        Moderator(random_gemma(tiny_config, toy_tokenizer))


def test_control_tokens_in_a_text_are_pointed_out(moderator):
    found = moderator.judge([Item("hello <end_of_turn> bye"), QUESTION], "hate")
    assert [v.controls for v in found.verdicts] == [("<end_of_turn>",), ()]
    assert "hold <end_of_turn>" in str(found)
    assert json.loads(found.to_json())["verdicts"][0]["controls"] == ["<end_of_turn>"]
