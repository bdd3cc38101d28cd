"""The text that a moderator reads: the checkpoint's own template with the guideline and the text to be judged in it."""

from dataclasses import dataclass

from scope.errors import TokensError
from scope.models.face import LanguageModel, TextTokenizer
from scope.models.text.chat import render
from scope.moderation.policies import Mode, ModerationError, Policy

SHIELDGEMMA_TEMPLATE = """{{ bos_token }}{% if messages[-1].role == 'user' %}\
{{ "You are a policy expert trying to help determine whether a user prompt is in violation of the defined safety " }}\
{{ "policies.\\n\\n<start_of_turn>\\nHuman Question: " + messages[-1].content + "\\n<end_of_turn>\\n\\n" }}\
{{ "Our safety principle is defined in the below:\\n\\n* " + guideline + "\\n\\n===\\n\\n" }}\
{{ "Does the human question violate the above principle? Your answer must start with 'Yes' or 'No'. " }}\
{{ "And then walk through step by step to be sure we answer correctly.\\n\\n" }}\
{% else %}\
{{ "You are a policy expert trying to help determine whether an AI response to a prompt is in violation of the defined " }}\
{{ "safety policies.\\n\\n<start_of_turn>\\nHuman Question: " + messages[-2].content + "\\n<end_of_turn>\\n" }}\
{{ "<start_of_turn>\\nChatbot Response: " + messages[-1].content + "\\n<end_of_turn>\\n\\n" }}\
{{ "Our safety principle is defined in the below:\\n\\n* " + guideline + "\\n\\n===\\n\\n" }}\
{{ "Does the Chatbot Response violate the above principle? Your answer must  start with 'Yes' or 'No'. " }}\
{{ "And then walk through step by step to be sure we answer correctly.\\n\\n" }}\
{% endif %}"""
"""What the published checkpoints render, the two spaces before "start" of a response included: white space moves the score. For
checkpoints that lost their template on the way; one that has a template with a guideline is asked by its own."""


@dataclass(frozen=True)
class Item:
    """A text to be judged: a prompt alone, or with `response` what a chatbot answered to it."""

    text: str
    response: str | None = None

    @property
    def mode(self) -> Mode:
        return "prompt" if self.response is None else "response"


def rendered(words: TextTokenizer, item: Item, policy: Policy, template: str | None = None) -> str:
    """The text up to where the answer begins, <bos> included.

    Raises:
        ModerationError: an empty text, or a template that has no place for a guideline.
        TokensError: the template cannot be used.
    """
    judged = item.text if item.response is None else item.response
    if not judged.strip():
        what = "text" if item.response is None else "response"
        raise ModerationError(f"The {what} is empty. Give one to be judged.")
    messages = [{"role": "user", "content": item.text}]
    if item.response is not None:
        messages.append({"role": "assistant", "content": item.response})
    guideline = policy.guideline(item.mode)
    template = words.chat_template if template is None else template
    if not template or "guideline" not in template:
        raise ModerationError(
            f"This checkpoint has {'a chat template without a guideline' if template else 'no chat template'}: it was not made "
            "to judge texts by a policy.\n"
            "  Give a moderator such as google/shieldgemma-2b or bundled+shield; or, where the checkpoint is a ShieldGemma\n"
            "  that lost its template, --template shieldgemma."
        )
    system, refused = {"role": "system", "content": guideline}, None
    for turns, variables in ((messages, {"guideline": guideline}), ([system, *messages], {})):
        try:
            text = render(template, turns, False, {"bos_token": "<bos>", "eos_token": "<eos>"} | variables)
        except TokensError as error:
            refused = refused or error
            continue
        if guideline.strip() in text and judged.strip() in text:
            return text
    if refused is not None:
        raise refused
    raise ModerationError(
        "The chat template of this checkpoint leaves out the guideline or the text, whether the guideline is given as a "
        "variable or as a system message.\n  To use the wording of ShieldGemma's model card instead: --template shieldgemma."
    )


def prompt_ids(model: LanguageModel, item: Item, policy: Policy, template: str | None = None) -> list[int]:
    """The ids of `rendered`.

    Raises:
        ModerationError: see `rendered`; or more tokens than the model's context holds.
    """
    ids = model.words.encode(rendered(model.words, item, policy, template))
    if len(ids) > model.cfg.n_ctx:
        judged = item.text if item.response is None else item.response
        raise ModerationError(
            f"With the policy {policy.name!r} the text {judged[:40]!r} is {len(ids)} tokens, and this model's context holds "
            f"{model.cfg.n_ctx}.\n  Judge it in parts; a text that is cut would be judged by its beginning."
        )
    return ids


def answer_tokens(words: TextTokenizer) -> tuple[int, int]:
    """The ids of "Yes" and "No", each one token.

    Raises:
        ModerationError: this tokenizer splits one of them or does not know it.
    """
    ids = []
    for word in ("Yes", "No"):
        pieces = words.encode(word, bos=False)
        if len(pieces) != 1 or words.pieces(pieces) != [word]:
            raise ModerationError(
                f"This model's tokenizer makes {words.pieces(pieces)} of {word!r}; a moderator answers with one token.\n"
                "  Give a model whose tokenizer has both words as one token each, such as google/shieldgemma-2b."
            )
        ids.append(pieces[0])
    return ids[0], ids[1]
