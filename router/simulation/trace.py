"""Who asks for what and when: made up from a scenario, or as it was recorded."""

import math
import random
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

from msgspec import Struct, structs

from config import is_auto
from policies import Task
from router.ledger import read
from router.simulation.scenario import Scenario, Work

BURST, LULL = 4.0, 0.25
"""How many times the mean rate there is in a burst, and between bursts."""

BURST_S, LULL_S = 60.0, 240.0
"""How long those last, in the mean; together they give the mean rate."""

DAY_SWING = 0.8
"""How far the rate of the busiest hour is above the mean, and that of the quietest below it."""

_DAY_S = 86_400.0


class Arrival(Struct, frozen=True, kw_only=True):
    """A request.

    Attributes
    ----------
    at
        When it comes, in seconds from the beginning.
    output_tokens
        How long its answer will be, which nobody knows before.
    conversation
        The same for all turns of one conversation.
    is_last
        Whether that ends with it.
    """

    at: float
    task: Task
    output_tokens: int
    conversation: int
    is_last: bool = True


def generated(scenario: Scenario, requests_per_min: float, seed: int) -> Iterator[Arrival]:
    """Yield the requests of a scenario in order; the same seed gives the same ones."""
    source = random.Random(seed)  # noqa: S311 - a simulation, no secret
    begins = _beginnings(scenario, requests_per_min / 60 / scenario.turns, source)
    kinds = list(scenario.tasks.items())
    weights = [work.share for _, work in kinds]
    later: list[tuple[float, int, Arrival]] = []
    serial = count()
    begin = next(begins)
    for _ in range(scenario.requests):
        if later and later[0][0] <= begin:
            arrival = heappop(later)[2]
        else:
            ((label, work),) = source.choices(kinds, weights)
            arrival = _first(label, work, scenario, begin, next(serial), source)
            begin = next(begins)
        is_last = source.random() * scenario.turns < 1
        if not is_last:
            following = _following(arrival, scenario, source)
            heappush(later, (following.at, next(serial), following))
        yield structs.replace(arrival, is_last=is_last)


def recorded(ledger: Path, scenario: Scenario) -> list[Arrival]:
    """Return the requests for `auto` in a ledger, in the order of their arrival.

    Raises
    ------
    BadLedger
    """
    entries = [entry for entry, _ in read(ledger) if is_auto(entry.asked)]
    entries.sort(key=lambda entry: entry.at - entry.seconds)
    begin = entries[0].at - entries[0].seconds if entries else 0.0
    found = []
    for number, entry in enumerate(entries):
        work = scenario.tasks.get(entry.task.label)  # type: ignore[call-overload]
        usual = round(work.output_tokens) if work else 150
        written = entry.usage.completion_tokens if entry.usage else 0
        at = entry.at - entry.seconds - begin
        found.append(
            Arrival(at=at, task=entry.task, output_tokens=written or usual, conversation=number)
        )
    return found


def _first(
    label: str, work: Work, scenario: Scenario, at: float, number: int, source: random.Random
) -> Arrival:
    difficulty = source.gauss(work.difficulty, work.difficulty_spread)
    task = Task(
        label=label,
        confidence=0.9,
        difficulty=min(max(difficulty, 0.0), 1.0),
        language="es" if source.random() < scenario.spanish else "en",
        prompt_tokens=_length(work.prompt_tokens, work.spread, source),
    )
    written = _length(work.output_tokens, work.spread, source)
    return Arrival(at=at, task=task, output_tokens=written, conversation=number)


def _following(arrival: Arrival, scenario: Scenario, source: random.Random) -> Arrival:
    """Return the next turn: the whole conversation and a little more."""
    old = arrival.task
    work = scenario.tasks[old.label]  # type: ignore[index]
    more = _length(40, work.spread, source)
    task = structs.replace(
        old, prompt_tokens=old.prompt_tokens + arrival.output_tokens + more, turns=old.turns + 1
    )
    return structs.replace(
        arrival,
        at=arrival.at + source.expovariate(1 / scenario.think_s),
        task=task,
        output_tokens=_length(work.output_tokens, work.spread, source),
    )


def _length(mean: float, spread: float, source: random.Random) -> int:
    return max(1, round(source.lognormvariate(math.log(mean) - spread**2 / 2, spread)))


def _beginnings(scenario: Scenario, per_s: float, source: random.Random) -> Iterator[float]:
    """Yield when conversations begin, without end, in seconds."""
    at = 0.0
    if scenario.arrivals == "poisson":
        while True:
            at += source.expovariate(per_s)
            yield at
    if scenario.arrivals == "day":  # by thinning (Lewis and Shedler, 1979)
        highest = 1 + DAY_SWING
        while True:
            at += source.expovariate(per_s * highest)
            now = 1 - DAY_SWING * math.cos(2 * math.pi * at / _DAY_S)
            if source.random() * highest < now:
                yield at
    until, factor = 0.0, BURST
    while True:
        gap = source.expovariate(per_s * factor)
        if at + gap <= until:
            at += gap
            yield at
        else:  # what was drawn beyond the end says nothing: arrivals have no memory
            at = until
            factor = LULL if factor == BURST else BURST
            until += source.expovariate(1 / (BURST_S if factor == BURST else LULL_S))
