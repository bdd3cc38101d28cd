"""A byte-pair tokenizer laid out as Gemma's: special tokens first, byte fallback, spaces as part of the pieces."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")

# A word takes the one space before it along; digits stand alone; runs of spaces and of newlines are pieces (for code).
_PIECES = Regex(r"▁+(?=▁[^▁\n])|▁?[\p{L}\p{M}]+|▁?\p{N}|\n+|▁+(?=\n|$)|▁?[^▁\n\p{L}\p{M}\p{N}]+|▁+")

_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
    "message['role']) + '\\n' + (message['content'] | trim) + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], d_vocab: int) -> Tokenizer:
    """Learn `d_vocab` pieces. Text goes in as it is: no dummy prefix, nothing lost, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_PIECES, behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_pieces = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        min_frequency=2,
        special_tokens=[*SPECIAL, *byte_pieces],
        limit_alphabet=400,
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_plain_bytes(tokenizer)


def _with_plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer wants the byte pieces to be special; they are ordinary pieces, so that decoding shows them."""
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] in SPECIAL]
    plain = Tokenizer.from_str(json.dumps(raw))
    plain.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    bos = plain.token_to_id("<bos>")
    plain.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    return plain


def save_tokenizer(tokenizer: Tokenizer, folder: Path, n_ctx: int) -> None:
    """tokenizer.json and the two small files beside it that AutoTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>", "mask_token": "<mask>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "padding_side": "left",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT,
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1))
