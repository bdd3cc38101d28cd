"""The same activations through others, for `recordings.py`: plain files, numpy.memmap, SAELens' cached activations."""

import os
from pathlib import Path

import numpy as np
import torch

WIDTH, SITES, CONTEXT, BATCH_CONTEXTS, BATCH = 2304, 8, 256, 16, 4096
BLOCK = 8 << 20


class Given:
    """A model that costs nothing: the same activations again and again, in bfloat16, as a model that runs in it makes them."""

    def __init__(self):
        draws = torch.Generator().manual_seed(0)
        shape = (BATCH_CONTEXTS, CONTEXT, WIDTH)
        self.acts = {f"blocks.{i}.hook_resid_post": torch.randn(shape, generator=draws).bfloat16() for i in range(SITES)}

    def sites(self) -> dict[str, int]:
        return dict.fromkeys(self.acts, WIDTH)

    def record(self, tokens, sites):
        return {site: self.acts[site][: len(tokens)] for site in sites}


def write_plain(path: Path, model: Given, nbytes: int) -> None:
    """The same bytes from the same memory, in blocks of 8 MiB, one file, fsync at the end."""
    sources = [memoryview(x.view(torch.int16).numpy()).cast("B") for x in model.acts.values()]
    with open(path, "wb", buffering=0) as file:
        done = 0
        while done < nbytes:
            for source in sources:
                for at in range(0, len(source), BLOCK):
                    if done < nbytes:
                        done += file.write(source[at : min(at + BLOCK, at + nbytes - done)])
        os.fsync(file.fileno())


def write_memmap(folder: Path, model: Given, tokens: int) -> None:
    """One numpy.memmap per site."""
    folder.mkdir()
    maps = {s: np.memmap(folder / f"{s}.npy", np.uint16, "w+", shape=(tokens, WIDTH)) for s in model.acts}
    for at in range(0, tokens, BATCH):
        for site, x in model.acts.items():
            maps[site][at : at + BATCH] = x.view(torch.int16).numpy().view(np.uint16).reshape(-1, WIDTH)[: tokens - at]
    for array in maps.values():
        array.flush()


def write_sae_lens(folder: Path, x: torch.Tensor, shards: int) -> int:
    """What CacheActivationsRunner does with each buffer, by its own method: one site in float32. Returns bytes."""
    from types import SimpleNamespace

    from datasets import Array2D, Features, Sequence, Value
    from sae_lens import CacheActivationsRunner

    hook, n = "blocks.0.hook_resid_post", x.shape[0]
    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)
    runner.cfg = SimpleNamespace(hook_name=hook, n_seq_in_buffer=n, d_in=WIDTH)
    runner.context_size = CONTEXT
    columns = {hook: Array2D((CONTEXT, WIDTH), "float32"), "token_ids": Sequence(Value("int32"), length=CONTEXT)}
    runner.features = Features(columns)
    (folder / ".tmp_shards").mkdir(parents=True)
    wide, tokens = x.float().reshape(-1, WIDTH), torch.zeros(n * CONTEXT, dtype=torch.int64)
    for i in range(shards):
        shard = runner._create_shard((wide, tokens))
        shard.save_to_disk(str(folder / ".tmp_shards" / f"shard_{i:05d}"), num_shards=1)
    runner._consolidate_shards(folder / ".tmp_shards", folder, copy_files=False)
    for path in folder.iterdir():
        sync(path)
    return shards * wide.nbytes


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def cool(folder: Path) -> None:
    """Put files out of the page cache."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_plain(folder: Path, buffer: bytearray = bytearray(BLOCK)) -> int:
    """Every file from its beginning to its end into one buffer."""
    total = 0
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with open(path, "rb", buffering=0) as file:
            while n := file.readinto(buffer):
                total += n
    return total


def read_memmap(folder: Path, tokens: int, rows: int) -> int:
    """Batches of random rows of all sites out of numpy.memmap, as float32."""
    maps = [np.memmap(path, np.uint16, "r", shape=(tokens, WIDTH)) for path in sorted(folder.iterdir())]
    order, total = np.random.default_rng(0).permutation(tokens)[:rows], 0
    for at in range(0, rows, BATCH):
        for array in maps:
            picked = torch.from_numpy(array[order[at : at + BATCH]].view(np.int16)).view(torch.bfloat16).float()
            total += picked.numel() * 2
    return total


def read_sae_lens(folder: Path, rows: int) -> int:
    """SAELens' own loader and mixing buffer over its cached activations; bytes as it stores them."""
    from sae_lens.training.activations_store import ActivationsStore

    loader = ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name="blocks.0.hook_resid_post", hook_head_index=None,
        context_size=CONTEXT, d_in=WIDTH, n_batches_in_buffer=256, total_training_tokens=rows, store_batch_size_prompts=16,
        train_batch_size_tokens=BATCH, prepend_bos=False, normalize_activations="none", device=torch.device("cpu"),
        dtype="float32", cached_activations_path=str(folder),
    )  # fmt: skip
    total = 0
    while total < rows:
        total += len(next(loader))
    return total * WIDTH * 4
