"""The memory plan for people: a table, and what follows from it in sentences."""

from collections.abc import Iterator

from engines.need import Need, gib
from engines.plan import Entry, Plan

_HEAD = ("MODEL", "WEIGHTS", "KV CACHE", "PROCESS", "TOTAL", "CONTEXT", "AT ONCE", "LEAVES FOR IT")


def shown(plan: Plan) -> str:
    """Return the plan as text, in GiB."""
    lines = [*_memory(plan), "", *_table(plan), "", *_sentences(plan)]
    return "\n".join(lines).rstrip() + "\n"


def _memory(plan: Plan) -> Iterator[str]:
    here, room = plan.machine, plan.room
    limit = "" if here.limit_bytes is None else f", {gib(here.limit_bytes)} allowed by its cgroup"
    yield (
        f"Memory in GiB: {gib(here.total_bytes)} in this machine{limit}, "
        f"{gib(here.available_bytes)} available; the service takes {gib(plan.service_bytes)}."
    )
    yield f"Models may take {gib(room.bytes)} together" + (
        "."
        if room.bytes == room.budget_bytes
        else f": the budget is {gib(room.budget_bytes)}, but no more is available."
    )


def _table(plan: Plan) -> Iterator[str]:
    """Yield the rows, names to the left and numbers to the right."""
    rows = [_HEAD, *(_row(entry) for entry in plan.models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        first, *numbers, last = (
            cell.ljust(width) if column in (0, len(_HEAD) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *numbers, last]).rstrip()


def _row(entry: Entry) -> tuple[str, ...]:
    need = entry.need
    if not entry.here:
        cache = "unknown" if entry.kv_cache_bytes is None else gib(entry.kv_cache_bytes)
        context = "unknown" if entry.max_model_len is None else str(entry.max_model_len)
        return (entry.model, "unknown", cache, "unknown", "unknown", context, "", "")
    if need is None:
        return (entry.model, *["-"] * 5, "", "")
    sizes = (need.weights_bytes, need.kv_cache_bytes, need.overhead_bytes, need.total_bytes)
    leave = "does not fit" if entry.problem else ", ".join(entry.leave) or "nobody"
    return (entry.model, *map(gib, sizes), str(need.max_model_len), _at_once(need), leave)


def _at_once(need: Need) -> str:
    """Return how many full contexts the KV cache holds, of as many as are computed at a time."""
    layout = need.kv_cache
    if layout is None:
        return f"? of {need.max_num_seqs}"
    held = (need.kv_cache_bytes // layout.block_bytes - 1) / layout.blocks(need.max_model_len)
    return f"{min(held, need.max_num_seqs):.3g} of {need.max_num_seqs}"


def _sentences(plan: Plan) -> Iterator[str]:
    for problem in plan.problems:
        yield f"{problem}."
    unknown = [entry.model for entry in plan.models if not entry.here]
    if unknown:
        yield (
            f"Nothing is known of {_and(unknown)} until the files are on this disk: a name says "
            "nothing about a size. The plan is made again before every load."
        )
    known = [entry for entry in plan.models if entry.need and not entry.problem]
    total = sum(entry.need.total_bytes for entry in known if entry.need)
    those = "All models" if len(known) == len(plan.models) else "The others"
    if not known:
        return
    if len(plan.together[0]) == len(known):
        yield f"{those} fit together: {gib(total)} of {gib(plan.room.bytes)}."
        return
    yield (
        f"{those} do not fit together: they take {gib(total)} of {gib(plan.room.bytes)}. At most "
        f"{len(plan.together[0])} do: {'; '.join(' + '.join(each) for each in plan.together)}."
    )
    for entry in known:
        if entry.leave:
            yield f"When {entry.model} is loaded after the others, {_and(entry.leave)} must leave."


def _and(names: list[str] | tuple[str, ...]) -> str:
    return " and ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])
