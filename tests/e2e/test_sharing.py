"""Models that share one machine, with real engines: turns, priorities, deadlines, hung loads."""

import asyncio
import itertools
import os
import re
import signal
import time

import httpx
import pytest

from tests.service import RunningService, wait_until

pytestmark = pytest.mark.real

MODEL = """
  - name: {name}
    source: quickstart:smollm2-135m-instruct
    max_model_len: 512
    max_num_seqs: {places}
    kv_cache_gb: 0.1
    enforce_eager: true
"""
YIELD_AFTER_S = 3


def start(directory, places, pool):
    """Start a service on small models with so many places each."""
    models = "".join(MODEL.format(name=name, places=n) for name, n in places.items())
    config = directory / "sharing.yaml"
    config.write_text(
        f"models:{models}\nrouting: {{default: {next(iter(places))}}}\npool: {pool}\n"
    )
    return RunningService(config, directory / "log")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """Two models of which one fits: `ana` with four places, `bea` with one."""
    pool = f"{{memory_budget_gb: 1, yield_after_s: {YIELD_AFTER_S}}}"
    service = start(tmp_path_factory.mktemp("crowded"), {"ana": 4, "bea": 1}, pool)
    yield service
    service.stop()


@pytest.fixture
async def client():
    async with httpx.AsyncClient(timeout=120) as client:
        yield client


async def ask(client, service, model, tokens, **more):
    body = {
        "model": model,
        "max_tokens": tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Count"}],
        **more,
    }
    return await client.post(f"{service.url}/v1/chat/completions", json=body)


async def test_two_busy_models_that_do_not_fit_together_take_turns_in_batches(crowded, client):
    """For 40 s each always has a request; at most every other second goes into loads."""
    began = time.monotonic()
    end = began + 40
    served = []

    async def keep_asking(model):
        while time.monotonic() < end:
            response = await ask(client, crowded, model, 4)
            assert response.status_code == 200, response.text
            served.append(model)

    await asyncio.gather(*(keep_asking(model) for model in ("ana", "ana", "bea", "bea")))

    batches = [(model, len(list(group))) for model, group in itertools.groupby(served)]
    loads = [float(found) for found in re.findall(r"ready after ([\d.]+) s", crowded.log())]
    took = time.monotonic() - began
    turn = 2 * max(loads) + YIELD_AFTER_S  # and what runs may end
    assert len(batches) == len(loads)  # one load serves one batch
    assert len(batches) >= took / (turn + 2), (batches, loads)  # nobody waits for longer than that
    assert 2 * sum(loads[:-1]) < took, (
        loads
    )  # every load but the last has served as long as it took
    assert set(served) == {"ana", "bea"}
    assert len(served) > 3 * len(loads), batches


async def test_priorities_and_deadlines_hold_on_an_engine_with_one_place(crowded, client):
    order = []

    async def tell(name, tokens, **more):
        response = await ask(client, crowded, "bea", tokens, **more)
        order.append(name)
        return response

    await tell("loaded", 1)
    first = asyncio.create_task(tell("first", 150))
    await until(client, crowded, running=1)
    batch = [asyncio.create_task(tell("batch", 4, priority=10)) for _ in range(2)]
    await until(client, crowded, waiting=2)
    interactive = asyncio.create_task(tell("interactive", 4))
    hurried = await tell("hurried", 4, deadline_ms=200)
    answers = await asyncio.gather(first, interactive, *batch)

    assert order == ["loaded", "hurried", "first", "interactive", "batch", "batch"]
    assert hurried.status_code == 504
    assert hurried.json()["error"]["code"] == "deadline_exceeded"
    assert int(hurried.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[0].json()["usage"]["completion_tokens"] == 150


async def until(client, service, **counts):
    """Wait until `bea` shows these counts of requests."""
    async with asyncio.timeout(30):
        while True:
            entry = (await client.get(f"{service.url}/v1/models/bea")).json()
            if all(entry[name] == count for name, count in counts.items()):
                return
            await asyncio.sleep(0.02)


async def test_a_load_that_hangs_is_ended_with_its_process_and_the_next_one_goes_on(
    tmp_path, client
):
    seconds = 20
    service = start(tmp_path, {"sound": 1, "hung": 1}, f"{{load_timeout_s: {seconds}}}")
    try:
        hung = asyncio.create_task(ask(client, service, "hung", 4))
        (pid,) = await asyncio.to_thread(
            wait_until, lambda: service.engine_pids("hung"), 30, "its process has started"
        )
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        comments, chunks = await stream(client, service, "sound")
        response = await hung

        assert comments[0] == ": waiting for another load before sound"
        assert comments[-1].startswith(": loading sound")
        assert chunks[-1] == "data: [DONE]"
        assert seconds - 5 < time.monotonic() - began < seconds + 30
        assert response.status_code == 503
        assert response.json()["error"]["message"] == (
            f"`hung` could not be loaded: it took longer than load_timeout_s = {seconds}."
        )
        assert int(response.headers["retry-after"]) >= 1
        assert service.engine_pids("hung") == []
        states = (await client.get(f"{service.url}/health/ready")).json()["models"]
        assert states == {"sound": "ready", "hung": "failed"}
        assert (await ask(client, service, "hung", 4)).status_code == 200  # it is tried again
    finally:
        service.stop()


async def stream(client, service, model):
    """Return the comments and the chunks of a short streamed answer."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "Count"}],
    }
    async with client.stream("POST", f"{service.url}/v1/chat/completions", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line]
    return (
        [line for line in lines if line.startswith(":")],
        [line for line in lines if line.startswith("data: ")],
    )
