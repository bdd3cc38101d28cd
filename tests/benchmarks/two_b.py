"""The true shape of Gemma 2 2B with random bfloat16 weights: loaded, run and compared with transformers; streamed from disk
under a limit of half its weights. Run by hand, whole or in parts, with 6 GB of disk and 7 GB of memory to spare:

    python -m tests.benchmarks.two_b --folder FOLDER [--part make ours theirs compare streamed]

Every part is a process of its own, so that no memory is shared and each can be limited. The folder can be thrown away.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.benchmarks.streamed import last_site, memory, some_contexts, weights

SITE = "blocks.12.hook_resid_post"
PARTS = ("make", "ours", "theirs", "compare", "streamed")


def make(folder: Path, args) -> None:
    """A checkpoint as the hub has it, in three shards."""
    from safetensors.torch import save_file

    from scope.models.checkpoints import BUNDLED
    from scope.models.gemma.config import GemmaConfig
    from scope.models.gemma.model import Gemma
    from scope.models.gemma.weights import tensor_names

    config = GemmaConfig(
        d_model=2304, n_layers=args.layers, n_heads=8, n_kv_heads=4, d_head=256, d_mlp=9216, d_vocab=args.vocabulary
    )
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Gemma(config).named_parameters()}
    names, generator = tensor_names(config), torch.Generator().manual_seed(0)
    groups, weight_map = [list(shapes)[i::3] for i in range(3)], {}
    for i, group in enumerate(groups):
        file, tensors = f"model-{i + 1:05d}-of-00003.safetensors", {}
        for name in group:
            shape = shapes[name]
            scale = 0.2 if len(shape) == 1 else shape[1] ** -0.5
            tensors[names[name]] = (torch.randn(shape, generator=generator) * scale).bfloat16()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((BUNDLED / file).read_bytes())
    print(f"{weights(folder) / 1e9:.2f} GB of weights in {folder}")


def ours(folder: Path, args) -> None:
    from scope.models.load import load_model

    started = time.perf_counter()
    model = load_model(str(folder), dtype="bfloat16")
    loaded = time.perf_counter() - started
    tokens = short(model.cfg.d_vocab)
    with torch.no_grad():
        model(tokens[:, :4])
        started = time.perf_counter()
        logits, cache = model.run_with_cache(tokens, names_filter=[SITE])
        ran = time.perf_counter() - started
        started = time.perf_counter()
        model.generate(tokens, 8, do_sample=False, stop_at_eos=False)
        wrote = time.perf_counter() - started
    over = memory("VmHWM") - weights(folder)
    print(f"ours: loaded in {loaded:.1f} s, {tokens.numel()} tokens in {ran:.2f} s, 8 more in {wrote:.2f} s; ", end="")
    print(f"peak {memory('VmHWM') / 1e9:.2f} GB, weights and {over / 1e9:.2f} GB")
    site, batch = last_site(model.cfg.n_layers), some_contexts(args.contexts[0], model.cfg.d_vocab)
    torch.save(model.record(batch, [site])[site], folder / "resident.pt")
    torch.save({"logits": logits.float(), SITE: cache[SITE].float()}, folder / "ours.pt")


def theirs(folder: Path, args) -> None:
    from transformers import Gemma2ForCausalLM

    started = time.perf_counter()
    model = Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    loaded = time.perf_counter() - started
    tokens = short(model.config.vocab_size)
    with torch.no_grad():
        model(tokens[:, :4], use_cache=False)
        started = time.perf_counter()
        out = model(tokens, use_cache=False, output_hidden_states=True)
        ran = time.perf_counter() - started
        started = time.perf_counter()
        model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False, eos_token_id=None)
        wrote = time.perf_counter() - started
    site = out.hidden_states[int(SITE.split(".")[1]) + 1]
    torch.save({"logits": out.logits.float(), SITE: site.float()}, folder / "theirs.pt")
    print(f"transformers: loaded in {loaded:.1f} s, {tokens.numel()} tokens in {ran:.2f} s, 8 more in {wrote:.2f} s; ", end="")
    print(f"peak {memory('VmHWM') / 1e9:.2f} GB")


def compare(folder: Path, args) -> None:
    a, b = (torch.load(folder / f"{name}.pt") for name in ("ours", "theirs"))
    for name in ("logits", SITE):
        gap, size = (a[name] - b[name]).abs().max(), b[name].abs().max()
        print(f"{name}: {'the same to the last bit' if gap == 0 else f'within {gap:.2g} of values up to {size:.3g}'}")
    p, q = (x["logits"][0].double().log_softmax(-1) for x in (a, b))
    same = (p.argmax(-1) == q.argmax(-1)).float().mean()
    print(f"mean KL {(p.exp() * (p - q)).sum(-1).mean():.1e} nats, the same top token at {same:.0%} of positions")


def streamed(folder: Path, args) -> None:
    """As tests.benchmarks.streamed, of the whole model."""
    from tests.benchmarks import streamed

    streamed.streamed(folder, args.contexts)


def short(d_vocab: int) -> torch.Tensor:
    tokens = torch.randint(7, d_vocab, (1, 48), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 2
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1, 8], help="of 256 tokens, in streamed batches")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--vocabulary", type=int, default=256000)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        globals()[args.part[0]](args.folder, args)
        return
    sizes = ["--layers", str(args.layers), "--vocabulary", str(args.vocabulary)]
    sizes += ["--contexts", *(str(n) for n in args.contexts)]
    for part in args.part:
        command = [sys.executable, "-m", "tests.benchmarks.two_b", "--folder", str(args.folder), "--part", part, *sizes]
        subprocess.run([*command, "--here"], check=True)


if __name__ == "__main__":
    main()
