"""A tiny random ShieldGemma: a checkpoint folder with its template, which transformers and scope read alike."""

import json
from pathlib import Path

import pytest

from scope.models.gemma.config import GemmaConfig
from scope.models.load import load_model
from scope.models.text.tokenizer import Tokenizer
from scope.moderation.moderator import Moderator
from scope.moderation.policies import SHIELDGEMMA
from scope.moderation.prompt import SHIELDGEMMA_TEMPLATE
from scope.pretrain.export import export
from scope.pretrain.tokenizer import save_tokenizer, train_tokenizer
from tests.conftest import random_gemma

# As in tokenizer_config.json of the published checkpoints, with blocks over several lines.
PUBLISHED = """{{- bos_token }}
{%- if messages[-1].role == 'user' %}
    {{- "You are a policy expert trying to help determine whether a user prompt is in violation of the defined safety policies.\\n\\n" }}
    {{- "<start_of_turn>\\n" }}
    {{- "Human Question: " + messages[-1].content }}
    {{- "\\n<end_of_turn>\\n\\n" }}
    {{- "Our safety principle is defined in the below:\\n\\n" }}
    {{- "* " + guideline + "\\n" }}
    {{- "\\n===\\n\\n" }}
    {{- "Does the human question violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.\\n\\n" }}
{%- else %}
    {{- "You are a policy expert trying to help determine whether an AI response to a prompt is in violation of the defined safety policies.\\n\\n" }}
    {{- "<start_of_turn>\\n" }}
    {{- "Human Question: " + messages[-2].content }}
    {{- "\\n<end_of_turn>\\n" }}
    {{- "<start_of_turn>\\n" }}
    {{- "Chatbot Response: " + messages[-1].content }}
    {{- "\\n<end_of_turn>\\n\\n" }}
    {{- "Our safety principle is defined in the below:\\n\\n" }}
    {{- "* " + guideline + "\\n" }}
    {{- "\\n===\\n\\n" }}
    {{- "Does the Chatbot Response violate the above principle? Your answer must  start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.\\n\\n" }}
{%- endif %}

"""  # noqa: E501


@pytest.fixture(scope="session")
def shield_folder(toy_text, tmp_path_factory) -> Path:
    words = [SHIELDGEMMA_TEMPLATE, *(p.prompt + p.response for p in SHIELDGEMMA), "Yes\nNo\nYes\nNo"] * 20
    backend = train_tokenizer([*toy_text, *words], 640)
    folder = tmp_path_factory.mktemp("shield")
    save_tokenizer(backend, folder / "tokenizer", 512)
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": PUBLISHED}))
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 12, "d_mlp": 48, "query_scalar": 12}
    config = GemmaConfig(d_vocab=backend.get_vocab_size(), n_ctx=512, window=128, **shape)
    return export(random_gemma(config, Tokenizer(backend)), folder / "tokenizer", folder / "model", "# A tiny ShieldGemma\n")


@pytest.fixture(scope="session")
def moderator(shield_folder) -> Moderator:
    return Moderator(load_model(str(shield_folder)))
