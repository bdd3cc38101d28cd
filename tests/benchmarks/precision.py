"""What storing activations in fewer bits costs a dictionary: python -m tests.benchmarks.precision RECORDING

The same dictionary is trained on the same batches of the same rows, as they were computed (float32) and after each of several
ways to store them; every one is then measured on held-out rows as they were computed. Between seeds the measures move too: that
spread is the yardstick. Bytes are per value, quantising and back on one thread.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

GROUP = 64


def bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def float16(x: Tensor) -> Tensor:
    return x.half().float()


def int8_row(x: Tensor) -> Tensor:
    """One scale a row."""
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (x / scale).round().to(torch.int8).float() * scale


def int8_group(x: Tensor) -> Tensor:
    """One scale for every 64 values of a row."""
    grouped = x.reshape(len(x), -1, GROUP)
    scale = grouped.abs().amax(2, keepdim=True).clamp_min(1e-30) / 127
    return ((grouped / scale).round().to(torch.int8).float() * scale).reshape(x.shape)


def fp8_row(x: Tensor) -> Tensor:
    """e4m3 with one scale a row."""
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "float32": (lambda x: x, 4),
    "bfloat16": (bfloat16, 2),
    "float16": (float16, 2),
    "int8, scale per 64": (int8_group, 1 + 4 / GROUP),
    "int8, scale per row": (int8_row, 1.016),
    "fp8 e4m3, scale per row": (fp8_row, 1.016),
}


def train_on(x: Tensor, seed: int, steps: int, d_sae: int, batch_size: int, folder: Path):
    """A JumpReLU dictionary of the demo's kind on the rows [row d_in], in the order that the seed gives."""
    from scope.sae.jumprelu import JumpReLUConfig
    from scope.sae.kinds import make_sae
    from scope.training.batches import TensorBatches
    from scope.training.config import TrainConfig
    from scope.training.trainer import train

    torch.manual_seed(seed)
    sae = make_sae(JumpReLUConfig(d_in=x.shape[1], d_sae=d_sae, target_l0=28.0), "measured")
    config = TrainConfig(steps=steps, batch_size=batch_size, seed=seed)
    return train(sae, TensorBatches(x, batch_size, seed), config, folder)


def measures(sae, x: Tensor) -> dict[str, float]:
    """FVU and L0 on held-out rows, and the loss of the model were they spliced in is measured by `delta_loss`."""
    with torch.no_grad():
        latents = sae.encode(x)
        error = (x - sae.decode(latents)).square().sum() / (x - x.mean(0)).square().sum()
    return {"fvu": float(error), "l0": float((latents > 0).sum(1).float().mean())}


def delta_loss(model, site: str, tokens: Tensor, sae) -> float:
    """How much the model's loss on held-out text rises when the dictionary's reconstruction takes the place of its input."""

    def spliced(acts, hook):
        flat = acts.flatten(0, 1)
        return torch.cat([acts[:, :1], sae.decode(sae.encode(flat)).view_as(acts)[:, 1:]], 1)

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())

    with torch.no_grad():
        return float(loss(model.run_with_hooks(tokens, fwd_hooks=[(site, spliced)])) - loss(model(tokens)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--huge",
        type=float,
        default=0.0,
        help="move four dimensions by so many root mean squares of all, as wide models have them",
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()

    from scope.activations.corpus.contexts import Packer
    from scope.activations.corpus.sources import open_corpus

    from scope.models.load import load_model

    model, corpus = load_model("bundled"), open_corpus("bundled")
    site = "blocks.2.hook_resid_post"
    packed = Packer(corpus.documents(0), model.tokenizer, 256).take(args.rows // 255 + 64)
    tokens = torch.from_numpy(packed.tokens).long()
    with torch.no_grad():
        acts = torch.cat([model.record(b, [site])[site][:, 1:].flatten(0, 1) for b in tokens.split(16)])
    if args.huge:
        acts[:, [3, 77, 130, 201]] += args.huge * acts.square().mean().sqrt()
    held = 48 * 255
    train_rows, held_out = acts[:-held].contiguous(), acts[-held:]
    found: dict[str, dict] = {}
    print(f"{len(train_rows):,} rows of {acts.shape[1]}, {args.steps} steps of {args.batch_size}, {args.d_sae} latents")
    print(f"{'stored as':26s} bytes  error/variance   GB/s     FVU {' ' * 12} L0 {' ' * 11} delta loss   by seed")
    for name, (way, nbytes) in WAYS.items():
        began = time.perf_counter()
        stored = torch.cat([way(part) for part in train_rows.split(1024)])
        rate = train_rows.numel() * 4 / (time.perf_counter() - began) / 1e9
        error = float((stored - train_rows).square().sum() / (train_rows - train_rows.mean(0)).square().sum())
        runs = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                sae = train_on(stored, seed, args.steps, args.d_sae, args.batch_size, Path(folder) / "d")
            numbers = measures(sae, held_out)
            if not args.huge:
                numbers["delta_loss"] = delta_loss(model, site, tokens[-24:], sae)
            runs.append(numbers)
        found[name] = {"bytes": nbytes, "error": error, "GB/s of float32": rate, "runs": runs}
        shown = "   ".join(" ".join(f"{r[k]:.4f}" if k != "l0" else f"{r[k]:.2f}" for r in runs) for k in runs[0])
        print(f"{name:26s} {nbytes:5.2f}  {error:12.2e}  {rate:6.2f}     {shown}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
