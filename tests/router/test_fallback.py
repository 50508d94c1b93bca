"""A model that fails before the first byte is replaced, if the client left the choice."""

import asyncio
import contextlib
import json

import pytest

from config import PolicySettings, PoolSettings, RuleSettings
from config.policy import ConditionSettings, FitSettings
from engines.protocol import EngineFailed, Refused
from engines.words import Unavailable
from tests.conftest import ROLES
from tests.scripted import Scripted, asked, assistant, user

BOTH = pytest.mark.parametrize("stream", [True, False])


def routing(*rules, **changes):
    return PolicySettings(
        default="phi4_fast",
        price_per_second=0,
        fit={name: FitSettings(other=0.5, slope=0, languages={"es": 0}) for name in ROLES},
        rules=list(rules),
        **changes,
    )


@pytest.fixture
async def serve(make_service):
    """Return a function that builds a service, which is closed at the end."""
    services = []

    def make(loader, *rules, pool=None, **changes):
        more = {"pool": pool} if pool else {}
        services.append(make_service(loader, routing=routing(*rules, **changes), **more))
        return services[-1]

    yield make
    for service in services:
        await service.pool.close()


@BOTH
async def test_when_an_engine_dies_the_next_model_answers_and_the_reason_says_so(serve, stream):
    loader = Scripted(phi4_fast="dies")
    service = serve(loader)

    record, reply = await asked(service, "hola", stream=stream)

    assert record.model == "qwen_coder"
    assert record.reason.endswith("the default -> phi4_fast; phi4_fast failed -> qwen_coder")
    assert b"hola" in reply if stream else reply["model"] == "qwen_coder"


@BOTH
async def test_a_model_that_cannot_be_loaded_is_replaced(serve, stream):
    service = serve(Scripted(phi4_fast="does not load"))

    record, _ = await asked(service, "hola", stream=stream)

    assert record.reason.endswith("; phi4_fast could not be loaded -> qwen_coder")


@BOTH
@pytest.mark.parametrize(("fallbacks", "tries"), [(0, 1), (1, 2), (2, 3)])
async def test_no_more_models_are_tried_than_the_policy_says(serve, stream, fallbacks, tries):
    loader = Scripted(**dict.fromkeys(ROLES, "dies"))
    service = serve(loader, fallbacks=fallbacks)

    with pytest.raises(EngineFailed, match="phi4_fast"):
        await asked(service, "hola", stream=stream)

    assert [model for model, _ in loader.seen] == list(ROLES[:tries])


@BOTH
async def test_a_named_model_is_never_replaced(serve, stream):
    loader = Scripted(qwen_coder="dies")

    with pytest.raises(EngineFailed):
        await asked(serve(loader), "hola", "qwen_coder", stream=stream)

    assert [model for model, _ in loader.seen] == ["qwen_coder"]


@BOTH
async def test_a_mistake_of_the_client_is_not_tried_elsewhere(serve, stream):
    loader = Scripted(phi4_fast=Refused("No.", param="stop", code="invalid_value"))

    with pytest.raises(Refused):
        await asked(serve(loader), "hola", stream=stream)

    assert [model for model, _ in loader.seen] == ["phi4_fast"]


@BOTH
async def test_a_model_with_a_full_queue_is_replaced(serve, stream):
    loader = Scripted(phi4_fast=Unavailable("It is full.", "queue_full", 1))

    record, _ = await asked(serve(loader), "hola", stream=stream)

    assert record.reason.endswith("; phi4_fast has a full queue -> qwen_coder")


async def test_the_queue_of_a_busy_model_is_really_full(serve):
    loader = Scripted(phi4_fast=asyncio.Event())
    service = serve(loader, pool=PoolSettings(memory_budget_gb=1, queue_max=1))
    first = asyncio.create_task(_begun(service))
    await asyncio.sleep(0.05)

    record = await _begun(service)

    assert record.reason.endswith("; phi4_fast has a full queue -> qwen_coder")
    loader.scripts["phi4_fast"].set()
    assert (await first).model == "phi4_fast"


async def _begun(service):
    record = service.journal.open("chat")
    body = json.dumps({"model": "auto", "messages": [user("hola")]}).encode()
    async with contextlib.AsyncExitStack() as resources:
        await service.dispatcher.dispatch(record, body, {}, "somebody", resources)
    return record


@pytest.mark.parametrize("code", ["deadline_exceeded", "shutting_down"])
async def test_what_another_model_cannot_mend_is_told(serve, code):
    loader = Scripted(phi4_fast=Unavailable("No.", code, 1))

    with pytest.raises(Unavailable):
        await asked(serve(loader), "hola")

    assert [model for model, _ in loader.seen] == ["phi4_fast"]


async def test_a_model_that_the_rule_leaves_out_does_not_answer_instead(serve):
    loader = Scripted(phi4_fast="dies")
    only = RuleSettings(name="private", when=ConditionSettings(), only=["phi4_fast"])

    with pytest.raises(EngineFailed):
        await asked(serve(loader, only), "hola")

    assert [model for model, _ in loader.seen] == ["phi4_fast"]


LOOP = [
    user("hola"),
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {}}]},
    {"role": "tool", "tool_call_id": "1", "content": "42"},
]


@pytest.mark.parametrize("code", ["queue_full", "queue_timeout"])
async def test_a_tool_loop_is_not_taken_from_a_model_that_is_only_busy(serve, code):
    loader = Scripted()
    service = serve(loader)
    await asked(service, "hola")
    loader.scripts["phi4_fast"] = Unavailable("It is full.", code, 1)

    with pytest.raises(Unavailable):
        await asked(service, LOOP)

    loader.scripts["phi4_fast"] = "dies"
    record, _ = await asked(service, LOOP)
    assert record.reason.endswith("; phi4_fast failed -> qwen_coder")


async def test_a_model_that_failed_does_not_get_the_conversation(serve):
    loader = Scripted(phi4_fast="dies")
    service = serve(loader, fallbacks=0)
    with pytest.raises(EngineFailed):
        await asked(service, "hola")
    del loader.scripts["phi4_fast"]

    record, _ = await asked(service, [user("hola"), assistant("hola"), user("adios")])

    assert not any(each.holds_conversation for each in record.choice.candidates)
