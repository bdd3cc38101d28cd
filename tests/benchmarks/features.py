"""What a pack costs: the one pass beside the model and the dictionary alone, and beside SAEDashboard's way, on the same text.

    python -m tests.benchmarks.features runs/demo [--tokens 65536] [--latents 256]
    python -m tests.benchmarks.features runs/demo --d-sae 131072 --tokens 16384 --repeat 1

LAB is a folder with dictionary/, as `scope demo` makes; the model is the one it names. Arms, each in a process of its own:

model       the model up to the site, nothing else
encode      the same, and the dictionary's encoder
pass        our first pass: encode, and all statistics of all latents
pack        the whole pack without output scores: the pass, the look-ups, weights, files
dashboard   SAEDashboard's runner on the same model, dictionary and text: it runs model and encoder anew for each batch of
            latents, so it is given --latents of them, and its time for all is that times d_sae / latents

SAEDashboard: pip install sae-dashboard, better in an environment of its own whose site-packages are put on PYTHONPATH. Without
it that arm is left out, and said to be. Times are the best of --repeat, per token; memory is each process's peak above what it
had before the work. With --d-sae the dictionary is made up instead: random directions of that many latents, with one threshold
by which 64 of them fire on a token; only its size matters then, and the dashboard is left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ARMS = ("model", "encode", "pass", "pack", "dashboard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lab", type=Path)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--d-sae", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(run_arm(args)))
        return
    found = {}
    for arm in ARMS:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--arm", arm], capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            print(f"{arm:10} left out: {reason}")
            continue
        found[arm] = json.loads(done.stdout.splitlines()[-1])
        told(arm, found)


def told(arm: str, found: dict) -> None:
    one = found[arm]
    beside = found.get("encode", one)["seconds"]
    print(
        f"{arm:10} {1e6 * one['seconds'] / one['tokens']:9.1f} µs/token   {one['seconds'] / beside:8.2f} x model and encoder   "
        f"peak {one['peak'] / 1e6:7,.0f} MB   {one.get('note', '')}",
        flush=True,
    )


def run_arm(args) -> dict:
    """{"seconds", "tokens", "peak", "note"} of one arm."""
    import torch

    from scope.models.load import load_model
    from scope.sae.files import read_sae

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    sae = read_sae(args.lab / "dictionary")
    named = ((sae.provenance or {}).get("model") or {}).get("model") or "bundled"
    model = load_model(named)
    tokens = contexts(model, args.tokens, args.context)
    sae = sae if args.d_sae is None else made_up(model, sae.site, tokens, args.d_sae)
    arm = {"model": arm_model, "encode": arm_encode, "pass": arm_pass, "pack": arm_pack, "dashboard": arm_dashboard}[args.arm]
    work, note, scale = arm(model, sae, tokens, args)
    before, best = peak(), float("inf")
    for _ in range(args.repeat if args.arm != "dashboard" else 1):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return {"seconds": best * scale, "tokens": tokens.numel(), "peak": peak() - before, "note": note}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def contexts(model, n_tokens: int, context: int):
    import torch
    from scope.activations.corpus.contexts import Packer
    from scope.activations.corpus.sources import open_corpus

    packed = Packer(open_corpus("bundled").documents(0), model.tokenizer, context).take(-(-n_tokens // context))
    return torch.from_numpy(packed.tokens).long()


def made_up(model, site: str, tokens, d_sae: int, l0: int = 64):
    """A dictionary of random directions of which about `l0` fire on a token."""
    import torch

    from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE

    sae = JumpReLUSAE(JumpReLUConfig(d_in=model.sites()[site], d_sae=d_sae), site)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        acts = model.record(tokens[:4], [site])[site][:, 1:].flatten(0, 1)[:64]
        sae.threshold.fill_(float((acts @ sae.W_enc).topk(l0 + 1).values[:, -1].mean()))
    return sae


def _source(model, sae, tokens):
    from scope.features.collect.source import from_tokens

    return from_tokens(model, sae.site, tokens)


def arm_model(model, sae, tokens, args) -> tuple[Callable, str, float]:
    source = _source(model, sae, tokens)
    step = max(1, 8192 // args.context)
    return lambda: [source.read(a, min(a + step, len(tokens))) for a in range(0, len(tokens), step)], "", 1.0


def arm_encode(model, sae, tokens, args) -> tuple[Callable, str, float]:
    import torch

    source = _source(model, sae, tokens)
    step = max(1, 8192 // args.context)

    @torch.no_grad()
    def work() -> None:
        for a in range(0, len(tokens), step):
            for some in source.read(a, min(a + step, len(tokens))).split(max(1, (1 << 25) // sae.W_dec.shape[0])):
                sae.encode(some)

    return work, f"{sae.W_dec.shape[0]:,} latents", 1.0


def arm_pass(model, sae, tokens, args) -> tuple[Callable, str, float]:
    from scope.features.collect import first_pass
    from scope.features.collect.build_folder import begin
    from scope.features.collect.config import Sizes

    source, l0 = _source(model, sae, tokens), []

    def work() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            begin(Path(folder) / "pack", {}, args.context, source.n_tokens) as building,
        ):
            found = first_pass.gather(sae, source, building, Sizes(), 8192, len(source.vocab), 0)
            l0.append(found.moments.count.sum() / source.n_tokens)

    return work, "all statistics", 1.0


def arm_pack(model, sae, tokens, args) -> tuple[Callable, str, float]:
    from scope.features.collect.collect_pack import collect
    from scope.features.collect.config import CollectConfig

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            collect(model, sae, tokens, CollectConfig(score_prompts=0), Path(folder) / "pack")

    return work, "without output scores", 1.0


def arm_dashboard(model, sae, tokens, args) -> tuple[Callable, str, float]:
    """SaeVisRunner with its default batches of 256 latents and 64 contexts."""
    if args.d_sae:
        raise SystemExit("SAEDashboard is only timed on a dictionary that was trained")
    from importlib.metadata import version

    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE

    from scope.models.transformer_lens import bridge as lens

    twin = lens.hooked_transformer(model)
    theirs = SAE.load_from_disk(str(args.lab / "dictionary"))
    if not hasattr(theirs, "hook_z_reshaping_mode"):
        theirs.hook_z_reshaping_mode = False
    n = min(args.latents, sae.W_dec.shape[0])
    config = SaeVisConfig(hook_point=sae.site, features=list(range(n)), minibatch_size_tokens=64)
    runner = SaeVisRunner(config)
    note = f"sae-dashboard {version('sae-dashboard')}, {n} latents measured"
    return lambda: runner.run(encoder=theirs, model=twin, tokens=tokens), note, sae.W_dec.shape[0] / n


if __name__ == "__main__":
    main()
