"""Trains a LoRA adapter of a Gemma on examples of a recipe, and writes it as a PEFT folder.

y = x W^T + alpha / r * (x A^T) B^T for every projection of every block; A starts random, B at zero, and only they are trained,
beside the rows of the embedding that a recipe names: those of marks that no text contains.
The examples of a step are a function of its number, and the learning rate too: a run that was stopped and continued ends in
the same weights as one that was not.
Source: arXiv:2106.09685; the layout of the folder is that of the library peft.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scope.activations.errors import CorpusError
from scope.errors import ConfigError
from scope.models.face import LanguageModel
from scope.models.gemma.model import Gemma
from scope.models.gemma.weights import tensor_names
from scope.pretrain.checkpoint import read_checkpoint, write_checkpoint
from scope.shapes import Scalar
from scope.typed_json import json_lines, read_bytes, read_typed
from scope.whole_files import only_writer, write_whole

Example = tuple[list[int], list[int]]
"""The ids that the model is given, and the ids that it shall write after them: the loss is on these alone."""

Draw = Callable[[np.random.Generator, int], Sequence[Any]]
"""So many examples, by random numbers."""

LossOf = Callable[[Gemma, Sequence[Any]], Scalar]
"""The mean loss of a model on examples."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """How an adapter is trained."""

    rank: int = 8
    """Rows of A, columns of B."""

    alpha: int = 16
    """What the adapter adds is multiplied by alpha / rank."""

    lr: float = 1e-3
    """Peak learning rate of AdamW."""

    steps: int = 600
    """Optimiser steps."""

    batch: int = 16
    """Examples a step."""

    warmup: int = 20
    """Steps of linear warm-up."""

    decay: float = 0.6
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""

    rows: tuple[int, ...] = ()
    """Token ids whose row of the embedding is trained too."""

    seed: int = 0
    """Random seed for A and for the examples."""

    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self):
        if min(self.rank, self.steps, self.batch, self.save_every) < 1 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ConfigError("rank, steps, batch and save_every must be at least 1, warmup not below 0, decay from 0 to 1.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of its peak."""
        decay_steps = max(1, int(self.steps * self.decay))
        return min(1.0, (step + 1) / max(1, self.warmup), (self.steps - step) / decay_steps)


class Lora(nn.Module):
    """The matrices A [r d_in] and B [d_out r] of every projection of a language model, under our names for the projections, and
    the trained rows [n d_model] of its embedding."""

    def __init__(self, model: Gemma, config: LoraConfig):
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.scale, self.names = config.alpha / config.rank, []
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        for name, module in model.named_modules():
            if name.startswith("blocks.") and name.rpartition(".")[2] in PROJECTIONS:
                start = (torch.rand(config.rank, module.in_features, generator=generator) * 2 - 1) * module.in_features**-0.5
                self.names.append(name)
                self.A.append(nn.Parameter(start))
                self.B.append(nn.Parameter(torch.zeros(module.out_features, config.rank)))
        self.ids = torch.tensor(config.rows, dtype=torch.long)
        self.rows = nn.Parameter(model.embed.weight.detach()[self.ids].clone(), requires_grad=bool(config.rows))

    @contextmanager
    def applied(self, model: Gemma) -> Iterator[Gemma]:
        """Within the block the model's projections add what the adapter adds; its own weights are not touched."""

        def adding(i: int) -> Callable:
            return lambda module, args, out: out + (args[0] @ self.A[i].T) @ self.B[i].T * self.scale

        def embedding(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            ours = args[0][..., None] == self.ids
            return torch.where(ours.any(-1, keepdim=True), self.rows[ours.int().argmax(-1)] * module.scale, out)

        def unembedding(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            return out.index_copy(-1, self.ids, (args[0] @ self.rows.T).to(out.dtype))

        modules = dict(model.named_modules())
        handles = [modules[name].register_forward_hook(adding(i)) for i, name in enumerate(self.names)]
        if len(self.ids):
            handles += [model.embed.register_forward_hook(embedding), model.unembed.register_forward_hook(unembedding)]
        try:
            yield model
        finally:
            for handle in handles:
                handle.remove()


def answer_loss(model: Gemma, examples: Sequence[Example]) -> Scalar:
    """Mean loss in nats of the tokens to be written. Matrix products run in bfloat16, norms, softmax and loss in float32."""
    examples = sorted(examples, key=lambda e: -len(e[0]) - len(e[1]))
    tokens = torch.full((len(examples), sum(map(len, examples[0]))), model.cfg.pad)
    wanted = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (given, written) in enumerate(examples):
        stop = len(given) + len(written)
        tokens[row, :stop] = torch.tensor(given + written)
        wanted[row, len(given) : stop] = True
    with torch.autocast("cpu", dtype=torch.bfloat16):  # padding stands on the right, where no token sees it
        stream = model(tokens[:, :-1], stop_at_layer=model.cfg.n_layers)
        logits = model.logits_of(stream[wanted[:, 1:]][None])[0]
    return cross_entropy(logits.float(), tokens[:, 1:][wanted[:, 1:]])


def train_lora(
    model: Gemma,
    config: LoraConfig,
    draw: Draw,
    out: Path,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    loss_of: LossOf = answer_loss,
) -> Lora:
    """Train an adapter of a model on the examples that `draw` gives, which are those of `loss_of`; the same call continues a
    run that was stopped.

    Writes OUT/lora.json (config), OUT/curve.jsonl (a line every 10 steps) and OUT/checkpoint.pt.

    Raises:
        ConfigError: OUT holds a run with another config, or the loss is not finite.
        CheckpointError: its checkpoint is damaged.
        FolderInUse: another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, doing="used for a training"):
        return _train_lora(model, config, draw, out, log, loss_of)


def _train_lora(
    model: Gemma, config: LoraConfig, draw: Draw, out: Path, log: Callable[[dict[str, Any]], None], loss_of: LossOf
) -> Lora:
    """The training of a folder that nobody else writes into."""
    model.requires_grad_(False)
    lora = Lora(model, config)
    trained = [p for p in lora.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
    step, curve = _resume(config, out, lora, optimizer)
    running: list[Tensor] = []
    with lora.applied(model):
        while step < config.steps:
            optimizer.param_groups[0]["lr"] = config.lr * config.rate(step)
            loss = loss_of(model, draw(np.random.default_rng([config.seed, step]), config.batch))
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            running.append(loss.detach())
            if step % 10 == 0 or step == config.steps:
                mean, running = torch.stack(running).mean().item(), []
                if not math.isfinite(mean):
                    raise ConfigError(f"The loss is {mean} at step {step}; lower the learning rate. {out} has a checkpoint.")
                curve.append({"step": step, "loss": round(mean, 4)})
                log(curve[-1] | {"steps": config.steps})
            if step % config.save_every == 0 or step == config.steps:
                write_whole(out / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in curve))
                state = {"step": step, "lora": lora.state_dict(), "optimizer": optimizer.state_dict()}
                write_checkpoint(out / "checkpoint.pt", state)
    return lora


def write_adapter(lora: Lora, model: Gemma, config: LoraConfig, base: str, folder: Path, card: str) -> Path:
    """The adapter as a folder that peft and `load_model` read: its matrices in bfloat16, its config, its card."""
    theirs = tensor_names(model.cfg)
    tensors = {}
    for name, a, b in zip(lora.names, lora.A, lora.B, strict=True):
        stem = "base_model.model." + theirs[f"{name}.weight"].removesuffix(".weight")
        for half, matrix in (("lora_A", a), ("lora_B", b)):
            tensors[f"{stem}.{half}.weight"] = matrix.detach().to(torch.bfloat16).contiguous()
    if config.rows:
        name = f"base_model.model.{theirs['embed.weight'].removesuffix('.weight')}.token_adapter.trainable_tokens_delta"
        tensors[name] = lora.rows.detach().to(torch.bfloat16).contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(PROJECTIONS),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "trainable_token_indices": {"embed_tokens": list(config.rows)} if config.rows else None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_whole(folder / "adapter_config.json", json.dumps(settings, indent=1) + "\n")
    write_whole(folder / "README.md", card)
    return folder


@torch.no_grad()
def bits(model: LanguageModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """Bits that the model needs for all answers, each after its prompt."""
    nats = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer[:-1]], device=model.device))[0, len(prompt) - 1 :].float()
        nats -= logits.log_softmax(-1).gather(1, torch.tensor(answer, device=model.device)[:, None]).sum().item()
    return nats / math.log(2)


def auc(scores: Float[np.ndarray, " n"], positive: Sequence[bool] | np.ndarray) -> float:
    """How often a positive scores above a negative, ties counting half; nan where there is only one kind."""
    positive = np.asarray(positive, dtype=bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    _, place, count = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def _resume(config: LoraConfig, out: Path, lora: Lora, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, Any]]]:
    """The step at which a run goes on, and its loss curve until there."""
    file, free = out / "lora.json", {"save_every"}
    if file.exists():
        before, now = read_typed(file, dict[str, Any], ConfigError, "Give another --out."), asdict(config)
        now = json.loads(json.dumps(now))
        before = {"rows": []} | before
        changed = [f"{k}: {before.get(k)} then, {v} now" for k, v in now.items() if k not in free and before.get(k) != v]
        if changed:
            raise ConfigError(
                f"{out} holds a run with other settings ({', '.join(changed)}).\n  Give another --out, or the same settings."
            )
    write_whole(file, json.dumps(asdict(config), indent=1))
    if not (out / "checkpoint.pt").exists():
        return 0, []
    saved = read_checkpoint(out / "checkpoint.pt")
    lora.load_state_dict(saved["lora"])
    optimizer.load_state_dict(saved["optimizer"])
    rows = json_lines(read_bytes(out / "curve.jsonl", CorpusError), out / "curve.jsonl")
    return saved["step"], [row for row in rows if row["step"] <= saved["step"]]
