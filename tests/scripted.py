"""Engines that answer what a test says, and requests to them without HTTP."""

import asyncio
import contextlib
import json

from engines.echo import EchoEngine
from engines.protocol import Answer, EngineFailed, Refused


class Scripted:
    """A loader whose engines answer as scripted; those without a script repeat what they read.

    Attributes
    ----------
    scripts
        By model: a text to answer, an exception to raise, `dies`, or `waits`, until it is set.
    logprob
        Of each token of an answer, by model.
    started
        The models that were loaded, in order.
    seen
        The model and the body of every request that reached an engine.
    """

    def __init__(self, logprob=None, **scripts):
        self.scripts = scripts
        self.logprob = logprob or {}
        self.started = []
        self.seen = []

    async def locate(self, model):
        return None

    def check(self, model, endpoint, body):
        if b"wrong" in body:
            raise Refused("It is wrong.", param="messages")

    def footprint_bytes(self, model, directory):
        return 0

    def progress(self, model):
        return None

    async def start(self, model, directory):
        if self.scripts.get(model.name) == "does not load":
            raise EngineFailed("its files are gone")
        self.started.append(model.name)
        return _Engine(model.name, self)


class _Engine(EchoEngine):
    def __init__(self, name, loader):
        super().__init__(name)
        self._name = name
        self._loader = loader

    async def generate(self, endpoint, body, request_id):
        request = json.loads(body)
        self._loader.seen.append((self._name, request))
        script = self._loader.scripts.get(self._name)
        if script == "dies":
            self.break_down("killed")
        if isinstance(script, asyncio.Event):
            self._running += 1
            try:
                await script.wait()
            finally:
                self._running -= 1
        if isinstance(script, Exception):
            raise script
        reply = await super().generate(endpoint, body, request_id)
        if not isinstance(reply, Answer):
            return reply
        answer = json.loads(reply.body)
        chat = endpoint == "chat"
        for choice in answer["choices"]:
            if isinstance(script, str):
                if chat:
                    choice["message"]["content"] = script
                else:
                    choice["text"] = script
            value = self._loader.logprob.get(self._name, -0.1)
            if chat and request.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": "a", "logprob": value}] * 3}
            if not chat and request.get("logprobs") is not None:
                choice["logprobs"] = {"token_logprobs": [None, value, value], "tokens": ["a"] * 3}
        return Answer(json.dumps(answer).encode())


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


async def asked(service, content, model="auto", headers=None, endpoint="chat", **fields):
    """Return the record of a request, and the reply: the JSON, or a stream's bytes.

    Parameters
    ----------
    content
        What the user asks, or the whole conversation.
    """
    body = {"model": model, **fields}
    if endpoint == "chat":
        body["messages"] = [user(content)] if isinstance(content, str) else content
    else:
        body["prompt"] = content
    record = service.journal.open(endpoint)
    try:
        async with contextlib.AsyncExitStack() as resources:
            reply = await service.dispatcher.dispatch(
                record, json.dumps(body).encode(), headers or {}, "somebody", resources
            )
            if fields.get("stream"):
                return record, b"".join([event async for event in reply.events])
            service.journal.close(record, "ok")
            return record, json.loads(reply.body)
    finally:
        assert not any(each.held for each in service.pool.snapshots()), "a place was kept"
