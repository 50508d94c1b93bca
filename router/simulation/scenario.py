"""What is simulated: a machine, its models, and those who ask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from config import read_as
from config.names import Finding, nearest
from config.policy import TaskName
from router.forecast import PREFILL

PRODUCTION = Path(__file__).with_name("production.yaml")
"""The scenario of the four production roles."""

Positive = Annotated[float, Meta(gt=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Hardware(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model runs on the machine.

    Attributes
    ----------
    size_gb
        Memory that it takes, in GiB.
    tokens_per_s
        How fast it writes one answer alone.
    prefill
        How many times as fast it reads.
    """

    size_gb: Positive
    tokens_per_s: Positive
    prefill: Positive = PREFILL


class Work(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of work in the traffic.

    Attributes
    ----------
    share
        How often it comes; the shares of all kinds need not add up to 1.
    prompt_tokens, output_tokens
        Means; single ones are log-normal with `spread` as their sigma.
    difficulty, difficulty_spread
        Mean and standard deviation; single ones are normal, cut to 0..1.
    """

    share: Annotated[float, Meta(ge=0)]
    prompt_tokens: Positive
    output_tokens: Positive
    spread: Annotated[float, Meta(ge=0, le=3)] = 0.6
    difficulty: Share = 0.5
    difficulty_spread: Share = 0.12


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole scenario file.

    Attributes
    ----------
    config
        The configuration that has the models and the pool, relative to this file.
    hardware
        By model; every model of the configuration.
    load_s, load_gb_per_s
        What a load takes whatever its size, and how fast weights are read, in GiB/s.
    batch_cost
        How much slower each answer gets for every other one that its engine computes.
    measured
        Whether the service knows its speeds from an earlier run when it starts.
    budgets_gb
        Memory budgets to try, in GiB, by a name for people; the last one holds all models.
    requests_per_min
        Rates of arrival to try, by a name for people.
    requests
        How many arrive in one simulation.
    arrivals
        `poisson`: independent; `bursty`: minutes of four times the rate, and longer ones of a
        quarter of it; `day`: more by day than by night.
    turns
        Mean turns of a conversation.
    think_s
        Mean time from one turn to the next, whether that was answered by then or not: so every
        policy gets the same requests.
    spanish
        Share of the requests in Spanish.
    patience_s
        Longest wait for a model, in place of the configuration's `pool.load_wait_s`.
    prices
        Prices of a second at which the first policy is tried, too.
    tasks
        What is asked.
    static
        Which model each task goes to where routing only looks at the task; others: the default.
    """

    config: Annotated[str, Meta(min_length=1)]
    hardware: dict[str, Hardware]
    load_s: Annotated[float, Meta(ge=0)] = 2.0
    load_gb_per_s: Positive = 1.0
    batch_cost: Annotated[float, Meta(ge=0)] = 0.15
    measured: bool = True
    budgets_gb: Annotated[dict[str, Positive], Meta(min_length=1)]
    requests_per_min: Annotated[dict[str, Positive], Meta(min_length=1)]
    requests: Annotated[int, Meta(ge=1, le=100_000_000)] = 4_000
    arrivals: Literal["poisson", "bursty", "day"] = "poisson"
    turns: Annotated[float, Meta(ge=1)] = 1.0
    think_s: Positive = 60.0
    spanish: Share = 0.5
    patience_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    prices: list[Annotated[float, Meta(ge=0, le=10)]] = []
    tasks: Annotated[dict[TaskName, Work], Meta(min_length=1)]
    static: dict[TaskName, str] = {}


def read_scenario(path: Path) -> Scenario:
    """Return the scenario in a file.

    Raises
    ------
    ConfigError
        With every problem that could be found.
    """
    return read_as(path, Scenario, _problems)


def _problems(data: Any) -> Iterator[Finding]:
    if not isinstance(data, dict):
        return
    hardware, static = data.get("hardware"), data.get("static")
    known = list(hardware) if isinstance(hardware, dict) else []
    for task, model in static.items() if isinstance(static, dict) else ():
        if isinstance(model, str) and model not in known:
            yield ("static", str(task)), f"`hardware` has no `{model}`{nearest(model, known)}"
    tasks = data.get("tasks")
    works = list(tasks.values()) if isinstance(tasks, dict) else []
    shares = [work.get("share") for work in works if isinstance(work, dict)]
    if shares and all(share == 0 for share in shares):
        yield ("tasks",), "no task has a share above 0, so nothing would ever be asked"
