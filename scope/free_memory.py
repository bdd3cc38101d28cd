"""The free memory of a device or of this container."""

from typing import Any


def free_memory(device: Any = "cpu") -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not tell.

    On a CPU that is the lesser of what Linux calls available and what the limit of the container leaves.
    """
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except OSError:
        return None
    limits = [available, _container_limit()]
    return min((n for n in limits if n is not None), default=None)


def _container_limit() -> int | None:
    """What the control group's limit leaves: version 2, or version 1."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit) as most, open(used) as now:
                return int(most.read()) - int(now.read())
        except (OSError, ValueError):
            continue
    return None
