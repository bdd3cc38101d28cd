"""Our SigLIP tower, PaliGemma and ColPali beside transformers' in one run, hooks idle. Run by hand:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.towers [--dtype float32 bfloat16] [--rounds 5] [--what tower whole decode ...]

Random weights in the proportions of the released models, with fewer blocks, a small vocabulary, and language models of half the
width. Both hold the same weights and take turns; the figures are medians of the CPU time of one thread, which other programs on
the machine hardly change, and a ratio above 1 says how many times longer transformers takes. The tower runs
transformers' SDPA; the whole runs its own default path with token types given: SDPA for PaliGemma 1 and ColPali, eager in the
language model of PaliGemma 2, whose soft cap SDPA does not know. MaxSim is held against colpali-engine's scorer where that
package is there (`pip install --no-deps colpali-engine`), else against transformers' copy of it; the last rows say how long the
matrix product alone takes.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from scope.models.checkpoints import weight_files
from scope.models.paligemma.colpali import ColPali
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.paligemma.late_interaction import max_sim
from scope.models.paligemma.model import PaliGemma
from scope.models.pictures.processor import PictureProcessor
from scope.models.siglip.config import SiglipConfig, VisionConfig
from scope.models.siglip.model import Siglip
from scope.models.weights import load_weights

SO400M = {"d_model": 1152, "n_heads": 16, "d_mlp": 4304, "patch_size": 14}
TOWERS = {
    "base/16, 224 px, 4 blocks": (VisionConfig(n_layers=4, image_size=224), (1, 4)),
    "So400m/14, 224 px, 2 blocks": (VisionConfig(**SO400M, n_layers=2, image_size=224), (4,)),
    "So400m/14, 448 px, 2 blocks": (VisionConfig(**SO400M, n_layers=2, image_size=448, use_head=False), (1,)),
}
GEMMA = {"d_model": 1024, "n_layers": 1, "n_heads": 4, "n_kv_heads": 1, "d_head": 256, "d_mlp": 8192, "query_scalar": 256.0}
GEMMA |= {"d_vocab": 8192, "n_ctx": 8192, "image_token": 8191}
FIRST = {"model_type": "gemma", "attn_cap": None, "final_cap": None}
SECOND = {"model_type": "gemma2", "d_model": 1152, "n_layers": 2, "n_kv_heads": 2, "d_mlp": 4608}


def whole(size: int, d_embed: int | None = None, **gemma) -> PaliGemmaConfig:
    tower = VisionConfig(**SO400M, n_layers=1, image_size=size, use_head=False)
    return PaliGemmaConfig(**(GEMMA | gemma), vision=tower, d_embed=d_embed)


WHOLE = {
    "PaliGemma, 224 px": whole(224, **FIRST),
    "PaliGemma 2, 224 px": whole(224, **SECOND),
    "PaliGemma 2, 448 px": whole(448, **SECOND),
    "ColPali, a page of 448 px": whole(448, 128, **FIRST),
}


def pair(config, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(ours, transformers') with the same random weights, through a folder on disk."""
    import transformers

    raw = config.to_hf()
    ours_class = Siglip if isinstance(config, SiglipConfig) else PaliGemma if config.d_embed is None else ColPali
    theirs_class = getattr(transformers, raw["architectures"][0])
    settings = {k: v for k, v in raw.items() if k not in ("model_type", "architectures")}
    with torch.device("meta"):
        theirs = theirs_class(transformers.AutoConfig.for_model(raw["model_type"], **settings))
    theirs.to_empty(device="cpu").tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.1 if p.dim() == 1 else p[0].numel() ** -0.5, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        theirs.to(dtype).save_pretrained(folder)
        theirs = theirs_class.from_pretrained(folder, dtype=dtype).eval()
        with torch.device("meta"):
            ours = ours_class(config)
        load_weights(ours, weight_files(Path(folder)), dtype, "cpu")
    return ours.eval(), theirs


def take_turns(runs: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, one after another, after one round to warm up."""
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            times[name].append(time.process_time() - begun)
    return {name: statistics.median(t) for name, t in times.items()}


def row(what: str, size: str, runs: dict[str, Callable], rounds: int) -> None:
    ours, theirs = (run() for run in runs.values())
    gap = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    times = take_turns(runs, rounds)
    ratio = next(t for name, t in times.items() if name != "ours") / times["ours"]
    print(f"| {what} | {size} | {1000 * times['ours']:,.1f} ms | {ratio:.2f}x | {gap:.0e} |", flush=True)


def inputs_of(config: PaliGemmaConfig, words: int = 16) -> dict[str, torch.Tensor]:
    n, generator = config.n_image_tokens, torch.Generator().manual_seed(1)
    text = torch.randint(7, 8000, (1, words), generator=generator)
    ids = torch.cat([torch.full((1, n), config.image_token), text], 1)
    size = config.vision.image_size
    pixels = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "pixel_values": pixels}


def last_rows(tower: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return tower(pixels).last_hidden_state


def output(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    out = model(**inputs, use_cache=False)
    return out.embeddings if hasattr(out, "embeddings") else out.logits


def towers(dtype: torch.dtype, rounds: int) -> None:
    for name, (config, batches) in TOWERS.items():
        ours, theirs = pair(SiglipConfig(vision=config, text=None, model_type="siglip_vision_model"), dtype)
        for batch in batches:
            pixels = torch.rand(batch, 3, config.image_size, config.image_size).to(dtype)
            runs = {"ours": partial(ours.vision, pixels), "transformers": partial(last_rows, theirs, pixels)}
            row(f"tower {name}", f"{batch} pictures", runs, rounds)


def wholes(dtype: torch.dtype, rounds: int) -> None:
    for name, config in WHOLE.items():
        ours, theirs = pair(config, dtype)
        inputs = inputs_of(config)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        runs = {"ours": partial(ours, inputs), "transformers": partial(output, theirs, inputs)}
        row(name, f"1 x {inputs['input_ids'].shape[1]}", runs, rounds)


def decode(dtype: torch.dtype, rounds: int) -> None:
    for name in ("PaliGemma, 224 px", "PaliGemma 2, 224 px"):
        ours, theirs = pair(WHOLE[name], dtype)
        inputs = inputs_of(WHOLE[name])
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        settings = {"max_new_tokens": 16, "do_sample": False}
        runs = {
            "ours": partial(ours.generate, inputs, **settings, stop_at_eos=False),
            "transformers": partial(theirs.generate, **inputs, **settings, eos_token_id=None, pad_token_id=0),
        }
        row(f"{name}, 16 new tokens", "1", runs, rounds)


def pictures(rounds: int) -> None:
    from PIL import Image
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1400, 1000, 3)).astype(np.uint8))
    for size in (224, 448):
        ours, theirs = PictureProcessor(size=size), SiglipImageProcessorPil(size={"height": size, "width": size})
        runs = {
            "ours": lambda p=ours: p.to_pixels([photo] * 4),
            "transformers": lambda p=theirs: p([photo] * 4, return_tensors="pt")["pixel_values"],
        }
        row(f"pictures of 1000 x 1400 to {size}", "4", runs, rounds)


def maxsim(rounds: int) -> None:
    """The scorer's whole work for some queries and 1,000 pages; the pages as float32, and as an index holds them."""
    try:
        from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor

        name, scorer = "colpali-engine", partial(BaseVisualRetrieverProcessor.score_multi_vector, device="cpu")
    except ImportError:
        from transformers import ColPaliProcessor

        name, scorer = "transformers", partial(ColPaliProcessor.score_retrieval, None)
    unit, generator = torch.nn.functional.normalize, torch.Generator().manual_seed(0)
    pages = unit(torch.randn(1000, 1030, 128, generator=generator), dim=-1)
    halves = pages.half()
    for n in (1, 8, 32):
        queries = unit(torch.randn(n, 25, 128, generator=generator), dim=-1)
        rows = queries.flatten(0, 1)

        def product(rows: torch.Tensor = rows) -> torch.Tensor:
            out = torch.empty(len(rows), pages.shape[1])
            for page in pages:
                torch.mm(rows, page.T, out=out)
            return torch.ones(1)

        theirs = partial(scorer, queries, pages)
        row(f"MaxSim against {name}", f"{n} x 1,000 pages", {"ours": partial(max_sim, queries, pages), "them": theirs}, rounds)
        from_half = {"ours": partial(max_sim, queries, halves), "them": partial(scorer, queries, halves.float())}
        row("the same, pages held in float16", f"{n} x 1,000 pages", from_half, rounds)
        product_ms = 1000 * take_turns({"product": product}, rounds)["product"]
        print(f"| the product alone | {n} x 1,000 pages | {product_ms:,.1f} ms | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", nargs="+", default=["tower", "whole", "decode", "pictures", "maxsim"])
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| what | size | ours | transformers / ours | largest difference |\n|---|---|---|---|---|", flush=True)
    with torch.inference_mode():
        for name in chosen.dtype:
            dtype = getattr(torch, name)
            for what, run in (("tower", towers), ("whole", wholes), ("decode", decode)):
                if what in chosen.what:
                    print(f"| **{name}** | | | | |", flush=True)
                    run(dtype, chosen.rounds)
        for what, run in (("pictures", pictures), ("maxsim", maxsim)):
            if what in chosen.what:
                run(chosen.rounds)


if __name__ == "__main__":
    main()
