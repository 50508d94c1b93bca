"""What is kept of decisions: whole, bounded, and never at the cost of a request."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import LedgerSettings
from policies import Task
from router import ledger
from router.ledger import BadLedger, Entry, Feedback, Ledger, LedgerFailed, Usage, objection, read
from tests.conftest import ROOT

TASK = Task(label="code", confidence=0.8, language="en", prompt_tokens=9, signals={"code": 0.8})


def entry(id_="a", **changes):
    """Return a decision that has just been made."""
    fields = {
        "id": id_,
        "at": time.time(),
        "endpoint": "chat",
        "asked": "auto",
        "model": "qwen_coder",
        "task": TASK,
        "rule": "code",
        "reason": "rule code -> qwen_coder",
        "outcome": "ok",
        "seconds": 0.25,
        "usage": Usage(9, 20),
    }
    return Entry(**{**fields, **changes})


def said(id_="a", **changes):
    return Feedback(**{"decision_id": id_, "at": 1.0, **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def opened(path):
    """A function that opens the ledger; it is closed after the test."""
    ledgers = []

    def open_(**chosen):
        ledgers.append(Ledger.open(path, LedgerSettings(**chosen)))
        return ledgers[-1]

    yield open_
    for each in ledgers:
        each.close()


async def test_a_decision_comes_back_as_it_was_recorded(opened, path):
    kept = opened(keep_text=True)
    one = entry(text="Write a Python function")

    kept.record(one)

    assert await kept.decision("a") == one  # also before its batch is written
    assert await kept.decision("b") is None
    kept.close()
    assert list(read(path)) == [(one, None)]


@settings(max_examples=30)  # each one makes a file
@given(
    st.text(st.characters(exclude_categories=[])),
    st.text(),
    st.dictionaries(st.text(), st.floats(0, 1)),
)
def test_any_text_can_be_kept(tmp_path_factory, text, model, signals):
    path = tmp_path_factory.mktemp("any") / "ledger"
    kept = Ledger.open(path, LedgerSettings(keep_text=True))
    task = Task(label="qa", confidence=0.5, language=None, prompt_tokens=1, signals=signals)

    kept.record(entry(text=text, model=model, task=task))
    kept.close()

    ((found, _),) = read(path)
    assert found.text == text.encode("utf-8", "replace").decode()
    assert (found.model, found.task) == (model, task)


async def test_of_a_long_text_both_ends_are_kept(opened):
    kept = opened(keep_text=True)

    kept.record(entry(text="a" * 10**6 + "z" * 10**6))

    text = (await kept.decision("a")).text
    assert text == "a" * 10_000 + "\n" + "z" * 10_000


async def test_feedback_is_for_a_decision_that_is_known_and_the_last_one_counts(opened, path):
    kept = opened()
    kept.record(entry())

    assert not await kept.feedback(said("b", thumbs="up"))
    assert await kept.feedback(said(thumbs="down", task="math"))
    assert await kept.feedback(said(thumbs="up"))

    kept.close()
    assert [feedback for _, feedback in read(path)] == [said(thumbs="up")]


async def test_a_note_is_kept_only_with_the_texts(opened, path):
    kept = opened()
    kept.record(entry())
    await kept.feedback(said(thumbs="up", note="my secret"))
    kept.close()

    kept = opened(keep_text=True)
    kept.record(entry("b"))
    await kept.feedback(said("b", thumbs="up", note="my secret"))
    kept.close()

    assert [feedback.note for _, feedback in read(path)] == [None, "my secret"]


def test_texts_go_when_the_operator_keeps_them_no_longer(opened, path):
    kept = opened(keep_text=True)
    kept.record(entry(text="my secret " * 100))
    kept.close()

    opened().close()

    assert [found.text for found, _ in read(path)] == [None]
    assert b"my secret" not in b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_what_is_recorded_is_on_the_disk_after_half_a_second(opened, path):
    kept = opened()
    kept.record(entry())
    deadline = time.monotonic() + 20

    while not (path.exists() and objection(path) is None and _count(path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _count(path):
    try:
        return sum(1 for _ in read(path))
    except BadLedger:  # its tables are being made
        return 0


def test_closing_writes_everything_and_later_decisions_are_dropped(opened, path):
    kept = opened()
    for number in range(1000):
        kept.record(entry(str(number)))

    kept.close()
    kept.record(entry("late"))

    assert _count(path) == 1000
    assert kept.dropped == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # the journal is gone


async def test_a_ledger_that_is_closed_says_so(opened):
    kept = opened()
    kept.close()

    with pytest.raises(LedgerFailed):
        await kept.decision("a")


def test_only_the_operator_can_read_it(opened, path):
    opened().close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_missing_directories_are_made(tmp_path):
    Ledger.open(tmp_path / "a" / "b" / "ledger", LedgerSettings()).close()

    assert _count(tmp_path / "a" / "b" / "ledger") == 0


async def test_a_full_queue_drops_and_counts_and_nobody_waits(opened, path, monkeypatch, caplog):
    monkeypatch.setattr(ledger, "QUEUE_MAX", 3)
    kept = opened()
    held, release = threading.Event(), threading.Event()
    busy = asyncio.create_task(kept._ask(lambda _: (held.set(), release.wait())))
    await asyncio.to_thread(held.wait)

    began = time.monotonic()
    for number in range(5):
        kept.record(entry(str(number)))
    with pytest.raises(LedgerFailed):
        await kept.decision("0")
    took = time.monotonic() - began
    release.set()
    await busy
    kept.close()

    assert took < 1
    assert kept.dropped == 2
    assert _count(path) == 3
    assert "cannot keep up; 2 decisions were not kept so far" in caplog.text


async def test_a_disk_that_refuses_is_a_warning_and_later_decisions_are_kept(
    opened, path, monkeypatch, caplog
):
    kept = opened()
    assert await kept.decision("a") is None
    insert = ledger._insert

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ledger, "_insert", full)
    for id_ in "ab":
        kept.record(entry(id_))
        with pytest.raises(LedgerFailed):
            await kept.decision(id_)
    monkeypatch.setattr(ledger, "_insert", insert)
    kept.record(entry("c"))
    kept.close()

    assert [found.id for found, _ in read(path)] == ["c"]
    assert kept.dropped == 2
    (warning,) = caplog.messages  # once a minute
    assert f"{path} cannot be written: database or disk is full; 1 decisions" in warning


async def test_a_directory_that_cannot_be_written_is_a_warning_at_the_start(tmp_path, caplog):
    (tmp_path / "file").touch()

    kept = Ledger.open(tmp_path / "file" / "ledger", LedgerSettings())
    kept.record(entry())
    kept.close()

    assert "cannot be written" in caplog.text
    assert kept.dropped == 1


def test_old_decisions_go_with_what_was_said_of_them(opened, path):
    kept = opened(keep_days=1000)
    kept.record(entry("old", at=time.time() - 3 * 86_400))
    kept.record(entry("new", at=time.time() - 1 * 86_400))
    asyncio.run(kept.feedback(said("old", thumbs="up")))
    kept.close()

    opened(keep_days=2).close()

    assert [found.id for found, _ in read(path)] == ["new"]
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
    database.close()


def test_old_decisions_go_also_when_nothing_happens(opened, path, monkeypatch):
    monkeypatch.setattr(ledger, "PRUNE_S", 0.05)
    kept = opened(keep_days=1.5 / 86_400)
    kept.record(entry())
    assert asyncio.run(kept.decision("a"))
    deadline = time.monotonic() + 20

    while _count(path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_file_stays_below_its_bound_and_the_newest_stay(opened, path):
    kept = opened(keep_text=True, max_mb=1)
    for number in range(300):
        kept.record(entry(str(number), at=float(2**31 + number), text=os.urandom(5000).hex()))
    kept.close()

    ids = [int(found.id) for found, _ in read(path)]
    assert path.stat().st_size <= 1_000_000
    assert 50 < len(ids) < 150
    assert ids == list(range(300 - len(ids), 300))


def test_the_file_shrinks_when_the_bound_does(opened, path):
    kept = opened(keep_text=True, max_mb=10)
    for number in range(300):
        kept.record(entry(str(number), text=os.urandom(5000).hex()))
    kept.close()
    assert path.stat().st_size > 3_000_000

    opened(keep_text=True, max_mb=1).close()

    assert path.stat().st_size <= 1_000_000


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"nothing " * 1000, "is not a ledger (no SQLite file)"),
        ("CREATE TABLE decisions (id)", "is the database of another program"),
        (
            f"PRAGMA application_id = {ledger._APPLICATION}; PRAGMA user_version = 2; "
            "CREATE TABLE decisions (id)",
            "is the ledger of a newer version of this service: its tables have version 2, and 1",
        ),
        (None, "is a directory; expected a file"),
    ],
)
def test_a_file_that_is_something_else_is_refused_and_not_touched(path, content, why):
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        database = sqlite3.connect(path)
        database.executescript(content)
        database.close()
    before = path.read_bytes() if path.is_file() else None

    with pytest.raises(BadLedger) as caught:
        Ledger.open(path, LedgerSettings())

    assert str(caught.value).startswith(f"{path} {why}")
    assert "ledger.path" in str(caught.value)
    assert before == (path.read_bytes() if path.is_file() else None)


async def test_a_newer_version_whose_head_is_still_in_the_journal_is_not_written_to(
    opened, path, caplog
):
    opened().close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {ledger.VERSION + 1}")
    assert objection(path) is None

    kept = opened()
    kept.record(entry())
    kept.close()
    newer.close()

    assert "cannot be written: it is not a ledger of this version" in caplog.text
    assert "newer version" in objection(path)


def test_looking_at_a_ledger_leaves_nothing_beside_it(opened, path):
    opened().close()

    assert objection(path) is None
    assert list(read(path)) == []

    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_whose_making_was_cut_short_is_made_again(opened, path):
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL").fetchall()
    database.close()
    assert path.stat().st_size

    kept = opened()
    kept.record(entry())
    kept.close()

    assert _count(path) == 1


def test_reading_a_ledger_that_is_not_there_says_so(path):
    with pytest.raises(BadLedger, match=r"there is no ledger at .* yet"):
        list(read(path))


def test_a_kill_loses_no_more_than_the_last_batch_and_breaks_nothing(path):
    """The process says how far it is once a batch is on the disk, and is killed at some moment."""
    script = f"""
import asyncio, sys
from pathlib import Path
from config import LedgerSettings
from router.ledger import Ledger
from tests.router.test_ledger import entry
kept = Ledger.open(Path({str(path)!r}), LedgerSettings(keep_text=True))
async def main():
    number = 0
    while True:
        for _ in range(100):
            kept.record(entry(str(number), text="x" * 1000, at=float(2**31 + number)))
            number += 1
        await kept.decision("0")
        print(number, flush=True)
asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(20):
        line = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    written = int([line, *process.stdout.readlines()][-1])
    process.stdout.close()
    process.wait()

    ids = [int(found.id) for found, _ in read(path)]
    assert ids == list(range(len(ids)))
    assert written <= len(ids) <= written + 100
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    kept = Ledger.open(path, LedgerSettings(keep_text=True))
    kept.record(entry("after"))
    kept.close()
    assert _count(path) == len(ids) + 1


def test_a_file_that_is_deleted_meanwhile_is_made_again(opened, path, caplog):
    book = opened()
    book.record(entry("a"))
    wait_for = time.monotonic() + 10
    while not (path.exists() and _count(path)) and time.monotonic() < wait_for:
        time.sleep(0.05)
    for each in path.parent.glob("ledger.sqlite*"):
        each.unlink()

    book.record(entry("b"))
    book.close()

    assert [each.id for each, _ in read(path)] == ["b"]
    assert "was deleted, and is made again" in caplog.text


async def test_a_row_that_cannot_be_read_costs_nobody_else_anything(opened, path, caplog):
    book = opened()
    book.record(entry("a"))
    assert await book.decision("a")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE decisions SET story = '{}'")
        database.commit()

    book.record(entry("b"))
    with pytest.raises(LedgerFailed):
        await book.decision("a")

    assert (await book.decision("b")).id == "b"
    assert "has a row that cannot be read or written" in caplog.text


def test_erased_texts_are_nowhere_in_the_files(opened, path):
    opened(keep_text=True).record(entry("a", text="a secret word"))
    opened(keep_text=True).close()
    book = opened(keep_text=False)
    book.record(entry("b"))
    book.close()

    for each in path.parent.glob("ledger.sqlite*"):
        assert b"secret" not in each.read_bytes()
