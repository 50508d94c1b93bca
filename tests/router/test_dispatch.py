"""What happens to a request between its decision and its answer."""

import contextlib
import json

import pytest

from engines.echo import EchoEngine
from engines.protocol import Refused
from tests.scripted import Scripted


class Counting(Scripted):
    """Its engines count more tokens than was estimated: each has room for `words`."""

    def __init__(self, **words):
        super().__init__()
        self.words = words

    async def start(self, model, directory):
        self.started.append(model.name)
        return EchoEngine(model.name, max_model_len=self.words.get(model.name, 100))


HOLA = "hola " * 10


async def asked(service, content, model="auto", **fields):
    """Return the record of a request, and the reply's bytes."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    record = service.journal.open("chat")
    async with contextlib.AsyncExitStack() as resources:
        reply = await service.dispatcher.dispatch(
            record, json.dumps(body).encode(), {}, "somebody", resources
        )
        if fields.get("stream"):
            return record, b"".join([event async for event in reply.events])
        return record, reply.body


@pytest.mark.parametrize("stream", [True, False])
async def test_auto_goes_on_to_a_longer_context_when_a_model_counts_more(make_service, stream):
    loader = Counting(phi4_fast=5, qwen_coder=5)
    service = make_service(loader)

    record, reply = await asked(service, HOLA, stream=stream)

    assert b'"gemma3_multimodal"' in reply.replace(b": ", b":")
    assert record.model == "gemma3_multimodal"
    assert record.reason.endswith(
        ", the default -> phi4_fast; "
        "phi4_fast counted more than its context -> qwen_coder; "
        "qwen_coder counted more than its context -> gemma3_multimodal"
    )
    assert loader.started == ["phi4_fast", "qwen_coder", "gemma3_multimodal"]
    assert not any(each.held for each in service.pool.snapshots())
    await service.pool.close()


async def test_when_no_context_is_longer_both_numbers_are_told(make_service):
    service = make_service(Counting(phi4_fast=5, qwen_coder=5, gemma3_multimodal=5))

    with pytest.raises(Refused) as caught:
        await asked(service, HOLA)

    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 5 tokens" in caught.value.message
    assert "The whole prompt is about " in caught.value.message
    assert not any(each.held for each in service.pool.snapshots())
    await service.pool.close()


async def test_a_named_model_is_not_replaced_when_it_counts_more(make_service):
    loader = Counting(phi4_fast=5)
    service = make_service(loader)

    with pytest.raises(Refused, match="maximum context length is 5 tokens"):
        await asked(service, HOLA, "phi4_fast")

    assert loader.started == ["phi4_fast"]
    await service.pool.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_engine_could_not_run_loads_nothing(make_service, stream):
    loader = Counting()
    service = make_service(loader)

    with pytest.raises(Refused, match="It is wrong"):
        await asked(service, "wrong", stream=stream)

    assert loader.started == []
    await service.pool.close()
