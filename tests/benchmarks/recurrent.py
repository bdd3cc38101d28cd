"""Our RecurrentGemma beside transformers' in one run: the scan, prefill, decoding, memory of a prefill. Run by hand:

    python -m tests.benchmarks.recurrent [--what scan prefill decode memory]

Both hold the same weights, in float32, on one thread, and take turns; figures are the best of some turns in CPU time, and a
ratio says how many times longer transformers takes. "narrow", "small" and "wide" have random weights; "small" has the shape of
bundled-recurrent. A prefill fills a cache and gives the logits of the last token.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from scope.models.griffin.config import GriffinConfig
from scope.models.griffin.model import Griffin
from scope.models.griffin.scan import FORMS, scan

SHAPES = {
    "narrow": {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 384, "vocab_size": 1000},
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 2048, "vocab_size": 8192},
    "wide": {"hidden_size": 1024, "num_hidden_layers": 3, "intermediate_size": 6144, "vocab_size": 8192},
}
LENGTHS = (256, 1024, 2048)


def best(run: Callable[[], object], turns: int = 4) -> float:
    """Milliseconds of the fastest turn, in CPU time."""
    fastest = float("inf")
    for _ in range(turns):
        began = time.process_time()
        run()
        fastest = min(fastest, time.process_time() - began)
    return fastest * 1e3


def pair(shape: str):
    """(ours, transformers') with the same random weights."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    more = {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 128}
    config = RecurrentGemmaConfig(**SHAPES[shape] | more)
    config._attn_implementation = "eager"
    theirs = RecurrentGemmaForCausalLM(config).eval()
    ours = Griffin(GriffinConfig.from_hf({**config.to_dict(), "window_convention": "hf"}, shape)).eval()
    names, weights = ours.tensor_names(ours.cfg), dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        p.copy_(weights[names[name]])
    return ours, theirs


def prefill(model: Griffin, tokens: torch.Tensor):
    cache = model.new_cache()
    stream = model(tokens, cache=cache, stop_at_layer=model.cfg.n_layers)
    return cache, model.logits_of(stream[:, -1:])


def scans() -> None:
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    print("| batch, tokens, channels | transformers ms | ours ms | ratio | by form |\n|---|---|---|---|---|")
    for shape in ((1, 256, 256), (1, 1024, 256), (1, 8192, 256), (1, 1024, 2560), (8, 256, 256)):
        a, x = torch.rand(shape) * 0.5 + 0.5, torch.randn(shape)
        never = torch.zeros(*shape[:2], 1, dtype=torch.bool)
        theirs = best(lambda a=a, x=x, never=never: RecurrentGemmaRglru._rnn_scan(object(), x, a, never, None))
        ours = best(lambda a=a, x=x: scan(a, x))
        forms = ", ".join(f"{name} {best(lambda f=f, a=a, x=x: f(a, x)):.1f}" for name, f in FORMS.items())
        print(f"| {', '.join(map(str, shape))} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} | {forms} |", flush=True)


def prefills() -> None:
    print("| shape | tokens | ours ms | transformers ms | ratio | ours a token, us | apart |\n|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        ours, theirs = pair(shape)
        for n in LENGTHS:
            tokens = torch.randint(7, 1000, (1, n))
            runs = partial(prefill, ours, tokens), partial(theirs, tokens, use_cache=True, logits_to_keep=1)
            a, b = (best(run) for run in runs)
            apart = (runs[0]()[1] - runs[1]().logits).abs().max()
            print(f"| {shape} | {n} | {a:.0f} | {b:.0f} | {b / a:.1f} | {a / n * 1e3:.0f} | {apart:.0e} |", flush=True)


def decoding(n: int = 100) -> None:
    """Steps in turns; of each, the duration that a tenth of them stays below."""
    print("| shape | batch | ours ms a step | transformers ms a step | ratio |\n|---|---|---|---|---|")
    for shape in SHAPES:
        ours, theirs = pair(shape)
        for batch in (1, 8):
            tokens, new = torch.randint(7, 1000, (batch, 256)), torch.randint(7, 1000, (batch, 1))
            cache, past = prefill(ours, tokens)[0], _their_cache(theirs, tokens)
            times = []
            for step in range(n):
                began = time.perf_counter()
                ours(new, cache=cache)
                between = time.perf_counter()
                theirs(new, past_key_values=past, use_cache=True, position_ids=torch.tensor([[256 + step]]))
                times.append((between - began, time.perf_counter() - between))
            a, b = (sorted(column)[n // 10] * 1e3 for column in zip(*times, strict=True))
            print(f"| {shape} | {batch} | {a:.2f} | {b:.2f} | {b / a:.2f} |", flush=True)


def _their_cache(theirs, tokens: torch.Tensor):
    from transformers import DynamicCache

    past = DynamicCache(config=theirs.config)
    theirs._setup_cache(theirs.config, len(tokens), tokens.device, torch.float32)
    theirs(tokens, past_key_values=past, use_cache=True)
    return past


def memory() -> None:
    """Peak memory above that of a short prefill, each in a process of its own."""
    print("| tokens | MB above 256 tokens | kB a token |\n|---|---|---|")
    peaks = {}
    for n in (256, 2048, 8192, 16384):
        command = [sys.executable, "-m", "tests.benchmarks.recurrent", "--peak", str(n)]
        peaks[n] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for n in (2048, 8192, 16384):
        above = (peaks[n] - peaks[256]) / 1e3
        print(f"| {n} | {above:.0f} | {above / (n - 256) * 1e3:.1f} |", flush=True)


def peak(n: int) -> None:
    more = {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 128}
    model = Griffin(GriffinConfig.from_hf(SHAPES["small"] | more | {"max_position_embeddings": 1 << 20}, "small")).eval()
    prefill(model, torch.randint(7, 1000, (1, n)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    what = {"scan": scans, "prefill": prefills, "decode": decoding, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=what, default=list(what))
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if options.peak:
            return peak(options.peak)
        for name in options.what:
            print(f"\n{name}")
            what[name]()
    return None


if __name__ == "__main__":
    main()
