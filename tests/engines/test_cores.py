"""Engines that are busy at the same time share the cores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ModelSettings, PoolSettings
from engines import cores
from engines.echo import EchoEngine
from engines.pool import Pool
from engines.words import Ticket


@pytest.mark.parametrize(
    ("wishes", "count", "expected"),
    [
        ({}, 8, {}),
        ({"a": None}, 8, {"a": 8}),
        ({"a": None, "b": None}, 8, {"a": 4, "b": 4}),
        ({"a": None, "b": None}, 7, {"a": 3, "b": 4}),
        ({"a": None, "b": 2}, 8, {"a": 6, "b": 2}),  # what one does not want, the other gets
        ({"a": 3}, 8, {"a": 3}),
        ({"a": 99}, 2, {"a": 2}),
        ({"a": None, "b": None, "c": None}, 2, {"a": 1, "b": 1, "c": 1}),  # never none at all
    ],
)
def test_each_busy_engine_gets_its_share(wishes, count, expected):
    assert cores.shares(wishes, count) == expected


@given(
    wishes=st.dictionaries(st.text(max_size=3), st.none() | st.integers(1, 64), max_size=6),
    count=st.integers(1, 64),
)
def test_nobody_is_left_out_and_no_core_is_given_twice(wishes, count):
    result = cores.shares(wishes, count)

    assert set(result) == set(wishes)
    assert all(threads >= 1 for threads in result.values())
    assert all(result[name] <= (most or count) for name, most in wishes.items())
    assert sum(result.values()) <= max(count, len(wishes))


async def test_an_engine_has_all_cores_until_another_is_busy_too_and_again_after(monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 8)
    told = []

    class Loader:
        async def locate(self, model):
            return None

        def footprint_bytes(self, model, directory):
            return 0

        def progress(self, model):
            return None

        async def start(self, model, directory):
            engine = EchoEngine(model.name)
            engine.use_threads = lambda count: told.append((model.name, count))
            return engine

    models = [ModelSettings(name=name, source="x", engine="echo") for name in "ab"]
    pool = Pool(models, PoolSettings(), Loader(), 2**30)
    async with pool.lease(Ticket("a")):
        assert told[-1] == ("a", 8)
        async with pool.lease(Ticket("b")):
            assert sorted(told[-2:]) == [("a", 4), ("b", 4)]
        assert told[-1] == ("a", 8)
    await pool.close()
