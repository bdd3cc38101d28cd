"""Training a small Gemma or RecurrentGemma from nothing: Muon on matrices, AdamW on the rest, warm-up, flat, decay to zero.

A checkpoint holds weights, both optimisers and the step; the data of a step is a function of its number, and the learning
rate too. So a run that was stopped, however rudely, ends in the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scope.errors import ConfigError
from scope.models.families import family_of
from scope.models.parts.decoder import Decoder
from scope.pretrain.checkpoint import read_checkpoint, write_checkpoint
from scope.pretrain.config import PretrainConfig
from scope.pretrain.corpus import TokenStreams
from scope.typed_json import read_json, typed
from scope.whole_files import only_writer, write_whole

_AGAIN = "Copy it again, or give another --out."


_WRITERS = ("o_proj.weight", "down_proj.weight", "linear_out.weight")
"""The matrices whose products are added to the stream."""


def initialise(model: Decoder, seed: int) -> None:
    """Normal weights of std 1/sqrt(fan in). What writes into the stream starts smaller, which keeps it calm while it is young:
    by post norms with a gain below one, or, in a recurrent model, which has none, by smaller matrices. The convolutions and
    gates of a recurrent block start near zero, and its states keep 0.9 to 0.999 of themselves, as in RecurrentGemma.
    """
    generator, recurrent = torch.Generator().manual_seed(seed), hasattr(model.cfg, "lru_width")
    for name, p in model.named_parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=p.shape[1] ** -0.5, generator=generator)
            if recurrent and name.endswith(_WRITERS):
                p.data *= 0.4
        elif "_post.weight" in name:
            nn.init.constant_(p, -0.6)
        elif name.endswith("recurrent_param"):
            kept = torch.empty(p.shape).uniform_(0.9**2, 0.999**2, generator=generator)  # a^2 where the gate is 1/8
            p.data = torch.expm1(-0.5 * kept.log()).log()
        elif p.dim() == 3:
            fan_in = p.shape[2] if name.endswith("conv_weight") else p.shape[1]
            nn.init.normal_(p, std=0.1 * fan_in**-0.5, generator=generator)
        elif name.startswith("blocks.") and not name.endswith(("ln1.weight", "ln2.weight")):
            nn.init.zeros_(p)


def optimizers(model: Decoder, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adam]


def language_loss(model: Decoder, tokens: Tensor) -> Tensor:
    """Mean next-token loss in nats; the matrix products run in bfloat16, norms, softmax and the loss in float32."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = model(tokens[:, :-1])
    return cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def pretrain(config: PretrainConfig, corpus: Path, out: Path, log: Callable[[dict], None] = lambda row: None) -> Decoder:
    """Train on a folder that `build.build_corpus` made; the same call continues a run that was stopped.

    Writes OUT/pretrain.json (config), OUT/curve.jsonl (a line every 10 steps) and OUT/checkpoint.pt.

    Raises:
        ConfigError: OUT holds a run with another config (a larger `steps` is allowed while the rate is still flat), or has done
            more steps than are asked for.
        FolderInUse: another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, doing="used for a training"):
        return _pretrain(config, corpus, out, log)


def _pretrain(config: PretrainConfig, corpus: Path, out: Path, log: Callable[[dict], None]) -> Decoder:
    """The training of a folder that nobody else writes into."""
    cfg = config.model_config()
    model = family_of({"model_type": cfg.model_type}, str(out))(cfg)
    initialise(model, config.seed)
    opts = optimizers(model, config)
    streams = TokenStreams(corpus, config.n_ctx, config.batch, model.cfg.bos, config.seed)
    step = _resume(config, out, model, opts)
    loss_of = torch.compile(language_loss) if config.compile else language_loss
    started, first = time.time(), step
    running: list[Tensor] = []
    while step < config.steps:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = config.rate(step) * (config.matrix_lr if isinstance(opt, torch.optim.Muon) else config.other_lr)
        loss = loss_of(model, torch.from_numpy(streams.step(step)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        running.append(loss.detach())
        if step % 10 == 0 or step == config.steps:
            mean = torch.stack(running).mean().item()
            if not math.isfinite(mean):
                raise ConfigError(
                    f"The loss is {mean} at step {step}; lower the learning rates. The last checkpoint is in {out}."
                )
            rate = (step - first) * config.batch * config.n_ctx / (time.time() - started)
            row = {"step": step, "loss": round(mean, 4), "lr": config.rate(step - 1), "tokens_per_second": round(rate)}
            with open(out / "curve.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            log(row | {"steps": config.steps})
            running = []
        if step % config.save_every == 0 or step == config.steps:
            write_checkpoint(
                out / "checkpoint.pt", {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in opts]}
            )
    return model


def _resume(config: PretrainConfig, out: Path, model: Decoder, opts: list) -> int:
    file = out / "pretrain.json"
    free = {"compile", "save_every"}
    if file.exists():
        before = typed(read_json(file, ConfigError, _AGAIN), dict[str, Any], file, ConfigError, _AGAIN)
        then = typed(before, PretrainConfig, file, ConfigError, _AGAIN)
        before = asdict(then)  # settings that came later have their defaults
        changed = [k for k, v in asdict(config).items() if before[k] != v and k not in free]
        flat_until = then.steps - int(then.steps * then.decay)
        done = read_checkpoint(out / "checkpoint.pt")["step"] if (out / "checkpoint.pt").exists() else 0
        if set(changed) - {"steps", "decay"} or (changed and done > flat_until):
            said = ", ".join(f"{k}: {before[k]} then, {asdict(config)[k]} now" for k in changed)
            raise ConfigError(f"{out} holds a run with other settings ({said}).\n  Give another --out, or the same settings.")
        if done > config.steps:
            raise ConfigError(
                f"{out} holds a run of {done} steps, more than the {config.steps} asked for.\n"
                f"  Give another --out, or --steps of at least {done}."
            )
    write_whole(file, json.dumps(asdict(config), indent=1).encode())
    if not (out / "checkpoint.pt").exists():
        (out / "curve.jsonl").unlink(missing_ok=True)
        return 0
    saved = read_checkpoint(out / "checkpoint.pt")
    model.load_state_dict(saved["model"])
    for opt, state in zip(opts, saved["optimizers"], strict=True):
        opt.load_state_dict(state)
    write_whole(out / "curve.jsonl", "".join(line + "\n" for line in _curve_until(out / "curve.jsonl", saved["step"])).encode())
    return saved["step"]


def _curve_until(file: Path, step: int) -> list[str]:
    """The lines of a loss curve up to a step, without one that was cut short."""
    kept = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line)
    return kept
