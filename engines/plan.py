"""Which models fit into memory, alone and together, and what to change where they do not."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from config import ModelSettings, Settings
from engines.memory import GIB, RESERVE_BYTES, Machine, budget_bytes, machine
from engines.need import Need, NotHere, Unknown, at_least, at_most, gib, need, too_small
from engines.sources import local_directory

SERVICE_BYTES = int(1.15 * GIB)
"""What the server and the process that engines are forked from take together (`docs/memory.md`)."""

_TRIED_MAX, _SHOWN_MAX = 10_000, 6  # sets of models: a file with dozens of them has too many


class Room(Struct, frozen=True, kw_only=True):
    """The memory that models may take, in bytes.

    Attributes
    ----------
    budget_bytes
        What all loaded models together may take.
    free_bytes
        What the machine has for models, or None when that is not the question.
    """

    budget_bytes: int
    free_bytes: int | None = None

    @property
    def bytes(self) -> int:
        """The lower of the two."""
        if self.free_bytes is None:
            return self.budget_bytes
        return min(self.budget_bytes, self.free_bytes)


class Entry(Struct, frozen=True, kw_only=True):
    """One model in a plan.

    Attributes
    ----------
    need
        What it takes, or None while that is not known.
    here
        Whether its files are on this disk.
    max_model_len, kv_cache_bytes
        What is configured of a model that is not here, or None.
    problem
        Why it can never be loaded, with the numbers and what to change, or None.
    leave
        Who leaves for it when the others were loaded before, in the order of the file.
    """

    model: str
    need: Need | None = None
    here: bool = True
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    problem: str | None = None
    leave: tuple[str, ...] = ()


class Plan(Struct, frozen=True, kw_only=True):
    """Who fits into memory.

    Attributes
    ----------
    machine
        Its memory when the plan was made.
    service_bytes
        What the service takes besides its engines.
    room
        What models may take of it.
    models
        In the order of the file.
    together
        The largest sets of models that fit together, of those whose need is known.
    """

    machine: Machine
    service_bytes: int
    room: Room
    models: tuple[Entry, ...]
    together: tuple[tuple[str, ...], ...]

    @property
    def problems(self) -> list[str]:
        """Why models can never be loaded, for each of those."""
        return [entry.problem for entry in self.models if entry.problem]


Known = Need | NotHere | Unknown | None
"""What a model needs, or why that is not known; None for one that needs nothing."""


def make_plan(settings: Settings, base: Path, budget: int | None = None) -> Plan:
    """Return the plan for a configuration. Loads nothing and downloads nothing.

    Parameters
    ----------
    base
        Directory that relative model sources start from.
    budget
        In bytes, that of the service that runs. Leave out for one that starts now: then what the
        machine has available counts too.
    """
    here = machine()
    needs = [_look_up(model, base) for model in settings.models]
    service = SERVICE_BYTES + sum(each.server_bytes for each in needs if isinstance(each, Need))
    free = max(here.available_bytes - service, 0)
    if budget is None:
        room = Room(
            budget_bytes=budget_bytes(settings.pool.memory_budget_gb, free),
            free_bytes=max(free - RESERVE_BYTES, 0),
        )
    else:
        room = Room(budget_bytes=budget)
    return plan(settings.models, needs, room, here=here, service_bytes=service)


def _look_up(model: ModelSettings, base: Path) -> Known:
    if model.engine != "vllm":
        return None
    directory = local_directory(model.source, base)
    try:
        return need(model, directory) if directory else NotHere(model.source)
    except (NotHere, Unknown) as reason:
        return reason


def plan(
    models: Sequence[ModelSettings],
    needs: Sequence[Known],
    room: Room,
    *,
    here: Machine,
    service_bytes: int,
) -> Plan:
    """Return the plan for models whose needs have been looked up. Pure."""
    pairs = list(zip(models, needs, strict=True))
    sizes = {model.name: each.total_bytes for model, each in pairs if isinstance(each, Need)}
    pinned = {
        model.name: sizes[model.name] for model in models if model.pin and model.name in sizes
    }
    problems = {model.name: _problem(model, each, room, pinned) for model, each in pairs}
    sizes = {name: size for name, size in sizes.items() if problems[name] is None}
    stay = [name for name in pinned if name in sizes]
    return Plan(
        machine=here,
        service_bytes=service_bytes,
        room=room,
        models=tuple(
            _not_here(model)
            if isinstance(each, NotHere)
            else Entry(
                model=model.name,
                need=each if isinstance(each, Need) else None,
                problem=problems[model.name],
                leave=_leave(model.name, sizes, stay, room.bytes) if model.name in sizes else (),
            )
            for model, each in pairs
        ),
        together=_largest_sets(sizes, stay, room.bytes),
    )


def _not_here(model: ModelSettings) -> Entry:
    size = None if model.kv_cache_gb is None else int(model.kv_cache_gb * GIB)
    return Entry(
        model=model.name, here=False, max_model_len=model.max_model_len, kv_cache_bytes=size
    )


def _problem(model: ModelSettings, found: Known, room: Room, pinned: dict[str, int]) -> str | None:
    """Return why a model can never be loaded, and what to change; None when it can, or may."""
    if isinstance(found, Unknown):
        return f"{model.name}: {found}"
    if not isinstance(found, Need):
        return None
    if reason := _too_large(model, found, room):
        return reason
    if reason := too_small(found, room.bytes):
        return f"{model.name}: {reason}"
    others = {name: size for name, size in pinned.items() if name != model.name}
    left = max(room.bytes - sum(others.values()), 0)
    if found.total_bytes <= left:
        return None
    return (
        f"{model.name} takes {gib(found.total_bytes)} GiB, but {' and '.join(others)}, pinned, "
        f"leave {gib(left)} of {gib(room.bytes)} GiB. Unpin or change one of them"
    )


def _leave(name: str, sizes: dict[str, int], pinned: list[str], room: int) -> tuple[str, ...]:
    """Return who leaves for `name` when each was as dear as another, the first in the file first.

    The pool itself also knows how often each is wanted (`engines.lifecycle`).
    """
    loaded: list[str] = []
    leaving: list[str] = []
    for coming in [*(each for each in sizes if each != name), name]:
        missing = sum(sizes[each] for each in [*loaded, coming]) - room
        leaving = []
        for each in loaded:
            if each not in pinned and sum(sizes[one] for one in leaving) < missing:
                leaving.append(each)
        for each in reversed(leaving[:-1]):  # the last may have made it unnecessary
            if sum(sizes[one] for one in leaving) - sizes[each] >= missing:
                leaving.remove(each)
        loaded = [*(each for each in loaded if each not in leaving), coming]
    return tuple(leaving)


def _largest_sets(
    sizes: dict[str, int], pinned: list[str], room: int
) -> tuple[tuple[str, ...], ...]:
    """Return the sets with the most models that fit, each with all pinned ones."""
    free = {name: size for name, size in sizes.items() if name not in pinned}
    left = room - sum(sizes[name] for name in pinned)
    count = sum(total <= left for total in itertools.accumulate(sorted(free.values())))
    sets = (
        tuple(name for name in sizes if name in pinned or name in chosen)
        for chosen in itertools.islice(itertools.combinations(free, count), _TRIED_MAX)
        if sum(free[name] for name in chosen) <= left
    )
    return tuple(itertools.islice((each for each in sets if each), _SHOWN_MAX))


def _too_large(model: ModelSettings, found: Need, room: Room) -> str | None:
    """Return why a model does not fit alone, and what to change; None when it fits."""
    if found.total_bytes <= room.bytes:
        return None
    here = (
        f" and {gib(room.free_bytes)} GiB are available for models"
        if room.free_bytes is not None and room.free_bytes < room.budget_bytes
        else ""
    )
    changes = list(_smaller(model, found, room.bytes - found.total_bytes + found.kv_cache_bytes))
    if room.free_bytes is None or found.total_bytes <= room.free_bytes:
        changes.append(f"pool.memory_budget_gb {at_least(found.total_bytes)}")
    advice = f"Set {', or '.join(changes)}" if changes else "Take a smaller or a quantised model"
    return (
        f"{model.name} takes {gib(found.total_bytes)} GiB, but the memory budget is "
        f"{gib(room.budget_bytes)} GiB{here}: weights {gib(found.weights_bytes)}, KV cache "
        f"{gib(found.kv_cache_bytes)}, process {gib(found.overhead_bytes)}. {advice}"
    )


def _smaller(model: ModelSettings, found: Need, left: int) -> Iterator[str]:
    """Yield settings with which the KV cache takes at most `left` bytes."""
    layout, context = found.kv_cache, found.max_model_len
    if left <= 0:
        return
    if model.kv_cache_gb is not None:
        size = at_most(left)
        longest = layout.longest(int(float(size) * GIB), context) if layout else context
        if longest == context:
            yield f"kv_cache_gb {size}"
        elif longest:
            yield f"max_model_len {longest} with kv_cache_gb {size}"
    elif layout is not None:
        requests = (left // layout.block_bytes - 1) // layout.blocks(context)
        if requests > 0:
            yield f"max_num_seqs {requests}"
        if longest := layout.longest(left, context, found.max_num_seqs):
            yield f"max_model_len {longest}"
