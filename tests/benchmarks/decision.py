"""Measure how long a decision takes.

    python -m tests.benchmarks.decision

The table on standard output has the time of one `decide` by models and rules. It is given in
microseconds of this machine, and as a multiple of a fixed piece of work that is measured in turn
with it: that number can be compared between machines, and between busy and idle ones.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from config import ConditionSettings, PolicySettings, RuleSettings
from policies import Candidate, Facts, Policy, Task, decide, make_policy

ROUNDS = 2_000
GOAL_US = {4: 100, 50: 1000}
"""Goals for the median, in microseconds."""

TEXT = "¿Puedes explicarme cómo se ordena una lista de diccionarios por una clave? " * 10

TASK = Task(
    label="code",
    confidence=0.9,
    language="es",
    prompt_tokens=300,
    output_tokens=0,
    turns=3,
)

_REFERENCE = {str(number): [number, str(number)] for number in range(100)}


def main() -> None:
    """Print the table."""
    sys.stdout.write(
        "| models | rules | p50 | p99 | p50 / reference | goal for p50 |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    for models, goal in GOAL_US.items():
        for rules in (0, 5, 50):
            p50, p99, reference = _measured(_decision(models, rules))
            sys.stdout.write(
                f"| {models} | {rules} | {p50:.0f} µs | {p99:.0f} µs | {p50 / reference:.2f} "
                f"| {goal} µs, {'met' if p50 <= goal else 'missed'} |\n"
            )


def _decision(models: int, rules: int) -> Callable[[], object]:
    """Return a decision between so many models, of which no rule decides."""
    candidates = [
        Candidate(
            model=f"model{number}",
            max_model_len=4096 + number,
            vision=number % 2 == 0,
            tools=True,
            state="ready" if number % 3 else "cold",
            load_s=0.0 if number % 3 else 5.0,
            queue_s=number / 10,
        )
        for number in range(models)
    ]
    policy = _policy([each.model for each in candidates], rules)
    # A new `Facts` for each decision, as for each request: what it folds is not kept.
    return lambda: decide(TASK, candidates, policy, Facts(text=TEXT, user="ana", minute=600))


def _policy(models: list[str], rules: int) -> Policy:
    conditions = [
        ConditionSettings(task=["math", "writing"], difficulty_min=0.7),
        ConditionSettings(keywords=["factura", "hoja de cálculo", "invoice"]),
        ConditionSettings(regex=r"JIRA-\d+"),
        ConditionSettings(user=["luis", "eva"], headers={"x-team": "*"}),
        ConditionSettings(hours="22:00-06:00", prompt_tokens_min=100),
    ]
    settings = PolicySettings(
        default=models[0],
        rules=[
            RuleSettings(name=f"r{n}", when=conditions[n % len(conditions)], prefer=models[:2])
            for n in range(rules)
        ],
    )
    return make_policy("benchmark", settings, Path("benchmark.yaml"), models)


def _measured(work: Callable[[], object]) -> tuple[float, float, float]:
    """Return the median and the 99th percentile of `work`, and the reference, in microseconds."""
    times, references = [], []
    for _ in range(ROUNDS):
        times.append(_us(work))
        references.append(_us(lambda: json.dumps(_REFERENCE)))
    times.sort()
    references.sort()
    return times[ROUNDS // 2], times[ROUNDS * 99 // 100], references[ROUNDS // 2]


def _us(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
