"""The pool: one load for many, leases, eviction, recovery, refusals. No engine, no sleeping."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from config import ModelSettings, PoolSettings
from engines.echo import EchoEngine
from engines.memory import GIB
from engines.pool import Pool
from engines.words import Ticket, Unavailable


class ScriptedLoader:
    """Starts echo engines when the test says so.

    `gates[name]` holds a load until it is set; `errors[name]` makes it fail.
    """

    def __init__(self, footprint=1 * GIB):
        self.started = []
        self.engines = {}
        self.gates = {}
        self.errors = {}
        self.footprint = footprint
        self.seconds = 0

    async def locate(self, model):
        return Path()

    def footprint_bytes(self, model, directory):
        return self.footprint

    def progress(self, model):
        return None

    async def start(self, model, directory):
        self.started.append(model.name)
        await asyncio.sleep(self.seconds)
        if model.name in self.gates:
            await self.gates[model.name].wait()
        if model.name in self.errors:
            raise self.errors[model.name]
        self.engines[model.name] = EchoEngine(model.name)
        return self.engines[model.name]


def make_pool(
    loader, names="abc", budget_gib=2, models=None, available=lambda: 100 * GIB, **settings
):
    models = models or [ModelSettings(name=name, source="x", engine="echo") for name in names]
    return Pool(models, PoolSettings(**settings), loader, budget_gib * GIB, available)


def states(pool):
    return {status.model: status.state for status in pool.snapshots()}


async def settle():
    """Let everything run that can run without anything from outside."""
    for _ in range(20):
        await asyncio.sleep(0)


async def use(pool, name):
    async with pool.lease(Ticket(name)) as engine:
        return engine


async def test_a_model_is_loaded_on_its_first_lease_and_stays():
    loader = ScriptedLoader()
    pool = make_pool(loader)
    assert states(pool) == {"a": "cold", "b": "cold", "c": "cold"}

    first = await use(pool, "a")
    second = await use(pool, "a")

    assert first is second
    assert loader.started == ["a"]
    assert states(pool)["a"] == "ready"


async def test_many_first_requests_load_a_cold_model_once():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader)
    waiting = [asyncio.create_task(use(pool, "a")) for _ in range(10)]
    await settle()
    assert states(pool)["a"] == "loading"
    assert pool.snapshots()[0].held == 10

    loader.gates["a"].set()
    engines = await asyncio.gather(*waiting)

    assert loader.started == ["a"]
    assert len(set(map(id, engines))) == 1
    assert pool.snapshots()[0].held == 0


async def test_when_every_waiter_leaves_the_load_goes_on_and_nothing_is_held():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader)
    waiting = asyncio.create_task(use(pool, "a"))
    await settle()

    waiting.cancel()
    await settle()
    assert pool.snapshots()[0].held == 0
    loader.gates["a"].set()
    await settle()

    assert states(pool)["a"] == "ready"


async def test_the_idle_model_that_was_used_longest_ago_leaves_for_a_new_one():
    loader = ScriptedLoader()
    loader.seconds = 0.05  # all loads take about as long, so only use tells the models apart
    pool = make_pool(loader, budget_gib=2)
    await use(pool, "a")
    await use(pool, "b")
    await use(pool, "a")

    await use(pool, "c")

    assert states(pool) == {"a": "ready", "b": "cold", "c": "ready"}
    assert loader.engines["b"].failure == "the engine was closed"


async def test_a_model_with_a_request_is_never_unloaded_the_newcomer_waits():
    loader = ScriptedLoader()
    pool = make_pool(loader, "ab", budget_gib=1)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(pool.lease(Ticket("a")))
        waiting = asyncio.create_task(use(pool, "b"))
        await settle()
        assert states(pool) == {"a": "ready", "b": "loading"}
        assert not waiting.done()

    await waiting
    assert states(pool) == {"a": "cold", "b": "ready"}


async def test_a_pinned_model_never_leaves():
    loader = ScriptedLoader()
    models = [
        ModelSettings(name="a", source="x", engine="echo", pin=True),
        ModelSettings(name="b", source="x", engine="echo"),
    ]
    pool = make_pool(loader, budget_gib=1, models=models)
    await use(pool, "a")

    with pytest.raises(Unavailable) as caught:
        await use(pool, "b")

    assert caught.value.code == "no_memory"
    assert states(pool) == {"a": "ready", "b": "cold"}


async def test_a_model_larger_than_the_budget_is_refused_with_the_numbers():
    pool = make_pool(ScriptedLoader(footprint=3 * GIB), budget_gib=2)

    with pytest.raises(Unavailable) as caught:
        await use(pool, "a")

    assert caught.value.code == "no_memory"
    assert caught.value.message == (
        "`a` takes 3.00 GiB; the memory budget is 2.00 GiB. "
        "Raise pool.memory_budget_gb or lower kv_cache_gb."
    )


async def test_what_is_loading_counts_against_the_memory_that_is_available():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader, "ab", budget_gib=100, available=lambda: int(2.25 * GIB))
    first = asyncio.create_task(use(pool, "a"))
    second = asyncio.create_task(use(pool, "b"))
    await settle()

    assert loader.started == ["a"]  # b waits: 0.25 GiB above the reserve would be left

    loader.gates["a"].set()
    await asyncio.gather(first, second)
    assert loader.started == ["a", "b"]


async def test_queue_max_requests_are_held_and_one_more_is_refused():
    loader = ScriptedLoader()
    pool = make_pool(loader, queue_max=2)
    async with pool.lease(Ticket("a")), pool.lease(Ticket("a")):
        with pytest.raises(Unavailable) as caught:
            await use(pool, "a")
        assert caught.value.code == "queue_full"
        await use(pool, "b")  # another model has room

    await use(pool, "a")


async def test_a_failed_load_is_told_to_every_waiter_and_tried_again_after_a_pause(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("engines.pool.time.monotonic", lambda: now)
    loader = ScriptedLoader()
    loader.errors["a"] = RuntimeError("no such tensor.\nTraceback ...")
    pool = make_pool(loader)

    results = await asyncio.gather(use(pool, "a"), use(pool, "a"), return_exceptions=True)
    assert [result.message for result in results] == [
        "`a` could not be loaded: no such tensor."
    ] * 2
    assert pool.snapshots()[0].state == "failed"
    assert pool.snapshots()[0].failure == "no such tensor"

    with pytest.raises(Unavailable):  # during the pause nothing is tried
        await use(pool, "a")
    assert loader.started == ["a"]

    now += 1.01
    del loader.errors["a"]
    await use(pool, "a")
    assert loader.started == ["a", "a"]
    assert pool.snapshots()[0].failure is None


async def test_the_pause_doubles_from_failure_to_failure_up_to_a_minute(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("engines.pool.time.monotonic", lambda: now)
    loader = ScriptedLoader()
    loader.errors["a"] = RuntimeError("no")
    pool = make_pool(loader)

    pauses = []
    for _ in range(8):
        with pytest.raises(Unavailable) as caught:
            await use(pool, "a")
        pauses.append(caught.value.retry_after_s)
        now += caught.value.retry_after_s

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_an_engine_that_died_shows_as_failed_and_is_replaced_by_the_next_request():
    loader = ScriptedLoader()
    pool = make_pool(loader)
    broken = await use(pool, "a")
    broken.break_down("its process ended")
    assert pool.snapshots()[0].state == "failed"
    assert pool.snapshots()[0].failure == "its process ended"

    engine = await use(pool, "a")

    assert engine is not broken
    assert states(pool)["a"] == "ready"


async def test_a_load_past_its_time_limit_has_failed():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()  # never set
    pool = make_pool(loader, load_timeout_s=0.01)

    with pytest.raises(Unavailable) as caught:
        await use(pool, "a")

    assert caught.value.message == (
        "`a` could not be loaded: it took longer than load_timeout_s = 0.01."
    )


async def test_waiting_ends_after_load_wait_s_while_the_load_goes_on():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader, load_wait_s=0.01)

    with pytest.raises(Unavailable) as caught:
        await use(pool, "a")

    assert caught.value.code == "load_timeout"
    assert states(pool)["a"] == "loading"
    loader.gates["a"].set()
    await use(pool, "a")
    assert loader.started == ["a"]


async def test_an_idle_model_is_unloaded_after_its_time_counted_from_the_last_end():
    loader = ScriptedLoader()
    models = [ModelSettings(name="a", source="x", engine="echo", idle_unload_s=0.02)]
    pool = make_pool(loader, models=models)

    async with pool.lease(Ticket("a")):
        await asyncio.sleep(0.04)
        assert states(pool)["a"] == "ready"
    pool.snapshots()  # looking does not touch the timer
    await asyncio.sleep(0.04)

    assert states(pool)["a"] == "cold"


async def test_a_request_during_the_unload_waits_for_it_and_loads_anew():
    loader = ScriptedLoader()
    models = [ModelSettings(name="a", source="x", engine="echo", idle_unload_s=0.01)]
    pool = make_pool(loader, models=models)
    await use(pool, "a")
    closing = asyncio.Event()
    first = loader.engines["a"]

    async def slow_close():
        await closing.wait()

    first.close = slow_close
    await asyncio.sleep(0.02)
    assert states(pool)["a"] == "draining"
    waiting = asyncio.create_task(use(pool, "a"))
    await settle()
    assert loader.started == ["a"]

    closing.set()

    assert await waiting is not first
    assert loader.started == ["a", "a"]
    assert states(pool)["a"] == "ready"


async def test_an_unload_during_the_load_takes_no_place_and_ends_what_was_loaded():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader, queue_max=1)
    waiting = asyncio.create_task(use(pool, "a"))
    await settle()

    unloading = asyncio.create_task(pool.unload("a"))  # the queue is full
    await settle()
    assert pool.snapshots()[0].held == 1
    waiting.cancel()
    loader.gates["a"].set()
    await unloading

    assert states(pool)["a"] == "cold"
    assert loader.engines["a"].failure == "the engine was closed"


async def test_whoever_waits_for_a_load_that_is_unloaded_gets_the_next_one():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader)
    waiting = asyncio.create_task(use(pool, "a"))
    await settle()
    unloading = asyncio.create_task(pool.unload("a"))
    await settle()

    loader.gates["a"].set()
    engine = await waiting
    await unloading

    assert engine is loader.engines["a"]
    assert loader.started == ["a", "a"]


async def test_an_unload_is_over_when_its_engine_is_gone_also_if_there_is_a_new_one():
    loader = ScriptedLoader()
    pool = make_pool(loader)
    async with pool.lease(Ticket("a")):
        unloading = asyncio.create_task(pool.unload("a"))
        await settle()
        waiting = asyncio.create_task(use(pool, "a"))
        await settle()
        assert not unloading.done()
    async with pool.lease(Ticket("a")):  # the new engine is in use, and stays
        await waiting

        async with asyncio.timeout(1):
            await unloading

        assert states(pool)["a"] == "ready"


async def test_an_unload_of_what_has_not_begun_to_load_is_over_at_once():
    loader = ScriptedLoader()
    pool = make_pool(loader, "ab", budget_gib=1)
    async with pool.lease(Ticket("a")):
        waiting = asyncio.create_task(use(pool, "b"))
        await settle()

        async with asyncio.timeout(1):
            await pool.unload("b")

        assert states(pool) == {"a": "ready", "b": "loading"}
    await waiting


async def test_an_unload_after_a_load_that_fails_is_over_with_it():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    loader.errors["a"] = RuntimeError("broken")
    pool = make_pool(loader)
    pool.begin_load("a")
    await settle()
    unloading = asyncio.create_task(pool.unload("a"))
    await settle()

    loader.gates["a"].set()
    await unloading

    assert states(pool)["a"] == "failed"


async def test_an_unload_that_takes_too_long_says_what_it_waits_for():
    loader = ScriptedLoader()
    pool = make_pool(loader, load_wait_s=0.05)
    async with pool.lease(Ticket("a")):
        with pytest.raises(Unavailable) as caught:
            await pool.unload("a")
        assert states(pool)["a"] == "draining"
    await settle()

    assert caught.value.code == "load_timeout"
    assert "has running requests after 0.05 s" in caught.value.message
    assert states(pool)["a"] == "cold"


async def test_preload_tries_every_marked_model_once_and_a_failure_stops_nothing():
    loader = ScriptedLoader()
    loader.errors["a"] = RuntimeError("broken")
    models = [
        ModelSettings(name=name, source="x", engine="echo", preload=name != "b") for name in "abc"
    ]
    pool = make_pool(loader, models=models, budget_gib=4)
    assert pool.to_preload == ("a", "c")

    await pool.preload()

    assert pool.to_preload == ()
    assert states(pool) == {"a": "failed", "b": "cold", "c": "ready"}


async def test_a_preload_counts_as_tried_only_when_its_load_is_over():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    models = [ModelSettings(name="a", source="x", engine="echo", preload=True)]
    pool = make_pool(loader, models=models, load_wait_s=0.01)
    preload = asyncio.create_task(pool.preload())
    with pytest.raises(Unavailable):
        await use(pool, "a")  # its wait is over
    await asyncio.sleep(0.02)  # and that of a request as old as the preload
    assert pool.to_preload == ("a",)

    loader.gates["a"].set()
    await preload

    assert pool.to_preload == ()
    assert states(pool) == {"a": "ready"}


async def test_a_load_is_timed_from_its_own_start_and_not_while_another_one_runs():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()  # never set
    pool = make_pool(loader, load_timeout_s=0.05)
    hung = asyncio.create_task(use(pool, "a"))
    await settle()
    ticket = Ticket("b")
    async with contextlib.AsyncExitStack() as stack:
        second = asyncio.create_task(stack.enter_async_context(pool.lease(ticket)))
        await settle()
        assert pool.waits_for(ticket) == "waiting for another load before b"
        assert loader.started == ["a"]

        with pytest.raises(Unavailable, match="longer than load_timeout_s"):
            await hung
        await second

    assert loader.started == ["a", "b"]
    assert states(pool) == {"a": "failed", "b": "ready", "c": "cold"}


async def test_a_load_in_the_background_is_asked_for_once_also_while_it_waits_for_its_turn():
    loader = ScriptedLoader()
    loader.gates["a"] = asyncio.Event()
    pool = make_pool(loader)
    first = asyncio.create_task(use(pool, "a"))
    await settle()

    for _ in range(3):
        pool.begin_load("b")
        await settle()
    assert pool.snapshots()[1].held == 1
    loader.gates["a"].set()
    await first
    await settle()

    assert states(pool)["b"] == "ready"
    pool.begin_load("b")  # it is there
    await settle()
    assert loader.started == ["a", "b"]


async def test_closing_ends_loads_and_engines_and_refuses_what_comes_later():
    loader = ScriptedLoader()
    loader.gates["b"] = asyncio.Event()
    pool = make_pool(loader)
    engine = await use(pool, "a")
    waiting = asyncio.create_task(use(pool, "b"))
    await settle()

    await pool.close()
    await pool.close()  # idempotent

    assert engine.failure == "the engine was closed"
    assert set(states(pool).values()) == {"cold"}
    for lease in (waiting, use(pool, "a")):
        with pytest.raises(Unavailable) as caught:
            await lease
        assert caught.value.code == "shutting_down"


async def test_the_pool_can_be_printed():
    pool = make_pool(ScriptedLoader(), "ab")
    async with pool.lease(Ticket("a")):
        assert repr(pool) == "<Pool [a: ready, 1 held | b: cold, 0 held]>"
