"""Conversations and agents: who has them, how much of them, and that they stay."""

import asyncio
import contextlib
import json

import pytest

from config import PolicySettings, RuleSettings
from config.policy import ConditionSettings, FitSettings
from engines.words import Ticket
from router import conversations
from router.conversations import CONVERSATIONS_MAX, Conversations, Place, Session
from router.parse import parse
from router.words import Turn
from tests.conftest import ROLES
from tests.scripted import Scripted, asked, assistant, user

NOBODY = Session()


def routing(*rules, fit=None, **changes):
    return PolicySettings(
        default="phi4_fast",
        price_per_second=0,
        fit={
            name: FitSettings(other=(fit or {}).get(name, 0.5), slope=0, languages={"es": 0})
            for name in ROLES
        },
        rules=list(rules),
        **changes,
    )


@pytest.fixture
async def serve(make_service):
    """Return a function that builds a service, which is closed at the end."""
    services = []

    def make(*rules, loader=None, **changes):
        services.append(make_service(loader or Scripted(), routing=routing(*rules, **changes)))
        return services[-1]

    yield make
    for service in services:
        await service.pool.close()


def holder(record):
    """Return the model that has the conversation, as the decision saw it, and what it has read."""
    found = [each for each in record.choice.candidates if each.holds_conversation]
    return (found[0].model, found[0].cached_tokens) if found else None


FIRST = [user("hola")]
SECOND = [*FIRST, assistant("hola"), user("adios")]


# --- whose they are, and where ------------------------------------------------------------------


async def test_the_next_turn_is_known_by_how_the_conversation_begins(serve):
    service = serve()
    first, _ = await asked(service, FIRST, "mistral_balanced")

    second, _ = await asked(service, SECOND)

    assert holder(first) is None
    assert holder(second) == ("mistral_balanced", first.choice.task.prompt_tokens)


async def test_another_conversation_is_another(serve):
    service = serve()
    await asked(service, FIRST, "mistral_balanced")

    record, _ = await asked(service, [user("buenas"), assistant("hola"), user("adios")])

    assert holder(record) is None


async def test_an_edited_first_turn_is_no_longer_the_same_conversation(serve):
    service = serve()
    await asked(service, FIRST)
    await asked(service, SECOND)

    edited, _ = await asked(service, [user("hola!"), *SECOND[1:], assistant("x"), user("y")])

    assert holder(edited) is None


async def test_of_an_edited_later_turn_what_is_before_it_counts(serve):
    service = serve()
    first, _ = await asked(service, FIRST)
    second, _ = await asked(service, SECOND)
    assert second.choice.task.prompt_tokens > first.choice.task.prompt_tokens

    edited, _ = await asked(service, [*SECOND[:2], user("hasta luego"), assistant("x"), user("y")])

    assert holder(edited) == ("phi4_fast", first.choice.task.prompt_tokens)


@pytest.mark.parametrize(
    "named",
    [
        {"headers": {"x-session-id": "s"}},
        {"metadata": {"session_id": "s"}},
        {"metadata": {"conversation_id": "s"}},
        {"metadata": {"thread_id": "s"}},
        {"metadata": {"chat_id": "s"}},
    ],
    ids=str,
)
async def test_a_session_is_known_by_its_name(serve, named):
    service = serve()
    await asked(service, FIRST, "mistral_balanced", **named)

    same, _ = await asked(service, "something else", **named)
    other, _ = await asked(service, "something else")

    # The name says who has it. What it has read of this text is nothing.
    assert holder(same) == ("mistral_balanced", 0)
    assert holder(other) is None


async def test_a_named_session_that_goes_on_is_in_the_cache(serve):
    service, named = serve(), {"headers": {"x-session-id": "s"}}
    first, _ = await asked(service, FIRST, **named)

    second, _ = await asked(service, SECOND, **named)

    assert holder(second) == ("phi4_fast", first.choice.task.prompt_tokens)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"user": "ana"}, {"user": "eva"}),
        ({"headers": {"authorization": "1"}}, {"headers": {"authorization": "2"}}),
        ({"headers": {"x-api-key": "1"}}, {"headers": {"x-api-key": "2"}}),
    ],
)
@pytest.mark.parametrize("metadata", [{}, {"session_id": "s"}])
async def test_two_people_s_conversations_are_apart(serve, one, other, metadata):
    service = serve()
    await asked(service, FIRST, "mistral_balanced", metadata=metadata, **one)
    await asked(service, FIRST, "qwen_coder", metadata=metadata, **other)

    mine, _ = await asked(service, SECOND, metadata=metadata, **one)
    theirs, _ = await asked(service, SECOND, metadata=metadata, **other)

    assert holder(mine)[0] == "mistral_balanced"
    assert holder(theirs)[0] == "qwen_coder"


async def test_what_was_in_the_cache_is_gone_when_the_model_was_loaded_again(serve):
    service = serve()
    first, _ = await asked(service, FIRST)
    await service.pool.unload("phi4_fast")

    away, _ = await asked(service, SECOND)
    await service.pool.unload("phi4_fast")
    await service.pool.load("phi4_fast")
    back, _ = await asked(service, [*SECOND, assistant("adios"), user("otra vez")])

    assert first.choice.task.prompt_tokens > 0
    assert holder(away) == ("phi4_fast", 0)
    assert holder(back) == ("phi4_fast", 0)


def test_images_and_empty_turns_are_part_of_a_conversation():
    places = Conversations()
    place = Place("a", 5, 1)
    places.note(NOBODY, [Turn("user", "", 1)], place)
    last = [Turn("assistant", ""), Turn("user", "")]

    assert places.find(NOBODY, [Turn("user", "", 1), *last]) == place
    assert places.find(NOBODY, [Turn("user", ""), *last]) is None
    assert places.find(NOBODY, [Turn("user", "", 1)]) is None
    assert places.find(NOBODY, [Turn("system", "", 1), *last]) is None


def test_a_hundred_thousand_conversations_take_bounded_memory():
    places = Conversations()
    kept = [Turn("user", "kept"), Turn("assistant", ""), Turn("user", "more")]
    places.note(NOBODY, kept[:1], Place("a", 1, 1))

    for index in range(100_000):
        places.note(Session(name=str(index)), [Turn("user", str(index))], Place("b", 1, 1))
        if index % 1_000 == 0:
            places.note(NOBODY, kept[:1], Place("a", 1, 1))

    assert len(places) <= CONVERSATIONS_MAX
    assert places.find(NOBODY, kept).model == "a", "one that goes on is not forgotten"
    assert places.find(Session(name="0"), kept[1:2]) is None


def test_a_very_long_conversation_is_found_by_its_last_turns():
    places = Conversations()
    turns = [Turn("user", str(index)) for index in range(5_000)]
    places.note(NOBODY, turns[:-2], Place("a", 1, 1))

    assert places.find(NOBODY, turns) is not None
    assert places.find(NOBODY, [*turns, *turns[: conversations._TURNS_MAX]]) is None


# --- they stay ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("margin", "model"), [(0.2, "phi4_fast"), (0.05, "mistral_balanced")])
async def test_a_conversation_stays_unless_the_gain_exceeds_the_margin(serve, margin, model):
    service = serve(fit={"mistral_balanced": 0.6}, switch_margin=margin)
    await asked(service, FIRST, "phi4_fast")

    record, _ = await asked(service, SECOND)

    assert record.model == model
    assert ("the conversation stays" in record.reason) is (model == "phi4_fast")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {}}]}
LOOP = [*FIRST, CALL, {"role": "tool", "tool_call_id": "1", "content": "def f(): return 42"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


async def test_a_tool_loop_stays_though_a_rule_prefers_another_which_is_better_and_free(serve):
    rule = RuleSettings(
        name="all", when=ConditionSettings(prompt_tokens_min=0), prefer=["mistral_balanced"]
    )
    service = serve(rule, fit={"mistral_balanced": 1.0})
    await asked(service, FIRST, "qwen_coder", tools=TOOLS)
    await asked(service, "load", "mistral_balanced")

    async with service.pool.lease(Ticket("qwen_coder")):
        busy = service.chooser.choose(_request([*LOOP]), {})
    record, _ = await asked(service, LOOP, tools=TOOLS)
    longer, _ = await asked(service, [*LOOP, CALL, LOOP[-1]], tools=TOOLS)
    after, _ = await asked(service, [*LOOP, assistant("42"), user("gracias")])

    assert busy.decision.model == "qwen_coder"
    assert record.model == longer.model == "qwen_coder"
    assert "it waits for the result of its tool" in longer.reason
    assert after.model == "mistral_balanced", "a new question is decided anew"


def _request(messages):
    return parse("chat", json.dumps({"model": "auto", "messages": messages}).encode())


async def test_a_tool_loop_waits_in_the_queue_of_its_busy_model(serve):
    done = asyncio.Event()
    loader = Scripted()
    service = serve(loader=loader)
    await asked(service, FIRST)
    loader.scripts["phi4_fast"] = done
    others = [asyncio.create_task(_quietly(service, FIRST)) for _ in range(4)]
    await asyncio.sleep(0.02)

    loop = asyncio.create_task(_quietly(service, LOOP))
    await asyncio.sleep(0.02)
    done.set()

    assert (await loop).model == "phi4_fast"
    await asyncio.gather(*others)


async def _quietly(service, messages):
    """Ask without looking at what others hold."""
    record = service.journal.open("chat")
    body = json.dumps({"model": "auto", "messages": messages}).encode()
    async with contextlib.AsyncExitStack() as resources:
        await service.dispatcher.dispatch(record, body, {}, "somebody", resources)
    return record


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        ("Write a Python function that reverses a linked list", "commit it"),
        ("Escribe una función en Python que invierta una lista enlazada", "y ahora en Java"),
    ],
)
async def test_a_follow_up_is_the_task_of_its_conversation(serve, begins, goes_on):
    code = RuleSettings(name="code", when=ConditionSettings(task="code"), prefer=["qwen_coder"])
    service = serve(code)
    first, _ = await asked(service, begins)

    record, _ = await asked(service, [user(begins), assistant("def f(x): ..."), user(goes_on)])

    assert first.choice.task.label == record.choice.task.label == "code"
    assert record.model == "qwen_coder"
    assert holder(record) == ("qwen_coder", first.choice.task.prompt_tokens)


async def test_a_stream_that_has_begun_is_a_turn_like_any_other(serve):
    service = serve()
    await asked(service, FIRST, "mistral_balanced", stream=True)

    record, _ = await asked(service, SECOND)

    assert holder(record)[0] == "mistral_balanced"


def test_looking_for_a_conversation_does_not_keep_it():
    """A dry run remembers nothing."""
    places = Conversations()
    looked_at = [Turn("user", "seen"), Turn("assistant", ""), Turn("user", "more")]
    places.note(NOBODY, looked_at[:1], Place("a", 1, 1))

    for index in range(CONVERSATIONS_MAX):
        places.note(NOBODY, [Turn("user", str(index))], Place("b", 1, 1))
        places.find(NOBODY, looked_at)

    assert places.find(NOBODY, looked_at) is None
