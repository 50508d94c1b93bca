"""How much memory there is, and how much a model takes."""

import json
from collections.abc import Iterable
from pathlib import Path

import psutil

from config import ModelSettings

GIB = 2**30

PROCESS_BYTES = int(0.85 * GIB)
"""What one engine process takes before weights and KV cache, as measured (`docs/engines.md`)."""

RESERVE_BYTES = int(0.75 * GIB)
"""Kept available for everything else on the machine when a model is loaded."""

_SHARE = 0.8
"""Of the memory available at the start, the share that models may take unless the operator says."""


def available_bytes() -> int:
    """Return the memory this process may still take, in bytes.

    The page cache counts as available. A cgroup's limit, where there is one, counts like the end of
    the machine (cgroup v2 `memory.max`, v1 `memory.limit_in_bytes`).
    """
    free = psutil.virtual_memory().available
    for limit, used, stat, cache in _CGROUP_FILES:
        try:
            ceiling = int(Path(limit).read_text())
            taken = int(Path(used).read_text())
            pages = dict(line.split() for line in Path(stat).read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such cgroup, or "max": no limit of its own
        free = min(free, ceiling - taken + int(pages.get(cache, 0)))
    return max(free, 0)


_CGROUP_FILES = (
    (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
        "inactive_file",
    ),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def budget_bytes(memory_budget_gb: float | None) -> int:
    """Return what all loaded models together may take, in bytes."""
    if memory_budget_gb is not None:
        return int(memory_budget_gb * GIB)
    return int(available_bytes() * _SHARE)


def weights_bytes(directory: Path) -> int:
    """Return the size of the tensors in the safetensors files of `directory`, from their headers.

    Raises OSError or ValueError when a file is damaged.
    """
    return sum(_tensor_bytes(path) for path in _weight_files(directory))


def _weight_files(directory: Path) -> Iterable[Path]:
    """Return the files of the index, or all when there is none: some repositories ship copies."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        return sorted(
            {directory / name for name in json.loads(index.read_text())["weight_map"].values()}
        )
    return sorted(directory.glob("*.safetensors"))


def _tensor_bytes(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 100_000_000:
            raise ValueError(f"{path} is not a safetensors file")
        header = json.loads(file.read(length))
    return sum(
        tensor["data_offsets"][1] - tensor["data_offsets"][0]
        for name, tensor in header.items()
        if name != "__metadata__"
    )


def footprint_bytes(model: ModelSettings, directory: Path) -> int:
    """Return what the engine of `model` will take: process, weights and KV cache, in bytes."""
    return PROCESS_BYTES + weights_bytes(directory) + int(model.kv_cache_gb * GIB)
