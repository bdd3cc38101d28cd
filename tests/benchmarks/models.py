"""Our Gemma 2 beside transformers' and TransformerLens' in one run: forward, caches, records, decoding. Run by hand:

    python -m tests.benchmarks.models [--model 2b bundled] [--dtype float32 bfloat16] [--what forward cache decode]

"2b" has Gemma 2 2B's proportions with two layers and a small vocabulary, random weights and a window shorter than the longer
texts; "bundled" is the model that ships. All three hold the same weights and take turns; the figures are medians, and a ratio
above 1 says how many times longer the other takes. transformers runs eager attention: it refuses SDPA for a soft cap, which
the run checks. TransformerLens gets names_filter, and, where it says so, stop_at_layer.
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
from scope.models.gemma.weights import hf_names
from scope.models.load import load_model

TWO_B = GemmaConfig(
    d_model=2304, n_layers=2, n_heads=8, n_kv_heads=4, d_head=256, d_mlp=9216, d_vocab=16384, n_ctx=2048, window=256
)
SHAPES = {"2b": [(1, 128), (1, 512), (1, 1024), (8, 128), (8, 512)], "bundled": [(1, 64), (1, 256), (8, 64), (8, 256)]}
DECODE = {"2b": [(1, 64, 24), (8, 64, 12)], "bundled": [(1, 64, 96), (8, 64, 96)]}


@dataclass
class Three:
    """One set of weights in three libraries."""

    ours: Gemma
    transformers: torch.nn.Module
    lens: torch.nn.Module | None


def make(name: str, dtype: torch.dtype, lens: bool) -> Three:
    if name == "bundled":
        ours = load_model("bundled", dtype=dtype)
    else:
        generator = torch.Generator().manual_seed(0)
        ours = Gemma(TWO_B)
        with torch.no_grad():
            for p in ours.parameters():
                p.normal_(0, 0.1 if p.dim() == 1 else p.shape[1] ** -0.5, generator=generator)
        ours = ours.to(dtype).eval()
    theirs = _transformers(ours, dtype)
    return Three(ours, theirs, _lens(ours, theirs, dtype) if lens else None)


def _transformers(ours: Gemma, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**{k: v for k, v in ours.cfg.to_hf().items() if k not in ("architectures", "model_type", "dtype")})
    config._attn_implementation = "eager"
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    theirs = Gemma2ForCausalLM(config).eval()
    torch.set_default_dtype(default)
    theirs.model.rotary_emb.inv_freq = theirs.model.rotary_emb.inv_freq.float()
    names = dict(theirs.named_parameters())
    with torch.no_grad():
        for mine, name in hf_names(ours.cfg.n_layers).items():
            names[name].copy_(ours.get_parameter(mine))
    return theirs


def _lens(ours: Gemma, theirs: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

    c = ours.cfg
    config = HookedTransformerConfig(
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        n_key_value_heads=c.n_kv_heads,
        d_head=c.d_head,
        d_mlp=c.d_mlp,
        d_vocab=c.d_vocab,
        n_ctx=c.n_ctx,
        eps=c.eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_base=int(c.rope_theta),
        rotary_dim=c.d_head,
        attn_scale=c.query_scalar**0.5,
        attn_scores_soft_cap=c.attn_cap,
        output_logits_soft_cap=c.final_cap,
        use_local_attn=True,
        window_size=c.window,
        attn_types=list(c.layer_types),
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        device="cpu",
        dtype=dtype,
    )
    lens = HookedTransformer(config)
    lens.load_state_dict(convert_gemma_weights(theirs, config), strict=False)
    return lens.eval()


def take_turns(runs: dict[str, Callable], seconds: float) -> dict[str, float]:
    """Median seconds of each, one after another until the time is up, at least three rounds after one to warm up."""
    for run in runs.values():
        run()
    times, started = {name: [] for name in runs}, time.perf_counter()
    while len(times[next(iter(runs))]) < 3 or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(t) for name, t in times.items()}


def row(what: str, times: dict[str, float]) -> None:
    ours = times["ours"]
    others = [f"{name} {times[name] / ours:.2f}x" for name in times if name != "ours"]
    print(f"| {what} | {1000 * ours:,.1f} ms | {' | '.join(others)} |", flush=True)


def forward(three: Three, label: str, shapes, seconds: float) -> None:
    for batch, length in shapes:
        tokens = _tokens(three.ours, batch, length)
        runs = {"ours": lambda t=tokens: three.ours(t), "transformers": lambda t=tokens: three.transformers(t, use_cache=False)}
        gap = (runs["ours"]() - runs["transformers"]().logits).abs().max()
        row(f"forward, {label}, {batch} x {length} (logits within {gap:.0e})", take_turns(runs, seconds))


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
        row(f"run_with_cache of all residuals, {label}, {batch} x {length}", take_turns(runs, seconds))
        runs = {
            "ours": lambda t=t: three.ours.record(t, [site]),
            "TransformerLens": lambda t=t: three.lens.run_with_cache(t, names_filter=site),
            "with stop_at_layer": lambda t=t: three.lens.run_with_cache(t, names_filter=site, stop_at_layer=layer + 1),
        }
        row(f"record of {site}, {label}, {batch} x {length}", take_turns(runs, seconds))


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
        row(f"{new} tokens after {batch} x {length}, {label} ({same:.0%} the same)", take_turns(runs, seconds))


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
    parser.add_argument("--what", nargs="+", default=["forward", "cache", "decode"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row, at least three rounds")
    parser.add_argument("--tokens", type=int, default=1 << 30, help="leave out rows of more tokens than this")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{threads}; transformers {'refuses' if refuses_sdpa() else 'accepts'} SDPA for Gemma 2", flush=True)
    for name in args.model:
        for dtype in args.dtype:
            three = make(name, getattr(torch, dtype), lens=args.what != ["forward"])
            label = f"{name} {dtype}"
            shapes = [s for s in SHAPES[name] if s[0] * s[1] <= args.tokens]
            for what, run in {"forward": forward, "cache": cache}.items():
                if what in args.what:
                    run(three, label, shapes, args.seconds)
            if "decode" in args.what:
                decode(three, label, DECODE[name], args.seconds)
            del three
            gc.collect()


if __name__ == "__main__":
    main()
