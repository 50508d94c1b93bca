"""Every way a client can leave gives the slot back and stops the engine, over real connections.

Python closes a generator that nobody refers to any more, which would give everything back too, some
time. Here it closes none of ours: what a request holds must be given back by those who took it.
"""

import asyncio
import contextlib
import gc
import json
import socket
import sys

import pytest
import uvicorn

from engines.echo import EchoEngine
from router.app import create_app


class SlowEcho:
    """Loads when told to; its engines take 20 ms for each word."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.engines = []

    async def locate(self, model):
        return None

    def check(self, model, endpoint, body):
        pass

    def footprint_bytes(self, model, directory):
        return 0

    def progress(self, model):
        return None

    async def start(self, model, directory):
        await self.gate.wait()
        engine = EchoEngine(model.name, max_model_len=100_000, word_s=0.02)
        self.engines.append(engine)
        return engine


def close_none_by_itself(left_open):
    """Note unclosed generators in `left_open` instead, until the event loop pauses."""
    sys.set_asyncgen_hooks(finalizer=left_open.append)


def none_of_ours_is_in(left_open):
    gc.collect()
    modules = [generator.ag_frame.f_globals["__name__"] for generator in left_open]
    assert [name for name in modules if name.startswith(("router.", "engines."))] == []


@pytest.fixture
async def served(make_service):
    """A service on a real port: (service, loader, port)."""
    loader = SlowEcho()
    service = make_service(loader)
    inner, left_open = create_app(service), []

    async def app(scope, receive, send):
        close_none_by_itself(left_open)
        await inner(scope, receive, send)

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    yield service, loader, listener.getsockname()[1]
    server.should_exit = True
    await serving
    listener.close()
    none_of_ours_is_in(left_open)


def request(words=2000, stream=True, model="gemma3_multimodal", length=None):
    content = "palabra " * words
    body = json.dumps(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}
    ).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: axion\r\ncontent-length: %d\r\n\r\n"
        % (length or len(body))
    ) + body


async def eventually(condition):
    """Wait until `condition()` holds, for at most two seconds."""
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.005)


def held(service):
    return sum(status.held for status in service.pool.snapshots())


async def all_given_back(service, loader):
    await eventually(lambda: held(service) == 0)
    await eventually(lambda: all(engine.running == 0 for engine in loader.engines))


async def test_in_the_middle_of_a_stream(served):
    service, loader, port = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(stream=True))
    await reader.readuntil(b"palabra")
    assert held(service) == 1

    writer.close()

    await all_given_back(service, loader)


async def test_while_waiting_for_a_whole_answer(served):
    service, loader, port = served
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(stream=False))
    await eventually(lambda: loader.engines and loader.engines[0].running == 1)

    writer.close()

    await all_given_back(service, loader)


async def test_while_the_model_is_loading(served):
    service, loader, port = served
    loader.gate.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request())
    await eventually(lambda: held(service) == 1)

    writer.close()
    await eventually(lambda: held(service) == 0)
    loader.gate.set()

    await eventually(lambda: service.pool.snapshots()[3].state == "ready")
    await all_given_back(service, loader)


async def test_with_a_reset_instead_of_a_goodbye(served):
    service, loader, port = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request())
    await reader.readuntil(b"palabra")

    import struct

    linger = struct.pack("ii", 1, 0)  # close() then sends RST
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

    await all_given_back(service, loader)


async def test_without_reading_what_is_sent(served):
    service, loader, port = served
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, request(words=4000))
    await eventually(lambda: loader.engines and loader.engines[0].running == 1)
    loader.engines[0]._word_s = 0  # flood the connection until `send()` blocks
    await asyncio.sleep(0.3)

    client.close()

    await all_given_back(service, loader)


async def test_half_way_through_the_body(served, caplog):
    service, loader, port = served
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(words=10, length=10_000))
    await asyncio.sleep(0.05)

    writer.close()

    await all_given_back(service, loader)
    assert loader.engines == []
    await asyncio.sleep(0.05)
    assert "internal error" not in caplog.text


async def test_many_at_once_at_random_moments(served):
    service, loader, port = served

    async def leave_after(delay):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(words=50, stream=delay % 2 == 0))
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            await asyncio.wait_for(reader.read(100), delay / 100)
        writer.close()

    await asyncio.gather(*(leave_after(delay) for delay in range(40)))

    await all_given_back(service, loader)


async def test_a_client_that_stays_gets_everything_meanwhile(served):
    service, loader, port = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(words=20))
    for _ in range(5):
        _, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(request())
        other.close()

    text = await asyncio.wait_for(reader.readuntil(b"data: [DONE]\n\n"), 5)

    assert text.count(b"palabra") == 20
    writer.close()
    await all_given_back(service, loader)


@pytest.mark.parametrize("moment", ["answering", "loading", "answering after a load"])
async def test_while_the_server_is_inside_send(make_service, moment):
    """The framework then drops the generator where it stands; see `router.app._give_back`."""
    loader = SlowEcho()
    service = make_service(loader)
    if moment != "answering":
        loader.gate.clear()
    left_open = []
    close_none_by_itself(left_open)
    left = asyncio.Event()
    messages = [{"type": "http.request", "body": request(words=50).partition(b"\r\n\r\n")[2]}]

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        event = message.get("body", b"")
        if event.startswith(b": loading") and moment != "loading":
            loader.gate.set()
        elif event:
            left.set()
            await asyncio.sleep(10)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [],
    }
    await create_app(service)(scope, receive, send)

    assert left.is_set()
    assert held(service) == 0
    assert all(engine.running == 0 for engine in loader.engines)
    loader.gate.set()
    await service.pool.close()
    none_of_ours_is_in(left_open)
