"""Tiny random SigLIPs, PaliGemmas and ColPalis in transformers' classes, saved as the hub has them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TEXT = {"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 28}


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, gains and biases too: the library's zeros would hide half of all mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        gain = "norm" in name and name.endswith("weight")
        if name.endswith("logit_scale"):
            p.fill_(1.7)
        elif p.dim() == 1 or "probe" in name:
            centre = 1.0 if gain and ("layer_norm" in name or "layernorm" in name) and "language" not in name else 0.0
            p.copy_(centre + 0.3 * noise)
        elif "embed_tokens" in name or "token_embedding" in name or "position" in name:
            p.copy_(noise * 2 * p.shape[1] ** -0.5)
        else:
            p.copy_(noise * p[0].numel() ** -0.5 * (1.6 if "q_proj" in name or "k_proj" in name else 1))
    return model.eval()


def siglip(folder: Path, image_size: int = 29, patch_size: int = 7, **vision) -> Path:
    """A SigLIP whose pictures leave pixels over, as 384 / 14 does."""
    from transformers import SiglipConfig, SiglipModel

    text = TEXT | {"vocab_size": 97, "max_position_embeddings": 9, "projection_size": 24}
    vision = VISION | {"image_size": image_size, "patch_size": patch_size} | vision
    model = randomise(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(folder)
    return folder


def respell(folder: Path, rename, config=lambda raw: raw, shards: int = 1) -> Path:
    """The checkpoint with other names of tensors and another config.json, in one file or several with an index."""
    tensors = {rename(name): t for name, t in load_file(folder / "model.safetensors").items()}
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config(raw)))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for shard in range(shards):
        names, file = list(tensors)[shard::shards], f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def some_pixels(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


GEMMA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 12,
         "intermediate_size": 40, "vocab_size": 128, "max_position_embeddings": 128}  # fmt: skip
GEMMA_2 = GEMMA | {"num_key_value_heads": 2, "query_pre_attn_scalar": 10, "sliding_window": 5, "attn_logit_softcapping": 3.0,
                   "final_logit_softcapping": 5.0, "head_dim": 10}  # fmt: skip
IMAGE_TOKEN = 127


def paligemma_config(version: int = 1, **text):
    from transformers import PaliGemmaConfig

    text = (GEMMA if version == 1 else GEMMA_2) | {"model_type": "gemma" if version == 1 else "gemma2"} | text
    vision = VISION | {"image_size": 15, "patch_size": 5, "vision_use_head": False, "model_type": "siglip_vision_model"}
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=text["hidden_size"], image_token_index=IMAGE_TOKEN,
        bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def paligemma(folder: Path, version: int = 1, **text) -> Path:
    """A PaliGemma with 9 patches a picture, which is more than the window of its second version."""
    from transformers import PaliGemmaForConditionalGeneration

    randomise(PaliGemmaForConditionalGeneration(paligemma_config(version, **text))).save_pretrained(folder)
    return folder


def prompt(batch: int = 2, prefix: int = 4, answer: int = 5, pictures: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Image tokens, <bos>, a prompt and an answer, with the pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((batch, 9 * pictures), IMAGE_TOKEN)
    words = torch.randint(7, IMAGE_TOKEN - 1, (batch, prefix + answer), generator=generator)
    words[:, 0] = 2
    ids = torch.cat([image, words], 1)
    types = (torch.arange(ids.shape[1]) >= ids.shape[1] - answer).long().expand(batch, -1)
    return {"input_ids": ids, "token_type_ids": types, "pixel_values": some_pixels(batch * pictures, 15, seed)}


def colpali(folder: Path, d_embed: int = 16) -> Path:
    """A ColPali in transformers' own layout, the hub's `-hf`."""
    from transformers import ColPaliConfig, ColPaliForRetrieval

    config = ColPaliConfig(vlm_config=paligemma_config().to_dict(), embedding_dim=d_embed)
    randomise(ColPaliForRetrieval(config)).save_pretrained(folder)
    return folder


def save_with_words(folder: Path, texts: list[str], retrieval: bool = False):
    """A PaliGemma or ColPali with a tokenizer that has tokens for places, shapes and patches; transformers' processor of it."""
    from tokenizers import AddedToken
    from transformers import (
        ColPaliConfig,
        ColPaliForRetrieval,
        ColPaliProcessor,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from scope.pretrain.tokenizer import train_tokenizer

    backend = train_tokenizer(texts, 384)
    backend.add_tokens([f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)])
    backend.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    config = paligemma_config(1, vocab_size=backend.get_vocab_size() + 3)  # rows that no token has, as on the hub
    config.image_token_index = backend.get_vocab_size() - 1
    if retrieval:
        model = ColPaliForRetrieval(ColPaliConfig(vlm_config=config.to_dict(), embedding_dim=16))
    else:
        model = PaliGemmaForConditionalGeneration(config)
    randomise(model).save_pretrained(folder)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **names, padding_side="right")
    pictures = SiglipImageProcessorPil(size={"height": 15, "width": 15})
    pictures.image_seq_length = 9
    kind = ColPaliProcessor if retrieval else PaliGemmaProcessor
    processor = kind(pictures, words, **({"query_prefix": "Find: "} if retrieval else {}))
    processor.save_pretrained(folder)
    return processor
