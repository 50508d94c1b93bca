"""How the service stops, as a process of its own on echo engines that take 50 ms for each word."""

import asyncio
import json
import os
import re
import signal
import socket
import time

import httpx
import pytest

from tests.service import RunningService, wait_until

pytestmark = pytest.mark.real  # it takes 20 s

URL = "/v1/chat/completions"


@pytest.fixture
def start(tmp_path):
    """A function that starts a service with this grace, on one model with one place."""
    services = []

    def start(grace_s):
        config = tmp_path / "echo.yaml"
        config.write_text(
            "models: [{name: only, source: echo, engine: echo, max_num_seqs: 1,"
            " max_model_len: 1000000}]\n"
            f"routing: {{default: only}}\nserver: {{shutdown_grace_s: {grace_s}}}\n"
        )
        services.append(RunningService(config, tmp_path / "log", module="tests.slow_service"))
        return services[-1]

    yield start
    for service in services:
        service.stop(signal.SIGKILL)


@pytest.fixture
async def http(start):
    async with httpx.AsyncClient(timeout=20) as client:
        yield client


def body(words, stream=False):
    return {
        "model": "only",
        "stream": stream,
        "messages": [{"role": "user", "content": "palabra " * words}],
    }


async def streamed(http, service, words):
    """Return the stream's data events."""
    async with http.stream("POST", service.url + URL, json=body(words, stream=True)) as response:
        return [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]


def whole(http, service, words):
    return asyncio.create_task(http.post(service.url + URL, json=body(words)))


async def holds(http, service, running, waiting=0):
    """Wait until the service has as many requests."""
    async with asyncio.timeout(10):
        while True:
            entry = (await http.get(f"{service.url}/v1/models/only")).json()
            if (entry["running"], entry["waiting"]) == (running, waiting):
                return
            await asyncio.sleep(0.02)


def ended(service, outcomes):
    """Assert that it ended in order, and that requests had these outcomes."""
    assert service.process.wait(10) == 0
    log = service.log()
    assert "Traceback" not in log
    assert "Cancel" not in log
    assert re.findall(r"axion\.request: .*? -> only: (.*?) in ", log) == outcomes
    assert log.splitlines()[-1].endswith("axion: stopped")


def is_shutting_down(response):
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    return response.json()["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
async def test_what_runs_and_what_waits_may_finish_within_the_grace(start, http, kind):
    service = start(grace_s=20)
    running = asyncio.create_task(streamed(http, service, 20))
    await holds(http, service, running=1)
    waiting = whole(http, service, 3)
    await holds(http, service, running=1, waiting=1)

    service.process.send_signal(kind)

    assert (await running)[-1] == "[DONE]"
    assert (await waiting).json()["usage"]["completion_tokens"] == 3
    ended(service, ["ok", "ok"])


async def test_what_still_runs_when_the_grace_is_over_ends_as_the_api_promises(start, http):
    service = start(grace_s=0.5)
    stream = asyncio.create_task(streamed(http, service, 1000))
    await holds(http, service, running=1)
    waiting = whole(http, service, 3)
    waiting_stream = asyncio.create_task(streamed(http, service, 3))
    await holds(http, service, running=1, waiting=2)
    await asyncio.sleep(0.4)  # a stream that waits has begun by then, with comments

    service.process.send_signal(signal.SIGTERM)
    began = time.monotonic()

    for events in (await stream, await waiting_stream):
        assert json.loads(events[-2])["error"]["code"] == "shutting_down"
        assert events[-1] == "[DONE]"
    assert is_shutting_down(await waiting)
    assert 0.4 < time.monotonic() - began < 3
    ended(service, ["shutting_down"] * 3)


async def test_a_whole_answer_that_runs_when_the_grace_is_over_is_a_503(start, http):
    service = start(grace_s=0.2)
    running = whole(http, service, 1000)
    await holds(http, service, running=1)

    service.process.send_signal(signal.SIGTERM)

    assert is_shutting_down(await running)
    ended(service, ["shutting_down"])


async def test_no_grace_means_at_once(start, http):
    service = start(grace_s=0)
    running = whole(http, service, 1000)
    await holds(http, service, running=1)
    began = time.monotonic()

    service.process.send_signal(signal.SIGTERM)

    assert is_shutting_down(await running)
    assert time.monotonic() - began < 0.9
    ended(service, ["shutting_down"])


async def test_a_second_ctrl_c_ends_at_once(start, http):
    service = start(grace_s=100)
    stream = asyncio.create_task(streamed(http, service, 1000))
    await holds(http, service, running=1)

    os.killpg(service.process.pid, signal.SIGINT)
    await asyncio.sleep(0.5)
    assert not stream.done()
    os.killpg(service.process.pid, signal.SIGINT)

    assert json.loads((await stream)[-2])["error"]["code"] == "shutting_down"
    ended(service, ["shutting_down"])


async def test_what_comes_on_a_connection_that_is_kept_alive_is_refused(start, http):
    service = start(grace_s=20)
    running = whole(http, service, 40)
    await holds(http, service, running=1)
    async with httpx.AsyncClient(timeout=20) as kept:
        await kept.get(f"{service.url}/health")
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)

        refused = await kept.post(service.url + URL, json=body(3))

    assert is_shutting_down(refused)
    assert refused.headers["connection"] == "close"
    with pytest.raises(httpx.ConnectError):  # whoever comes anew finds another server
        httpx.get(f"{service.url}/health")
    assert (await running).status_code == 200
    assert service.process.wait(10) == 0


async def test_readiness_says_that_the_service_stops(start, http):
    service = start(grace_s=20)
    running = whole(http, service, 20)
    await holds(http, service, running=1)
    async with httpx.AsyncClient(timeout=20) as kept:
        await kept.get(f"{service.url}/health")
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)

        response = await kept.get(f"{service.url}/health/ready")

    assert response.status_code == 503
    assert response.json()["reasons"] == ["the service is stopping"]
    await running


async def test_a_client_that_does_not_read_does_not_hold_the_service_up(start, http):
    service = start(grace_s=0.3)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        # Its answer is one event of 8 MB, more than the system's buffers hold.
        content = json.dumps(
            {**body(1), "messages": [{"role": "user", "content": "a" * 8_000_000}]}
        )
        client.sendall(
            f"POST {URL} HTTP/1.1\r\nhost: axion\r\ncontent-length: {len(content)}\r\n\r\n".encode()
            + content.replace('"stream": false', '"stream": true ').encode()
        )
        await holds(http, service, running=1)
        await asyncio.sleep(0.3)

        service.process.send_signal(signal.SIGTERM)

        ended(service, ["shutting_down"])


async def test_a_body_that_does_not_arrive_does_not_hold_the_service_up(start):
    service = start(grace_s=0.3)
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {URL} HTTP/1.1\r\nhost: axion\r\ncontent-length: 100\r\n\r\n{{".encode())
    await asyncio.sleep(0.2)

    service.process.send_signal(signal.SIGTERM)

    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"code":"shutting_down"' in answer
    wait_until(lambda: service.process.poll() is not None, 5, "the service ended")
    writer.close()
