"""Whether memory holds a model's weights, asked before they are loaded."""

import math

from scope.errors import ConfigError

_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


def refuse_without_room(model: str, dtype: str, revision: str | None = None, free: int | None = None) -> None:
    """`free` bytes are what the system can give; by default it is asked, where it tells.

    Raises:
        ConfigError: the weights in `dtype` are more than that. The message says how large they are and what to do.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from scope.memory import free_memory
    from scope.models.checkpoints import find_checkpoint, weight_files
    from scope.models.stored import stored_tensors

    free = free_memory() if free is None else free
    if free is None or model.startswith("lens:") or dtype not in _ITEM:
        return
    tensors = stored_tensors(weight_files(find_checkpoint(model, revision))).values()
    needed = sum(math.prod(t.shape) for t in tensors if t.name != "lm_head.weight") * _ITEM[dtype]
    if needed > free:
        smaller = "" if dtype != "float32" else ", --compute-dtype bfloat16 for half of it"
        raise ConfigError(
            f"The weights of {model} take {needed / 1e9:.1f} GB as {dtype}; {free / 1e9:.1f} GB of memory are free.\n"
            f"  Add --streamed to keep them on disk and read one block at a time{smaller}."
        )
