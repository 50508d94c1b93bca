"""Reload the policies of a running service many times under traffic, and count what is lost.

`python -m tests.benchmarks.reloads [RELOADS]`: the service is a process of its own on echo engines.
Every reload finds changed files, each tenth a broken one. Clients ask all the time; a request is
lost when it gets anything but 200 and a decision by one of the two sound policies.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.policy_files import CODE, CONFIGURATION, chat, replace, write
from tests.service import RunningService

CLIENTS = 4
QUIET_S = 10.0
TEXTS = (CONFIGURATION, CONFIGURATION.replace("prefer: [coder]", "prefer: [small]"))
BROKEN = CONFIGURATION.replace("when:", "whem:")


class Traffic:
    """Clients that ask all the time."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.milliseconds: list[float] = []
        self.lost: list[str] = []
        self.models: set[str] = set()

    async def run(self) -> None:
        body = chat(CODE, max_tokens=4)
        while True:
            began = time.perf_counter()
            try:
                response = await self._client.post("/v1/chat/completions", json=body)
                reason = response.headers.get("x-axion-reason", "")
                if response.status_code != 200 or not reason.startswith("rule code: code ("):
                    self.lost.append(f"{response.status_code} {reason}")
                self.models.add(response.headers.get("x-axion-model", ""))
            except httpx.HTTPError as error:
                self.lost.append(repr(error))
            self.milliseconds.append(1000 * (time.perf_counter() - began))

    def taken(self) -> list[float]:
        """Return what the requests since the last call took."""
        found, self.milliseconds = self.milliseconds, []
        return found


async def measure(url: str, directory: Path, reloads: int) -> None:
    """Print what `reloads` reloads do to the traffic."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        traffic = Traffic(client)
        tasks = [asyncio.create_task(traffic.run()) for _ in range(CLIENTS)]
        await asyncio.sleep(2)
        traffic.taken()
        await asyncio.sleep(QUIET_S)
        say("requests without reloads", traffic.taken())
        took, refused, changed = [], 0, 0
        for index in range(reloads):
            broken = index % 10 == 9
            replace(directory / "axion.yaml", BROKEN if broken else TEXTS[index % 2])
            began = time.perf_counter()
            response = await client.post("/v1/policy/reload")
            took.append(1000 * (time.perf_counter() - began))
            refused += response.status_code == 400
            changed += response.status_code == 200
            if (index + 1) % 1000 == 0:
                print(f"  {index + 1} reloads", file=sys.stderr)  # noqa: T201
        under = traffic.taken()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    say("requests during reloads", under)
    say("reloads", took)
    print(f"reloads taken {changed}, refused {refused}")  # noqa: T201
    print(f"requests lost {len(traffic.lost)}, models {sorted(traffic.models)}")  # noqa: T201
    for lost in traffic.lost[:10]:
        print(f"  {lost}")  # noqa: T201


def say(what: str, milliseconds: list[float]) -> None:
    """Print how many there were and how long they took."""
    cuts = statistics.quantiles(milliseconds, n=100)
    print(  # noqa: T201
        f"{what}: {len(milliseconds):,}, median {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, "
        f"longest {max(milliseconds):.1f} ms",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    reloads = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        service = RunningService(write(directory), directory / "log")
        try:
            asyncio.run(measure(service.url, directory, reloads))
        finally:
            service.stop()


if __name__ == "__main__":
    main()
