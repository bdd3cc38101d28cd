"""What the state of a recurrent model holds: an SAE of it, how long its latents last, its partners, and needles.

    python -m tests.benchmarks.states --model bundled-recurrent --out runs/states --gemma runs/demo

`--gemma` is a folder of `scope demo`, of the bundled Gemma 2. What lies in `--out` is not done again. The model
with its weights drawn again is a checkpoint of its own, on which an SAE is trained in the same way.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from scope.activations.corpus.sources import open_corpus

import scope
from scope.circuits.recall import recall
from scope.evaluation.random_model import randomised
from scope.evaluation.report import table
from scope.features.compare.decay import decay
from scope.models.checkpoints import find_folder
from scope.models.load import load_model
from scope.pretrain.export import export
from scope.sae.files import read_sae


def contexts(model: Any, n: int, length: int) -> torch.Tensor:
    """Documents of the bundled corpus, one after the other, cut into contexts that begin with <bos>."""
    ids: list[int] = []
    for document in open_corpus("bundled").documents(1):
        ids += model.words.encode(document.text, bos=False)
        if len(ids) >= n * (length - 1):
            break
    rows = [[model.cfg.bos, *ids[i : i + length - 1]] for i in range(0, n * (length - 1), length - 1)]
    return torch.tensor([row for row in rows if len(row) == length])


def trained(model: str, site: str, out: Path, a: argparse.Namespace, seed: int = 0) -> Path:
    """The folder of an SAE, trained unless it is there."""
    if not (out / "recording" / "manifest.json").exists():
        scope.harvest(model, corpus="bundled", sites=site, tokens=a.tokens, context=a.context, out=out / "recording")
    folder = out / f"sae-{seed}"
    if not (folder / "sae_weights.safetensors").exists():
        settings = {"d_sae": a.d_sae, "target_l0": a.l0, "steps": a.steps, "batch_size": a.batch, "seed": seed}
        scope.train(out / "recording", site=site, out=folder, **settings)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-recurrent")
    parser.add_argument("--out", type=Path, default=Path("runs/states"))
    parser.add_argument("--gemma", type=Path, help="folder of scope demo, for partners")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--l0", type=float, default=32.0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--skip", nargs="*", default=[], help="sae, decay, match, recall")
    a = parser.parse_args()
    site = f"blocks.{a.layer}.rec.hook_state"
    model = load_model(a.model)
    if {"sae", "decay", "match"} - set(a.skip):
        state = trained(a.model, site, a.out / "state", a)
    if "sae" not in a.skip:
        how = {"model": a.model, "recording": a.out / "state" / "recording", "contexts": 64}
        Console().print(table(scope.evaluate(str(state), **how, certificate=False)))
    if "decay" not in a.skip:
        drawn = a.out / "redrawn-model"
        if not drawn.exists():
            export(randomised(model, None, 0), find_folder("bundled"), drawn, "The model with its weights drawn again.")
        again = trained(str(drawn), site, a.out / "redrawn", a)
        rows = contexts(model, 64, a.context)
        for name, folder, of in (
            ("trained", state, model),
            ("weights drawn again, its own SAE", again, load_model(str(drawn))),
        ):
            redrawn = randomised(of, a.layer + 1) if name == "trained" else None
            result = decay(of, read_sae(folder), rows, redrawn=redrawn)
            print(
                f"\n{name}: {result}\nlength of all writes: {[f'{v:.3f}' for v in result.state]} at {result.ages}", flush=True
            )
            result.save(a.out / f"decay-{folder.parent.name}.json")
    if "match" not in a.skip and a.gemma:
        ceiling = trained(a.model, site, a.out / "state", a, seed=1)
        for name, one, other, third, of in (
            ("recurrent in Gemma 2", state, a.gemma, ceiling, (a.model, None)),
            ("Gemma 2 in recurrent", a.gemma, state, None, (None, a.model)),
        ):
            print(
                f"\n{name}:", scope.match(a=one, b=other, ceiling=third, model=of[0], model_b=of[1], words=a.words), flush=True
            )
    if "recall" not in a.skip:
        texts = [d.text for _, d in zip(range(400), open_corpus("bundled").documents(0), strict=False)]
        result = recall([model, load_model("bundled")], texts, trials=a.trials, corpus="bundled")
        print(f"\n{result}", flush=True)
        result.save(a.out / "recall.json")
    (a.out / "settings.json").write_text(json.dumps({k: str(v) for k, v in vars(a).items()}, indent=1))


if __name__ == "__main__":
    main()
