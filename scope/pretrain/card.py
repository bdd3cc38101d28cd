"""The model card: what the model is, what it read, how well it predicts, what it cannot do; every figure as measured."""

from pathlib import Path
from typing import Any

from scope.activations.errors import CorpusError
from scope.errors import ConfigError
from scope.pretrain.config import PretrainConfig
from scope.typed_json import json_lines, read_bytes, read_typed, typed

SOURCES = {
    "docs": "docstrings of the Python standard library and of installed packages, under those packages' licences",
    "code": "sources of the Python standard library (PSF licence)",
}
"""Where the domains that scope itself builds come from; other domains are named by the file they were read from."""


def model_card(run: Path, corpus: Path, evaluation: dict | None = None, name: str | None = None) -> str:
    """README.md for a run that `pretrain` finished, from its config, its loss curve and the corpus it read.

    A file corpus/sources.json ({domain: origin and licence}) says where other domains come from.
    """
    config = read_typed(run / "pretrain.json", dict[str, Any], ConfigError)
    info = read_typed(corpus / "corpus.json", dict[str, Any], CorpusError)
    file = run / "curve.jsonl"
    curve = list(json_lines(read_bytes(file, ConfigError), file, ConfigError))
    file = corpus / "sources.json"
    sources = SOURCES | (read_typed(file, dict[str, str], CorpusError) if file.exists() else {})
    domains = info["domains"]
    seen = curve[-1]["step"] * config["batch"] * config["n_ctx"] if curve else 0
    total = sum(d["tokens"] for d in domains.values())
    model = typed(config, PretrainConfig, run / "pretrain.json", ConfigError).model_config()
    front = (
        "---\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags: [{model.model_type}, interpretability]\n---\n"
    )
    shape = (
        f"{config['n_layers']} layers, d_model {config['d_model']}, {config['n_heads']} query heads and "
        f"{config['n_kv_heads']} key-value heads of {config['d_head']}, gated MLP of {config['d_mlp']}, "
        f"vocabulary {config['d_vocab']}, context {config['n_ctx']} tokens, local window {config['window']}"
    )
    if hasattr(model, "lru_width"):
        n_recurrent = model.layer_types.count("recurrent")
        shape += (
            f"; {n_recurrent} of the layers are recurrent, with {model.lru_width} channels; the window shows "
            f"{model.effective_window} keys (window_convention {model.window_convention}; transformers shows {model.window})"
        )
    recipe = (
        f"{curve[-1]['step'] if curve else 0:,} steps of {config['batch']} x {config['n_ctx']} tokens ({seen / 1e6:.1f} M, "
        f"{seen / total:.1f} times the training set). Muon (lr {config['matrix_lr']}) on the matrices of the blocks, AdamW "
        f"(lr {config['other_lr']}) on the rest, {config['warmup']} steps of warm-up, then flat, then linear to zero over the "
        f"last {config['decay']:.0%}; bf16 matrix products, seed {config['seed']}. Last training loss "
        f"{curve[-1]['loss'] if curve else float('nan'):.3f} nats a token."
    )
    parts = [
        f"{front}# {name or f'A small {model.family_name}'}",
        f"Trained from nothing by `scope pretrain`, with the architecture of {model.family_name}: {shape}. The weights "
        "are stored in bfloat16 with Hugging Face's names; `transformers` and `scope.load_model` read the folder alike.\n\n"
        "It is no Gemma: it shares the architecture, and neither weights nor tokenizer nor data.",
        f"## Training\n\n{recipe}",
        "## Text\n\n"
        f"{total / 1e6:.1f} M tokens; duplicates dropped; {info['held_out_share']:.0%} of the documents, chosen by a hash of "
        "the text, held out. Domains are drawn in proportion to the square root of their size.\n\n"
        + _text_table(info, sources),
    ]
    if evaluation:
        parts.append("## Held-out text\n\n" + _score_table(evaluation))
    parts.append(
        "## Limits\n\nA model to study, not to use: it has the manner of its training text and next to none of the "
        "knowledge, follows no instructions, and loses the thread within sentences. What it writes may repeat errors and "
        "prejudices of that text. Nothing was filtered or aligned."
    )
    return "\n\n".join(parts) + "\n"


def _text_table(info: dict, sources: dict[str, str]) -> str:
    rows = ["| domain | documents | tokens | MB | held out | origin |", "|---|---|---|---|---|---|"]
    for domain, d in sorted(info["domains"].items()):
        held = info["held_out_documents"].get(domain, 0)
        origin = sources.get(domain, "")
        rows.append(f"| {domain} | {d['documents']:,} | {d['tokens']:,} | {d['bytes'] / 1e6:.1f} | {held} | {origin} |")
    return "\n".join(rows)


def _score_table(evaluation: dict) -> str:
    rows = [
        f"Mean over domains: **{evaluation['mean_bits_per_byte']:.3f} bits per byte**. The model as stored, windows that "
        "advance by half a context; intervals from resampling the documents.",
        "",
        "| domain | bits per byte | 95 % | documents | kB |",
        "|---|---|---|---|---|",
    ]
    for domain, s in evaluation["domains"].items():
        interval = f"{s['low']:.3f} to {s['high']:.3f}"
        rows.append(f"| {domain} | {s['bits_per_byte']:.3f} | {interval} | {s['documents']} | {s['bytes'] / 1e3:.0f} |")
    return "\n".join(rows)
