"""What `engines.protocol.Engine` promises, held against every engine."""

import asyncio
import contextlib
import json
import os
import signal
import tempfile

import psutil
import pytest

from config import ModelSettings
from engines.echo import EchoEngine
from engines.protocol import Answer, EngineFailed, Refused, Stream

REAL = pytest.param("vllm", marks=pytest.mark.real)


def quickstart(name, *, max_model_len=256, kv_cache_gb=0.05):
    return ModelSettings(
        name=name,
        source="quickstart:smollm2-135m-instruct",
        max_model_len=max_model_len,
        kv_cache_gb=kv_cache_gb,
        enforce_eager=True,
    )


@pytest.fixture(scope="session")
async def vllm_engine(quickstart_loader):
    model = quickstart("tested", max_model_len=512, kv_cache_gb=0.1)
    engine = await quickstart_loader.start(model, await quickstart_loader.locate(model))
    yield engine
    await engine.close()


@pytest.fixture(params=["echo", REAL])
def engine(request):
    if request.param == "echo":
        return EchoEngine("tested", max_model_len=512, word_s=0.001)
    return request.getfixturevalue("vllm_engine")


def chat(text="Say hello to the world", **more):
    return json.dumps(
        {"model": "?", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
    ).encode()


def completion(text="Once upon a time there was", **more):
    return json.dumps({"model": "?", "prompt": text, "max_tokens": 4, **more}).encode()


def chunks(events):
    """Return the JSON objects of a stream's events, after checking their frame."""
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    return [json.loads(event[len(b"data: ") :]) for event in events[:-1]]


async def idle(engine):
    async with asyncio.timeout(5):
        while engine.running:
            await asyncio.sleep(0.01)


async def test_a_whole_answer_is_openai_s_object(engine):
    reply = await engine.generate("chat", chat(), "r1")

    assert isinstance(reply, Answer)
    body = json.loads(reply.body)
    assert body["id"] == "chatcmpl-r1"
    assert body["object"] == "chat.completion"
    assert body["model"] == "tested"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["message"]["content"]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 4


async def test_a_stream_has_a_role_first_one_finish_and_done_last(engine):
    reply = await engine.generate("chat", chat(stream=True), "r2")

    assert isinstance(reply, Stream)
    parts = chunks([event async for event in reply.events])
    choices = [part["choices"][0] for part in parts]
    assert {part["id"] for part in parts} == {"chatcmpl-r2"}
    assert {part["model"] for part in parts} == {"tested"}
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices].count("length") == 1
    assert "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_usage_comes_last_and_only_when_asked_for(engine):
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    with_usage = await engine.generate("chat", chat(**asked), "r3")
    without = await engine.generate("chat", chat(stream=True), "r4")

    last = chunks([event async for event in with_usage.events])[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert not any(part.get("usage") for part in chunks([event async for event in without.events]))


async def test_completions_are_answered_whole_and_streamed(engine):
    whole = await engine.generate("completions", completion(), "r5")
    stream = await engine.generate("completions", completion(stream=True), "r6")

    body = json.loads(whole.body)
    assert body["object"] == "text_completion"
    assert body["id"] == "cmpl-r5"
    assert body["choices"][0]["text"]
    parts = chunks([event async for event in stream.events])
    assert "".join(part["choices"][0]["text"] for part in parts)


async def test_a_prompt_past_the_context_is_refused_by_its_code(engine):
    with pytest.raises(Refused) as caught:
        await engine.generate("chat", chat("word " * 600), "r7")

    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 512 tokens" in caught.value.message


@pytest.mark.parametrize("body", [b"{}", b'{"messages": []}', b"[", b"null"])
async def test_a_body_it_cannot_run_is_refused(engine, body):
    with pytest.raises(Refused):
        await engine.generate("chat", body, "r8")

    assert engine.failure is None


async def test_closing_a_stream_aborts_the_work(engine):
    body = chat("word " * 300, stream=True, max_tokens=200, ignore_eos=True)
    reply = await engine.generate("chat", body, "r9")
    for _ in range(3):
        await anext(reply.events)
    assert engine.running == 1

    await reply.events.aclose()

    await idle(engine)


async def test_cancelling_a_call_aborts_the_work(engine):
    body = chat("word " * 300, max_tokens=200, ignore_eos=True)
    call = asyncio.create_task(engine.generate("chat", body, "r10"))
    async with asyncio.timeout(5):
        while not engine.running:
            await asyncio.sleep(0.001)

    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call

    await idle(engine)


async def test_two_conversations_at_once_do_not_mix(engine):
    async def tell(word):
        reply = await engine.generate("chat", chat(word, stream=True), word)
        return chunks([event async for event in reply.events])

    one, two = await asyncio.gather(tell("one"), tell("two"))

    assert {part["id"] for part in one} == {"chatcmpl-one"}
    assert {part["id"] for part in two} == {"chatcmpl-two"}


async def test_it_knows_its_context(engine):
    assert engine.max_model_len == 512


@pytest.mark.parametrize("kind", ["echo", REAL])
async def test_a_closed_engine_says_so_and_closing_twice_is_fine(kind, request, monkeypatch):
    place = tempfile.mkdtemp()  # the name of a socket may not be long
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", place)
    if kind == "echo":
        engine = EchoEngine("closing")
    else:
        loader = request.getfixturevalue("quickstart_loader")
        model = quickstart("closing")
        engine = await loader.start(model, await loader.locate(model))

    os.rmdir(place)  # nothing is in it
    await engine.close()
    await engine.close()

    assert engine.failure == "the engine was closed"
    assert engine.running == 0
    with pytest.raises(EngineFailed):
        await engine.generate("chat", chat(), "r11")


@pytest.mark.real
async def test_an_engine_that_hangs_is_closed_all_the_same(quickstart_loader):
    model = quickstart("hanging")
    engine = await quickstart_loader.start(model, await quickstart_loader.locate(model))
    (pid,) = engine.pids
    os.kill(pid, signal.SIGSTOP)

    async with asyncio.timeout(5):
        await engine.close()

    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.real
async def test_an_engine_outlives_its_template_and_the_next_one_gets_another(quickstart_loader):
    directory = await quickstart_loader.locate(quickstart("early"))
    early = await quickstart_loader.start(quickstart("early"), directory)
    os.kill(psutil.Process(early.pids[0]).ppid(), signal.SIGKILL)
    await asyncio.sleep(1.5)  # vLLM looks at its processes every second

    assert early.failure is None
    assert isinstance(await early.generate("chat", chat(), "r12"), Answer)
    late = await quickstart_loader.start(quickstart("late"), directory)
    assert isinstance(await late.generate("chat", chat(), "r13"), Answer)

    (pid,) = early.pids
    async with asyncio.timeout(3):
        await early.close()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    os.kill(late.pids[0], signal.SIGKILL)
    async with asyncio.timeout(5):
        while late.failure is None:
            await asyncio.sleep(0.05)
    await late.close()
