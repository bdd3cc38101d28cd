"""Our Gemmas beside transformers' and TransformerLens' in one run: forward, caches, records, decoding. Run by hand:

    python -m tests.benchmarks.models [--model 2b bundled] [--dtype float32 bfloat16] [--what forward cache decode]

"2b" has Gemma 2 2B's proportions with two layers and a small vocabulary, random weights and a window shorter than the longer
texts; "gemma1" is the same of Gemma 1 2B, "gemma3" of Gemma 3 1B with six layers, of which the last is global; "bundled" is
the model that ships. All hold the same weights and take turns; the figures are medians, and a ratio above 1
says how many times longer the other takes. transformers runs eager attention, and SDPA where it
accepts that: it refuses it for a soft cap, which the run checks. Its flex attention, which may cap, is tried too with --flex
(it compiles, which takes minutes). TransformerLens gets names_filter, and, in the last column, stop_at_layer. "Equal" says how
far the results are apart.
"""

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.model import Gemma
from scope.models.gemma.weights import tensor_names
from scope.models.load import load_model
from scope.models.transformer_lens.bridge import hooked_transformer

TWO_B = GemmaConfig(
    d_model=2304, n_layers=2, n_heads=8, n_kv_heads=4, d_head=256, d_mlp=9216, d_vocab=8192, n_ctx=2048, window=256
)
RANDOM = {
    "2b": TWO_B,
    "gemma1": GemmaConfig(
        model_type="gemma",
        d_model=2048,
        n_layers=2,
        n_heads=8,
        n_kv_heads=1,
        d_head=256,
        d_mlp=16384,
        d_vocab=8192,
        n_ctx=2048,
        attn_cap=None,
        final_cap=None,
    ),
    "gemma3": GemmaConfig(
        model_type="gemma3_text",
        d_model=1152,
        n_layers=6,
        n_heads=4,
        n_kv_heads=1,
        d_head=256,
        d_mlp=6912,
        d_vocab=8192,
        n_ctx=2048,
        window=256,
        attn_cap=None,
        final_cap=None,
        rope_theta=1e6,
        rope_local_theta=1e4,
    ),
}
SHAPES = {name: [(1, 128), (1, 512)] for name in RANDOM} | {"bundled": [(1, 64), (1, 256), (8, 256)]}
CACHED = {name: [(1, 128), (1, 512)] for name in RANDOM} | {"bundled": [(1, 64), (8, 256)]}
DECODE = {name: [(1, 32, 8), (8, 32, 4)] for name in RANDOM} | {"bundled": [(1, 64, 64), (8, 64, 64)]}
CLOCK = [time.perf_counter]
"""What measures a run; process_time with --cpu."""

PEERS = ("transformers", "sdpa", "flex", "TransformerLens", "stop_at_layer")


@dataclass
class Three:
    """One set of weights in three libraries."""

    ours: Gemma
    transformers: torch.nn.Module
    lens: torch.nn.Module | None
    sdpa: torch.nn.Module | None = None
    flex: torch.nn.Module | None = None


def make(name: str, dtype: torch.dtype, lens: bool, flex: bool = False) -> Three:
    if name == "bundled":
        ours = load_model("bundled", dtype=dtype)
    else:
        generator = torch.Generator().manual_seed(0)
        ours = Gemma(RANDOM[name])
        with torch.no_grad():
            for p in ours.parameters():
                p.normal_(0, 0.1 if p.dim() == 1 else p.shape[1] ** -0.5, generator=generator)
        ours = ours.to(dtype).eval()
    eager = transformers_twin(ours, dtype)
    sdpa = transformers_twin(ours, dtype, "sdpa") if ours.cfg.attn_cap is None else None
    flexible = transformers_twin(ours, dtype, "flex_attention") if flex else None
    return Three(ours, eager, hooked_transformer(ours) if lens else None, sdpa, flexible)


def transformers_twin(ours: Gemma, dtype: torch.dtype, attention: str = "eager") -> torch.nn.Module:
    """transformers' model of the same weights, the rotary frequencies in float32 as from_pretrained leaves them."""
    import transformers

    given = {k: v for k, v in ours.cfg.to_hf().items() if k not in ("architectures", "model_type", "dtype")}
    config = transformers.AutoConfig.for_model(ours.cfg.model_type, **given)
    theirs = getattr(transformers, ours.cfg.original_architecture)._from_config(config, attn_implementation=attention).eval()
    frequencies = {name: x.clone() for name, x in theirs.model.rotary_emb.named_buffers()}
    theirs = theirs.to(dtype)
    for name, x in frequencies.items():
        setattr(theirs.model.rotary_emb, name, x)
    names = dict(theirs.named_parameters())
    with torch.no_grad():
        for mine, name in tensor_names(ours.cfg).items():
            names[name].copy_(ours.get_parameter(mine))
    return theirs


def take_turns(runs: dict[str, Callable], seconds: float) -> dict[str, float]:
    """Median seconds of each, one after another until the time is up, at least two rounds after one to warm up."""
    for run in runs.values():
        run()
    times, started = {name: [] for name in runs}, time.perf_counter()
    while len(times[next(iter(runs))]) < 2 or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            begun = CLOCK[0]()
            run()
            times[name].append(CLOCK[0]() - begun)
    return {name: statistics.median(t) for name, t in times.items()}


def head() -> None:
    print(f"| what | model | dtype | batch x tokens | ours | {' | '.join(PEERS)} | equal |")
    print("|" + "---|" * (6 + len(PEERS)), flush=True)


def row(what: str, label: str, size: str, times: dict[str, float], equal: str) -> None:
    ours = times["ours"]
    others = [f"{times[peer] / ours:.2f}x" if peer in times else "" for peer in PEERS]
    print(f"| {what} | {label} | {size} | {1000 * ours:,.1f} ms | {' | '.join(others)} | {equal} |", flush=True)


def forward(three: Three, label: str, shapes, seconds: float) -> None:
    for batch, length in shapes:
        t = _tokens(three.ours, batch, length)
        runs = {"ours": lambda t=t: three.ours(t), "transformers": lambda t=t: three.transformers(t, use_cache=False)}
        if three.sdpa is not None:
            runs["sdpa"] = lambda t=t: three.sdpa(t, use_cache=False)
        if three.flex is not None:
            runs["flex"] = lambda t=t: three.flex(t, use_cache=False)
        if three.lens is not None:
            runs["TransformerLens"] = lambda t=t: three.lens(t)
        gap = (runs["ours"]() - runs["transformers"]().logits).abs().max()
        row("forward", label, f"{batch} x {length}", take_turns(runs, seconds), f"{gap:.0e}" if gap else "to the bit")


def cache(three: Three, label: str, shapes, seconds: float) -> None:
    layer = three.ours.cfg.n_layers // 2 - 1
    site = f"blocks.{layer}.hook_resid_post"

    def residuals(name: str) -> bool:
        return "hook_resid_" in name

    for batch, length in shapes:
        t = _tokens(three.ours, batch, length)
        runs = {
            "ours": lambda t=t: three.ours.run_with_cache(t, names_filter=residuals),
            "TransformerLens": lambda t=t: three.lens.run_with_cache(t, names_filter=residuals),
        }
        row("run_with_cache, all residuals", label, f"{batch} x {length}", take_turns(runs, seconds), _gap(runs, site))
        runs = {
            "ours": lambda t=t: (None, three.ours.record(t, [site])),
            "TransformerLens": lambda t=t: three.lens.run_with_cache(t, names_filter=site),
            "stop_at_layer": lambda t=t: three.lens.run_with_cache(t, names_filter=site, stop_at_layer=layer + 1),
        }
        row(f"record {site}", label, f"{batch} x {length}", take_turns(runs, seconds), _gap(runs, site))


def _gap(runs: dict[str, Callable], site: str) -> str:
    ours, lens = (runs[name]()[1][site].float() for name in ("ours", "TransformerLens"))
    return f"{(ours - lens).abs().max() / lens.abs().max():.0e} of the largest"


def decode(three: Three, label: str, shapes, seconds: float) -> None:
    for batch, length, new in shapes:
        t = _tokens(three.ours, batch, length)
        greedy = {"max_new_tokens": new, "do_sample": False}
        runs = {
            "ours": lambda t=t, g=greedy: three.ours.generate(t, stop_at_eos=False, **g),
            "transformers": lambda t=t, g=greedy, n=new: three.transformers.generate(
                t, attention_mask=torch.ones_like(t), min_new_tokens=n, eos_token_id=None, **g
            ),
            "TransformerLens": lambda t=t, g=greedy: three.lens.generate(t, stop_at_eos=False, verbose=False, **g),
        }
        same = (runs["ours"]() == runs["transformers"]()).float().mean()
        row(f"{new} tokens, cached", label, f"{batch} x {length}", take_turns(runs, seconds), f"{same:.0%} of tokens")


def _tokens(model: Gemma, batch: int, length: int) -> torch.Tensor:
    tokens = torch.randint(7, model.cfg.d_vocab, (batch, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.cfg.bos
    return tokens


def refuses_sdpa() -> bool:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8, vocab_size=8)
    try:
        Gemma2ForCausalLM._from_config(config, attn_implementation="sdpa")
    except ValueError:
        return True
    return False


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--what", nargs="+", default=["forward", "cache", "decode"], choices=["forward", "cache", "decode"])
    parser.add_argument("--seconds", type=float, default=1.5, help="for each row, at least two rounds")
    parser.add_argument("--tokens", type=int, default=1 << 30, help="leave out rows of more tokens than this")
    parser.add_argument("--flex", action="store_true", help="transformers' flex attention too, which is compiled first")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds, on one thread: for a busy machine")
    args = parser.parse_args()
    if args.cpu:
        torch.set_num_threads(1)
        CLOCK[0] = time.process_time
    warnings.filterwarnings("ignore")
    began = time.perf_counter()
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{threads}; transformers {'refuses' if refuses_sdpa() else 'accepts'} SDPA for Gemma 2\n", flush=True)
    head()
    for name in args.model:
        for dtype in args.dtype:
            three = make(name, getattr(torch, dtype), args.what != ["forward"], args.flex)
            label = f"{name} | {dtype}"
            for what, run, shapes in (("forward", forward, SHAPES), ("cache", cache, CACHED), ("decode", decode, DECODE)):
                if what in args.what:
                    run(three, label, [s for s in shapes[name] if s[0] * s[1] <= args.tokens], args.seconds)
            del three
            gc.collect()
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
