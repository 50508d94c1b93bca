"""Measure loads, memory and cores with the real engine: `python -m tests.benchmarks.engines WHAT`.

WHAT is one of

- `cold`: from a request for a cold model to its first token, against the time in which stock vLLM
  starts and gives its first token;
- `unload`: what a load takes and what an unload gives back, over cycles;
- `busy`: tokens per second of two engines that are busy at once, against one alone;
- `idle`: processor time of engines that have nothing to do.

Everything runs in one call on one machine, so that ratios mean something; run it when nothing else
runs. Variables such as `LD_PRELOAD` or `OMP_WAIT_POLICY` in the environment reach the engines.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil

from engines import quickstart
from tests.service import RunningService

CONFIG = """
models:
  - &model
    name: one
    source: quickstart:smollm2-135m-instruct
    max_model_len: 2048
    max_num_seqs: 32
    kv_cache_gb: 0.5
    enforce_eager: true
  - {<<: *model, name: two}
routing: {default: one}
"""
GIB = 2**30


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def body(model: str, tokens: int, words: int = 20) -> dict[str, Any]:
    """Return a streamed request of a fixed length."""
    return {
        "model": model,
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a story about the sea. " * (words // 7)}],
    }


async def first_token_s(client: httpx.AsyncClient, url: str, model: str) -> float:
    """Return the seconds from sending a request to its first text."""
    began = time.perf_counter()
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body(model, 2)) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get(
                "content"
            ):
                return time.perf_counter() - began
    raise RuntimeError(f"no token from {model}")


async def tokens_per_s(
    client: httpx.AsyncClient, url: str, models: Iterable[str], streams: int, tokens: int
) -> float:
    """Return the tokens per second of `streams` streams on each of `models` at once."""

    async def one(model: str) -> None:
        async with client.stream(
            "POST", f"{url}/v1/chat/completions", json=body(model, tokens)
        ) as response:
            async for _ in response.aiter_raw():
                pass

    work = [one(model) for model in models for _ in range(streams)]
    began = time.perf_counter()
    await asyncio.gather(*work)
    return len(work) * tokens / (time.perf_counter() - began)


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def quoted(values: list[float], unit: str = "s") -> str:
    """Return median, minimum and maximum."""
    middle = statistics.median(values)
    return f"median {middle:.2f} {unit} (min {min(values):.2f}, max {max(values):.2f})"


async def cold(service: RunningService, client: httpx.AsyncClient, runs: int) -> None:
    """Compare a cold model's first token with a stock server's."""
    ours = []
    for _ in range(runs):
        ours.append(await first_token_s(client, service.url, "one"))
        await client.post(f"{service.url}/v1/models/one/unload")
        say(f"  Axion, request to first token: {ours[-1]:.2f} s")
    stock = {}
    for name, extra in (("defaults", []), ("eager", ["--enforce-eager"])):
        stock[name] = [await stock_first_token_s(client, extra) for _ in range(max(1, runs // 3))]
        say(f"  stock vLLM, {name}, start to first token: {quoted(stock[name])}")
    say(f"Axion: {quoted(ours)}")
    for name, values in stock.items():
        ratio = statistics.median(values) / statistics.median(ours)
        say(f"stock vLLM, {name}: {quoted(values)}, {ratio:.1f} times Axion's")


async def stock_first_token_s(client: httpx.AsyncClient, extra: list[str]) -> float:
    """Start vLLM's own server and return the seconds until its first token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = quickstart.cached()
    command = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(directory), "--served-model-name", "one", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-model-len", "2048", "--max-num-seqs", "32"]
    command += ["--kv-cache-memory-bytes", str(GIB // 2), *extra]
    url = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while server.poll() is None:
                try:
                    await first_token_s(client, url, "one")
                    return time.perf_counter() - began
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
            log.seek(0)
            raise RuntimeError(log.read()[-2000:].decode())
        finally:
            processes = tree(server.pid) if server.poll() is None else []
            for process in processes:
                process.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs(processes, timeout=15)
            for process in alive:
                process.kill()


async def unload(service: RunningService, client: httpx.AsyncClient, runs: int) -> None:
    """Load and unload in cycles and watch the memory."""
    pid = service.process.pid
    for cycle in range(runs):
        before = service.memory_bytes()
        server_before = psutil.Process(pid).memory_info().rss
        await tokens_per_s(client, service.url, ["one"], 8, 32)
        loaded = service.memory_bytes()
        await client.post(f"{service.url}/v1/models/one/unload")
        await asyncio.sleep(3)
        after = service.memory_bytes()
        grown = psutil.Process(pid).memory_info().rss - server_before
        share = (loaded - after) / (loaded - before)
        say(
            f"  cycle {cycle + 1}: {before / GIB:.3f} GiB, loaded {loaded / GIB:.3f}, unloaded "
            f"{after / GIB:.3f}: {share:.1%} came back; the server grew by {grown / 2**20:+.1f} MiB"
        )


async def busy(service: RunningService, client: httpx.AsyncClient, runs: int) -> None:
    """Compare two engines that are busy at once with one alone, round by round."""
    for model in ("one", "two"):
        await tokens_per_s(client, service.url, [model], 8, 16)
    ratios = []
    for _ in range(runs):
        single = await tokens_per_s(client, service.url, ["one"], 1, 64)
        alone = await tokens_per_s(client, service.url, ["one"], 8, 64)
        both = await tokens_per_s(client, service.url, ["one", "two"], 8, 64)
        ratios.append(both / alone)
        say(
            f"  tokens/s: 1 stream {single:.0f}; 8 streams {alone:.0f}; 8 streams on each of two "
            f"{both:.0f} ({ratios[-1]:.2f} times one alone)"
        )
    say(f"two busy engines: {quoted(ratios, 'times one alone')}")


async def idle(service: RunningService, client: httpx.AsyncClient, runs: int) -> None:
    """Add up the processor time of engines that have nothing to do."""
    for model in ("one", "two"):
        await tokens_per_s(client, service.url, [model], 8, 16)
    await asyncio.sleep(3)
    began, before = time.perf_counter(), cpu_s(service.process.pid)
    await asyncio.sleep(10 * runs)
    elapsed, after = time.perf_counter() - began, cpu_s(service.process.pid)
    for name in after:
        say(f"  {name}: {(after[name] - before.get(name, 0)) / elapsed:.2%} of a core")


def cpu_s(pid: int) -> dict[str, float]:
    """Return the processor seconds of each process so far, by name."""
    result = {}
    for process in tree(pid):
        times = process.cpu_times()
        result[f"{process.pid} {' '.join(process.cmdline())[:40]}"] = times.user + times.system
    return result


MEASUREMENTS: dict[str, Callable[[RunningService, httpx.AsyncClient, int], Awaitable[None]]] = {
    "cold": cold,
    "unload": unload,
    "busy": busy,
    "idle": idle,
}


def main() -> None:
    """Run the measurements that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=MEASUREMENTS)
    parser.add_argument("--runs", type=int, default=5, help="rounds or cycles (default 5)")
    parser.add_argument("--set", action="append", default=[], help="KEY: VALUE for both models")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "bench.yaml"
        more = "".join(f"    {line}\n" for line in options.set)
        config.write_text(CONFIG.replace("    enforce_eager: true\n", more or _EAGER))
        service = RunningService(config, Path(directory) / "log")

        async def measure() -> None:
            async with httpx.AsyncClient(timeout=600) as client:
                for what in options.what:
                    say(f"{what} ({os.cpu_count()} cores)")
                    await MEASUREMENTS[what](service, client, options.runs)

        try:
            asyncio.run(measure())
        finally:
            service.stop()


_EAGER = "    enforce_eager: true\n"


if __name__ == "__main__":
    main()
