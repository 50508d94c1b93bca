"""How much memory there is, and how large the weights in a directory are."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from msgspec import Struct

GIB = 2**30

RESERVE_BYTES = int(0.75 * GIB)
"""Kept available for everything else on the machine when a model is loaded."""

_SHARE = 0.8
"""Of the memory available at the start, the share that models may take unless the operator says."""

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT = 2**60  # version 1 writes the largest page-aligned number where version 2 writes "max"


class Machine(Struct, frozen=True, kw_only=True):
    """The memory of this machine as this process sees it, in bytes.

    Attributes
    ----------
    total_bytes
        What is built in.
    limit_bytes
        The lowest limit of the cgroups that this process is in, or None.
    available_bytes
        What this process may still take. The page cache counts as available.
    """

    total_bytes: int
    limit_bytes: int | None
    available_bytes: int


def machine() -> Machine:
    """Return the memory of this machine, now.

    The limit of a cgroup counts like the end of the machine, also that of a parent: a service in a
    systemd slice or a container has its limit one or more levels above its own cgroup.
    """
    memory = psutil.virtual_memory()
    limits = list(_limits())
    left = (each.limit - each.taken for each in limits)
    return Machine(
        total_bytes=memory.total,
        limit_bytes=min((each.limit for each in limits), default=None),
        available_bytes=max(min((memory.available, *left)), 0),
    )


def available_bytes() -> int:
    """Return the memory this process may still take, in bytes. See `Machine`."""
    return machine().available_bytes


def budget_bytes(memory_budget_gb: float | None, available: int | None = None) -> int:
    """Return what all loaded models together may take, in bytes.

    Parameters
    ----------
    memory_budget_gb
        What the operator says, in GiB, or None for 80 % of what is available.
    available
        In bytes, where it is not what `available_bytes` says.
    """
    if memory_budget_gb is not None:
        return int(memory_budget_gb * GIB)
    return int((available_bytes() if available is None else available) * _SHARE)


class _Limit(NamedTuple):
    """A limit on memory in bytes, and how much of it cannot be dropped at any time."""

    limit: int
    taken: int


def _limits() -> Iterator[_Limit]:
    """Yield the limits of every cgroup that this process is in, up to the root."""
    for root, path, version in _hierarchies():
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root):
                yield from _limits_of(group, version)


def _hierarchies() -> Iterator[tuple[Path, str, int]]:
    """Yield where memory cgroups are mounted, this process's path below it, and their version.

    In a container the path can be the one outside, which does not exist inside; the container's own
    limit is then at the root.
    """
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        path = "" if ".." in path else path  # outside of this cgroup namespace
        if not controllers:
            yield _CGROUPS, path, 2
        elif "memory" in controllers.split(","):
            yield _CGROUPS / "memory", path, 1


def _limits_of(group: Path, version: int) -> Iterator[_Limit]:
    """Yield the limits of one cgroup; nothing where there is none or no such cgroup."""
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    used = "memory.current" if version == 2 else "memory.usage_in_bytes"
    prefix = "" if version == 2 else "total_"  # with everything below
    for name in names:
        try:
            limit = int((group / name).read_text())
            pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = sum(
                int(pages.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive")
            )
            taken = int((group / used).read_text()) - cached
        except (OSError, ValueError):
            continue  # no such cgroup, or "max"
        if limit < _NO_LIMIT:
            yield _Limit(limit, taken)


def weights_bytes(directory: Path) -> int:
    """Return the size of the tensors in the safetensors files of `directory`, from their headers.

    Raises OSError or ValueError when a file is missing or damaged.
    """
    return sum(tensor.size for tensor in tensors(directory))


class Tensor(NamedTuple):
    """One tensor of a checkpoint, as the header of its file describes it."""

    name: str
    dtype: str
    numbers: int
    size: int


def tensors(directory: Path) -> Iterator[Tensor]:
    """Yield every tensor in the safetensors files of `directory`, from their headers.

    Raises OSError or ValueError when a file is missing or damaged.
    """
    for path in _weight_files(directory):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield Tensor(name, entry["dtype"], math.prod(entry["shape"]), end - begin)


def _weight_files(directory: Path) -> Iterable[Path]:
    """Return the files of the index, or all when there is none: some repositories ship copies."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text())["weight_map"].values()
        return sorted({directory / name for name in names})
    return sorted(directory.glob("*.safetensors"))


def _header(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 100_000_000:
            raise ValueError(f"{path} is not a safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    whole = 8 + length + max(ends, default=0)
    if path.stat().st_size < whole:
        raise ValueError(f"{path} was cut off: it has {path.stat().st_size} of {whole} bytes")
    return header
