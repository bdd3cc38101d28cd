"""Other trainers of dictionaries behind one face, each through its own training step, so that they can be timed and judged.

`pip install sae-lens dictionary-learning eai-sparsify` installs all three; better in an environment of their
own, for they bring much along. One that is missing is left out, and said to be.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor


@dataclass
class Peer:
    """`step(x)` trains on one batch; `encode` gives latents, `decode` x_hat, `rows` the decoder [d_sae d_in]."""

    step: Callable[[Tensor], Any]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    rows: Callable[[], Tensor]
    parameters: dict[str, Tensor]


PACKAGES = {"sae_lens": "sae-lens", "dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}


def missing(module: str) -> str | None:
    """Why a peer cannot be had, or None if it can."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{PACKAGES[module]} is not installed ({error}); pip install {PACKAGES[module]}"
    return None


def release(module: str) -> str:
    return f"{PACKAGES[module]} {version(PACKAGES[module])}"


def sae_lens_jumprelu(
    d_in: int, d_sae: int, *, steps: int, batch: int, autocast: bool = False, schedule: dict, sae: dict
) -> Peer:
    """`sae` are fields of JumpReLUTrainingSAEConfig, `schedule` of SAETrainerConfig."""
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    config = JumpReLUTrainingSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", **sae)
    return _sae_lens(JumpReLUTrainingSAE(config), steps, batch, autocast, schedule)


def sae_lens_batch_topk(d_in: int, d_sae: int, *, steps: int, batch: int, schedule: dict, sae: dict) -> Peer:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    config = BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", **sae)
    return _sae_lens(BatchTopKTrainingSAE(config), steps, batch, False, schedule)


def _sae_lens(sae, steps: int, batch: int, autocast: bool, schedule: dict) -> Peer:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        autocast=autocast,
        **{"lr": 3e-4, "lr_end": schedule.get("lr", 3e-4) / 10} | schedule,
    )
    trainer = SAETrainer(config, sae, iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return Peer(step, sae.encode, sae.decode, lambda: sae.W_dec.data, dict(sae.named_parameters()))


def dictionary_learning_jumprelu(d_in: int, d_sae: int, *, steps: int, **settings) -> Peer:
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    trainer = JumpReluTrainer(steps=steps, activation_dim=d_in, dict_size=d_sae, layer=0, lm_name="", device="cpu", **settings)
    at = iter(range(10**9))
    ae = trainer.ae
    parameters = dict(ae.named_parameters())
    return Peer(lambda x: trainer.update(next(at), x), ae.encode, ae.decode, lambda: ae.W_dec.data, parameters)


def sparsify_topk(d_in: int, d_sae: int, *, k: int, lr: float, warmup: int, steps: int) -> Peer:
    """Its trainer's loop round its own module, with Adam: the trainer itself reads a running language model only."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k))
    adam = torch.optim.Adam(coder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min(1.0, (i + 1) / max(1, warmup), 5 * (1 - i / steps)))
    silent = torch.zeros(d_sae, dtype=torch.long)
    first = True

    def step(x: Tensor) -> None:
        nonlocal first
        if first:
            coder.b_dec.data = x.mean(0)
            first = False
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        schedule.step()
        silent.add_(len(x))
        silent[out.latent_indices.flatten()] = 0

    def encode(x: Tensor) -> Tensor:
        found = coder.encode(x)
        return torch.zeros(len(x), d_sae).scatter_(1, found.top_indices, found.top_acts)

    return Peer(
        step,
        encode,
        lambda latents: latents @ coder.W_dec + coder.b_dec,
        lambda: coder.W_dec.data,
        dict(coder.named_parameters()),
    )
