"""The device and precision that a model runs in: the best of this machine, unless one is named."""

import os
from typing import TYPE_CHECKING

from scope.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def find_device(name: "str | torch.device" = "auto") -> "torch.device":
    """The torch device of a name; "auto" is cuda, else mps, else cpu. Under torchrun, cuda is each process's own GPU.

    Raises:
        ConfigError: this machine has no such device, or fewer GPUs than processes.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises any of them for a device that is not there
        raise ConfigError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ConfigError("Device 'meta' holds no numbers, so no weights; give cpu, cuda or mps.")
    return device


def find_dtype(name: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
    """The torch dtype of a name; "auto" is bfloat16 on cuda, else float32.

    Raises:
        ConfigError: a model cannot be loaded so.
    """
    import torch

    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, name) if name in DTYPES else name
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ConfigError(f"dtype is {name!r}; a model can be loaded as {', '.join(DTYPES)}.")
    return dtype
