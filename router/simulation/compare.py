"""Every way to choose, at every budget and load of a scenario, and what to say of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from msgspec import Struct, structs

from config import Settings
from policies import Policy
from router.simulation.contestants import Contestant, baselines
from router.simulation.machine import Machine
from router.simulation.measures import Measures, measured
from router.simulation.scenario import Scenario
from router.simulation.trace import Arrival, generated

RECORDED = "recorded"
"""What the load of a recorded trace is called."""

STATIC = "static by task"

LESS_FIT = 0.03
"""Of mean fit, the share that may be given for time under memory pressure."""

FASTER = 5.0
"""How many times sooner the slowest twentieth must be answered for that."""

_SAME = 0.005  # relative; quantiles are this exact


class Cell(Struct, frozen=True):
    """One budget and load."""

    budget: str
    load: str


class Comparison(Struct, frozen=True):
    """What came out.

    Attributes
    ----------
    models
        Their names, in the order of the configuration.
    simple, policies
        Names of the contestants.
    """

    models: list[str]
    simple: list[str]
    policies: list[str]
    cells: dict[Cell, dict[str, Measures]]


def compare(
    scenario: Scenario,
    settings: Settings,
    policies: Sequence[Policy],
    seed: int = 0,
    trace: Sequence[Arrival] | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Return what every contestant makes of every cell; all of them get the same requests.

    Parameters
    ----------
    policies
        The first one is also the judge of fit, and what the simpler ways take their default from.
    trace
        Recorded requests, in place of generated ones.
    step
        Told what is simulated next.
    """
    judge = policies[0]
    sizes = {model.name: scenario.hardware[model.name].size_gb for model in settings.models}
    simple = baselines(judge, sizes, {str(task): model for task, model in scenario.static.items()})
    own = [Contestant(policy.name, policy) for policy in policies]
    for price in scenario.prices:
        own.append(
            Contestant(f"{judge.name} at {price:g}", structs.replace(judge, price_per_second=price))
        )
    pool = settings.pool
    if scenario.patience_s is not None:
        pool = structs.replace(pool, load_wait_s=scenario.patience_s)
    rates = {RECORDED: 0.0} if trace is not None else scenario.requests_per_min
    cells: dict[Cell, dict[str, Measures]] = {}
    for (budget, size), (load, rate) in product(scenario.budgets_gb.items(), rates.items()):
        cell = cells.setdefault(Cell(budget, load), {})
        for each in (*simple, *own):
            step(f"{budget}, {load}: {each.name}")
            machine = Machine(settings.models, pool, scenario, size, each, judge)
            requests = generated(scenario, rate, seed) if trace is None else trace
            cell[each.name] = measured(machine, machine.run(requests))
    return Comparison(
        [model.name for model in settings.models],
        [each.name for each in simple],
        [each.name for each in own],
        cells,
    )


def report(found: Comparison) -> str:
    """Return the tables, in Markdown."""
    parts = [claims(found)]
    for cell, measures in found.cells.items():
        parts += [f"## Memory: {cell.budget}; load: {cell.load}", _table(found, measures)]
    return "\n\n".join(parts) + "\n"


def claims(found: Comparison) -> str:
    """Return what is promised of the first policy, and whether it holds."""
    ours = found.policies[0]
    roomy = list(found.cells)[-1].budget
    rows = []
    for cell, measures in found.cells.items():
        mine, static = measures[ours], measures[STATIC]
        better = [name for name in found.simple if _is_better(measures[name], mine)]
        faster = static.whole.quantile(0.95) / mine.whole.quantile(0.95)
        gain = mine.mean_fit / static.mean_fit - 1 if static.mean_fit else 0.0
        if cell.budget == roomy:
            holds = faster >= 1 - 2 * _SAME and gain >= -_SAME
        else:
            holds = faster >= FASTER and gain >= -LESS_FIT
        rows.append(
            [
                cell.budget,
                cell.load,
                ", ".join(better) or "none",
                "both never" if math.isnan(faster) else f"{faster:.1f}".replace("inf", "endless"),
                f"{gain:+.1%}".replace("%", " %"),
                "yes" if holds else "no",
                ", ".join(_matching(found, measures)) or "none",
            ]
        )
    titles = (
        "memory",
        "load",
        "simpler ways better in fit and p95",
        "p95 of static by task / ours",
        "our mean fit against its",
        "as promised",
        "policies with no less fit than static by task, and a lower p95",
    )
    return f"## What `{ours}` promises\n\n" + _markdown(titles, rows)


def _matching(found: Comparison, measures: dict[str, Measures]) -> Iterator[str]:
    static = measures[STATIC]
    for name in found.policies:
        if _is_better(measures[name], static):
            yield name


def _is_better(one: Measures, other: Measures) -> bool:
    """Return whether `one` has no less fit and a lower p95, or more fit and no higher p95."""
    fits = one.mean_fit / max(other.mean_fit, 1e-9)
    times = one.whole.quantile(0.95), other.whole.quantile(0.95)
    more, less = fits > 1 + _SAME, fits < 1 - _SAME
    sooner, later = times[0] < times[1] * (1 - 2 * _SAME), times[0] > times[1] * (1 + 2 * _SAME)
    return (more and not later) or (sooner and not less)


def _table(found: Comparison, measures: dict[str, Measures]) -> str:
    titles = (
        "choice",
        "median s",
        "p95 s",
        "first token, median s",
        "p95 s",
        "mean fit",
        "loads",
        "no answer",
        "longest wait s",
        "> 10 medians",
        *found.models,
    )
    rows = [
        [
            name,
            *(
                _seconds(spread.quantile(q))
                for spread in (each.whole, each.first)
                for q in (0.5, 0.95)
            ),
            f"{each.mean_fit:.3f}",
            f"{each.loads:,}",
            f"{each.refused:,}",
            f"{each.longest_wait:,.0f}",
            f"{each.starved:.1%}".replace("%", " %"),
            *(f"{share:.0%}".replace("%", " %") for share in each.shares(found.models).values()),
        ]
        for name, each in measures.items()
    ]
    return _markdown(titles, rows)


def _seconds(value: float) -> str:
    return "never" if value == float("inf") else f"{value:,.1f}"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))
