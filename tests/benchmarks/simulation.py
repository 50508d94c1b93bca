"""What a simulated request costs: `python -m tests.benchmarks.simulation`.

Machine after machine, each with its own thousand requests at the middle load of the shipped
scenario and room for three of its four models; the measures of all go into one. Seconds are those
of the processor, so that other work on it does not count.
"""

import argparse
import resource
import sys
import time

from msgspec import structs

from config import read
from engines.vocabulary import vocabulary
from policies import shipped_policy
from router.simulation.contestants import Contestant
from router.simulation.machine import Machine
from router.simulation.measures import Measures
from router.simulation.scenario import PRODUCTION, read_scenario
from router.simulation.trace import generated

REQUESTS = 1_000


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, nargs="*", default=[1, 10, 100, 1000])
    machines = parser.parse_args().machines
    scenario = structs.replace(read_scenario(PRODUCTION), requests=REQUESTS)
    settings = read((PRODUCTION.parent / scenario.config).resolve(), vocabulary())
    policy = shipped_policy("balanced", [model.name for model in settings.models])
    contestant = Contestant("balanced", policy)
    budget_gb, rate = list(scenario.budgets_gb.values())[1], scenario.requests_per_min["medium"]
    sys.stdout.write("| machines | requests | CPU s | µs a request | memory, MiB | p95 s |\n")
    sys.stdout.write("| ---: | ---: | ---: | ---: | ---: | ---: |\n")
    for count in machines:
        found, began = Measures(), time.process_time()
        for seed in range(count):
            machine = Machine(
                settings.models, settings.pool, scenario, budget_gb, contestant, policy
            )
            for outcome in machine.run(generated(scenario, rate, seed)):
                found.add(outcome)
        seconds = time.process_time() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(
            f"| {count:,} | {found.requests:,} | {seconds:.1f} | "
            f"{1e6 * seconds / found.requests:.0f} | {memory:.0f} | "
            f"{found.whole.quantile(0.95):.1f} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
