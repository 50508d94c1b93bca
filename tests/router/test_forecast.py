"""How fast models are: first guesses, measurements, and the file that keeps them."""

import asyncio
import json
import time

import msgspec
import pytest

from config import ModelSettings
from engines import cores
from router import forecast
from router.forecast import Forecast

GIB = 2**30
MODELS = [ModelSettings(name=name, source=name, engine="echo") for name in ("a", "b")]


def made(path=None):
    return Forecast(MODELS, path)


def test_before_anything_is_measured_a_larger_model_is_slower():
    speeds = [made().decode_tokens_per_s("a", 0, size * GIB) for size in (0, 1, 4, 54)]

    assert speeds[0] == 60
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] == min(60, 5e9 * cores.usable() / (54 * GIB))
    assert made().prefill_tokens_per_s("a", 4 * GIB) == 30 * speeds[2]


def test_what_was_measured_counts_instead_and_only_for_that_model():
    speeds = made()

    speeds.wrote("a", 0, 100, 10)
    speeds.read("a", 1_000, 2)

    assert speeds.decode_tokens_per_s("a", 0, GIB) == 10
    assert speeds.prefill_tokens_per_s("a", GIB) == 500
    assert speeds.decode_tokens_per_s("b", 0, GIB) == made().decode_tokens_per_s("b", 0, GIB)


def test_first_the_mean_is_plain_and_then_the_newest_fifth_counts():
    speeds = made()
    for rate in (10, 20, 30):
        speeds.wrote("a", 0, 10 * rate, 10)
    assert speeds.decode_tokens_per_s("a", 0, GIB) == pytest.approx(20)

    for _ in range(7):
        speeds.wrote("a", 0, 200, 10)
    speeds.wrote("a", 0, 700, 10)

    assert speeds.decode_tokens_per_s("a", 0, GIB) == pytest.approx(20 + 50 / 5)


@pytest.mark.parametrize(
    ("running", "speed"), [(0, 40), (1, 40), (2, 20), (3, 20), (6, 10), (7, 10), (99, 10)]
)
def test_speed_depends_on_how_many_are_written_at_a_time(running, speed):
    speeds = made()
    speeds.wrote("a", 0, 400, 10)
    speeds.wrote("a", 3, 200, 10)
    speeds.wrote("a", 7, 100, 10)

    assert speeds.decode_tokens_per_s("a", running, GIB) == speed


@pytest.mark.parametrize(("tokens", "seconds"), [(3, 1), (0, 0), (100, 0), (100, -1)])
def test_answers_that_say_nothing_of_speed_are_not_counted(tokens, seconds):
    speeds = made()

    speeds.wrote("a", 0, tokens, seconds)
    speeds.read("a", tokens // 3, seconds)

    assert speeds.decode_tokens_per_s("a", 0, 0) == 60
    assert speeds.prefill_tokens_per_s("a", 0) == 1800


def test_the_error_of_prediction_is_a_share_of_what_was_measured():
    speeds = made()
    assert speeds.error("a") is None

    speeds.took("a", 15, 10)
    speeds.took("a", 10, 10)

    assert speeds.error("a") == 0.25


async def test_measurements_last_over_restarts(tmp_path):
    path = tmp_path / "new" / "speeds.json"
    first = made(path)
    first.wrote("a", 1, 100, 10)
    first.read("a", 1_000, 2)
    first.took("a", 10, 10)
    await first.save()

    second = made(path)

    assert second.decode_tokens_per_s("a", 1, GIB) == 10
    assert second.prefill_tokens_per_s("a", GIB) == 500
    assert second.error("a") == 0


async def test_a_model_with_other_settings_is_measured_anew(tmp_path):
    path = tmp_path / "speeds.json"
    first = made(path)
    first.wrote("a", 0, 100, 10)
    await first.save()
    changed = [ModelSettings(name="a", source="a", engine="echo", threads=2)]

    assert Forecast(changed, path).decode_tokens_per_s("a", 0, 0) == 60


async def test_two_services_keep_each_other_s_measurements(tmp_path):
    path = tmp_path / "speeds.json"
    first, second = made(path), made(path)
    first.wrote("a", 0, 100, 10)
    second.wrote("b", 0, 200, 10)

    await first.save()
    await second.save()

    assert made(path).decode_tokens_per_s("a", 0, GIB) == 10
    assert made(path).decode_tokens_per_s("b", 0, GIB) == 20


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"\xff": 1}',
        b"[" * 100_000,
        b"[]",
        b'{"KEY": {"decode": {"1": {"value": "fast"}}}}',
        b'{"KEY": {"decode": {"1": {"value": 0, "count": 3}}}}',
        b'{"KEY": {"prefill": {"value": -5, "count": 3}}}',
    ],
)
async def test_a_damaged_file_is_measured_anew_and_mended(tmp_path, damage):
    path = tmp_path / "speeds.json"
    key = next(iter(made()._keys.values()))
    path.write_bytes(damage.replace(b"KEY", key.encode()))

    speeds = made(path)
    assert speeds.decode_tokens_per_s("a", 0, 0) == 60
    assert speeds.prefill_tokens_per_s("a", 0) == 1800
    speeds.wrote("a", 0, 100, 10)
    await speeds.save()

    assert made(path).decode_tokens_per_s("a", 0, 0) == 10


async def test_a_disk_that_refuses_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    speeds = made(tmp_path / "file" / "speeds.json")
    speeds.wrote("a", 0, 100, 10)

    await speeds.save()

    assert "cannot be written" in caplog.text
    assert speeds.decode_tokens_per_s("a", 0, 0) == 10


async def test_a_file_is_only_written_when_there_is_something_new(tmp_path):
    path = tmp_path / "speeds.json"
    speeds = made(path)
    await speeds.save()
    assert not path.exists()

    speeds.wrote("a", 0, 100, 10)
    await speeds.save()
    path.unlink()
    await speeds.save()

    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


async def test_a_service_that_is_killed_has_lost_minutes_only(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "SAVE_S", 0.01)
    path = tmp_path / "speeds.json"
    speeds = made(path)
    keeping = asyncio.create_task(speeds.keep())

    speeds.wrote("a", 0, 100, 10)
    async with asyncio.timeout(5):
        while not path.exists():
            await asyncio.sleep(0.01)

    keeping.cancel()
    assert msgspec.json.decode(path.read_bytes())


async def test_what_was_being_written_at_the_stop_is_written_by_the_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "SAVE_S", 0.0)
    path = tmp_path / "speeds.json"
    speeds = made(path)
    write = speeds._write
    monkeypatch.setattr(speeds, "_write", lambda *what: (time.sleep(0.1), write(*what)))
    speeds.wrote("a", 0, 100, 10)
    keeping = asyncio.create_task(speeds.keep())
    await asyncio.sleep(0.02)

    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await speeds.save()

    assert json.loads(path.read_text())
    assert [each.name for each in tmp_path.iterdir()] == ["speeds.json"]
