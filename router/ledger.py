"""The ledger: what was decided, and what people said of it, in one SQLite file.

One thread owns the file: it writes what `Ledger.record` was given in batches, and answers what is
asked of it between two batches. So a request never waits for a disk, whoever asks sees everything
that was recorded before, and nothing here needs a lock but the list of what is to be done.

What is wrong with the file's contents is refused at the start (`objection`). What is wrong with its
disk is a warning, at the start as later: the service is there to answer, with a ledger or without.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from config import LedgerSettings
from policies import Assessment, Candidate, Task

log = logging.getLogger("axion.ledger")

VERSION = 1
"""Version of the tables, in the file's `user_version`."""

TEXT_CHARS = 20_000
"""Longest text that is kept: the classifier reads much less of it, from both of its ends."""

QUEUE_MAX = 4_000
"""Decisions that may wait to be written; more are dropped."""

BATCH_MAX = 500
"""Decisions after which a batch is written at once."""

FLUSH_S = 0.5
"""Longest that a decision waits to be written, in seconds."""

PRUNE_S = 60.0
"""Seconds between two looks for what is too old."""

WARN_S = 60.0
"""Seconds between two warnings."""

_APPLICATION = 0x4178696F
_HEAD_BYTES = 100  # https://www.sqlite.org/fileformat.html#the_database_header
_DAY_S = 86_400
_TABLES = """
CREATE TABLE decisions (
    id TEXT PRIMARY KEY,
    at REAL NOT NULL,
    model TEXT NOT NULL,
    asked TEXT NOT NULL,
    task TEXT NOT NULL,
    outcome TEXT NOT NULL,
    seconds REAL NOT NULL,
    story TEXT NOT NULL,
    text TEXT
);
CREATE INDEX decisions_by_time ON decisions (at);
CREATE TABLE feedback (
    decision_id TEXT PRIMARY KEY REFERENCES decisions (id) ON DELETE CASCADE,
    at REAL NOT NULL,
    thumbs TEXT,
    task TEXT,
    model TEXT,
    note TEXT
);
"""

T = TypeVar("T")


class Usage(Struct, frozen=True):
    """What the engine counted, in tokens."""

    prompt_tokens: int
    completion_tokens: int = 0


class Entry(Struct, frozen=True, kw_only=True):
    """One decision and how it ended.

    Attributes
    ----------
    at
        When it ended, in seconds since 1970.
    asked
        What the client asked for, aliases resolved: `auto`, `auto:NAME` or a model.
    model
        The one that answered, or should have.
    policy, version
        By which it was decided.
    rule, reason, candidates
        Those of the decision; the reason also says what came after it.
    inputs
        The models as they were then, so that the decision can be made again.
    loads, evicts
        The models that had to be loaded for it, and to leave.
    deadline_s
        When the answer was of no use any more, in seconds, or None.
    elapsed_us
        Microseconds that its steps took, by their names.
    outcome
        `ok`, the code of an error, or what else ended it.
    seconds
        From the first byte of the request to the end of the answer.
    usage
        Of the answer that was given, as the engine counted; of a stream, the estimate of the prompt
        and its events.
    escalated_from, escalated_usage
        The model whose answer was not good enough, and what it took; None where there was none.
    text
        What the classifier read; None unless `ledger.keep_text`.
    """

    id: str
    at: float
    endpoint: str
    asked: str
    model: str
    policy: str = ""
    version: str = ""
    task: Task
    rule: str | None
    reason: str
    candidates: tuple[Assessment, ...] = ()
    inputs: tuple[Candidate, ...] = ()
    loads: tuple[str, ...] = ()
    evicts: tuple[str, ...] = ()
    deadline_s: float | None = None
    elapsed_us: dict[str, int] = {}
    outcome: str
    seconds: float
    usage: Usage | None = None
    escalated_from: str | None = None
    escalated_usage: Usage | None = None
    text: str | None = None


class Feedback(Struct, frozen=True, kw_only=True):
    """What somebody said of a decision; at least one of `thumbs`, `task` and `model`.

    Attributes
    ----------
    at
        When, in seconds since 1970.
    thumbs
        `up` or `down`.
    task
        What the task really was.
    model
        The model that should have answered.
    note
        In their words; kept only with `ledger.keep_text`.
    """

    decision_id: str
    at: float
    thumbs: str | None = None
    task: str | None = None
    model: str | None = None
    note: str | None = None


class BadLedger(Exception):
    """A file cannot be used as the ledger; the message says why and what to do."""


class LedgerFailed(Exception):
    """The ledger could not do what it was asked for; the log says why."""


class _Job(Struct):
    """Something to do with the file, and who waits for it."""

    work: Callable[[sqlite3.Connection], Any]
    waiter: Future[Any] | None = None


class Ledger:
    """The ledger of a running service. Every method can be called from any thread.

    Attributes
    ----------
    keeps_text
        Whether `Entry.text` is wanted.
    dropped
        How many decisions were lost: to a full queue, or to a disk that refused them.
    """

    def __init__(self, path: Path, settings: LedgerSettings) -> None:
        self.keeps_text = settings.keep_text
        self.dropped = 0
        self._path = path
        self._settings = settings
        self._jobs: list[_Job] = []
        self._wake = threading.Condition()
        self._urgent = False
        self._closing = False
        self._database: sqlite3.Connection | None = None
        self._warned_at = -WARN_S
        self._pruned_at = -PRUNE_S
        self._reported = 0
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @classmethod
    def open(cls, path: Path, settings: LedgerSettings) -> "Ledger":
        """Return the ledger in the file at `path`, which is made if it is not there.

        Raises
        ------
        BadLedger
            There is something else at `path`, or the ledger of a newer version.
        """
        if wrong := objection(path):
            raise BadLedger(f"{path} {wrong}")
        ledger = cls(path, settings)
        ledger._thread.start()
        return ledger

    def record(self, entry: Entry) -> None:
        """Keep a decision. Never waits, and never raises."""
        if entry.text is not None and len(entry.text) > TEXT_CHARS:  # what waits is in memory
            half = TEXT_CHARS // 2
            entry = structs.replace(entry, text=f"{entry.text[:half]}\n{entry.text[-half:]}")
        with self._wake:
            if self._closing or len(self._jobs) >= QUEUE_MAX:
                self.dropped += 1
                return
            self._jobs.append(_Job(lambda database: _insert(database, entry)))
            if len(self._jobs) in (1, BATCH_MAX):
                self._wake.notify()

    async def feedback(self, given: Feedback) -> bool:
        """Keep what somebody said, in place of what was said before; False: no such decision.

        Raises
        ------
        LedgerFailed
        """
        if not self.keeps_text:
            given = structs.replace(given, note=None)
        return await self._ask(lambda database: _judge(database, given))

    async def decision(self, decision_id: str) -> Entry | None:
        """Return a decision, or None when there is none of that id.

        Raises
        ------
        LedgerFailed
        """
        return await self._ask(lambda database: _find(database, decision_id))

    def close(self) -> None:
        """Write what is to be written, and close the file."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    async def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        waiter: Future[T] = Future()
        with self._wake:
            if self._closing or len(self._jobs) >= QUEUE_MAX:
                raise LedgerFailed
            self._jobs.append(_Job(work, waiter))
            self._urgent = True
            self._wake.notify()
        return await asyncio.wrap_future(waiter)

    # --- in the ledger's thread -----------------------------------------------------------------

    def _run(self) -> None:
        self._do([])  # so that trouble with the disk is known at once
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._jobs or self._closing, PRUNE_S)
                self._wake.wait_for(
                    lambda: self._urgent or self._closing or len(self._jobs) >= BATCH_MAX, FLUSH_S
                )
                jobs, self._jobs = self._jobs, []
                self._urgent = False
                closing = self._closing
            if jobs or not closing:
                self._do(jobs)
                continue
            if self._database is not None:
                self._database.close()
            return

    def _do(self, jobs: list[_Job]) -> None:
        """Do a batch in one transaction, and tell those who wait for it once it is on the disk."""
        # A waiter that was cancelled has left; from here on none can.
        jobs = [job for job in jobs if not job.waiter or job.waiter.set_running_or_notify_cancel()]
        try:
            if self._database is not None and not self._path.exists():
                self._warn("was deleted, and is made again")
                self._database.close()
                self._database = None
            if self._database is None:
                self._database = _connect(self._path, self._settings)
            with _transaction(self._database):
                answers = [_attempt(job, self._database) for job in jobs]
        except Exception as error:  # a row that cannot be written must not end the thread
            self._give_up(jobs, f"cannot be written: {error}")
            return
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Exception):
                self._give_up([job], f"has a row that cannot be read or written: {answer}")
            elif job.waiter:
                job.waiter.set_result(answer)
        if self.dropped > self._reported:
            self._warn("cannot keep up")
        try:
            self._prune(self._database)
        except sqlite3.Error as error:
            self._warn(f"cannot be shortened: {error}")

    def _give_up(self, jobs: list[_Job], why: str) -> None:
        """Count the decisions that are lost, and tell those who wait for the others."""
        self.dropped += sum(job.waiter is None for job in jobs)
        self._warn(why)
        for job in jobs:
            if job.waiter:
                job.waiter.set_exception(LedgerFailed())

    def _warn(self, what: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARN_S:
            self._warned_at = now
            self._reported = self.dropped
            log.warning(
                "the ledger %s %s; %d decisions were not kept so far. Requests go on; look at the "
                "disk, or leave out ledger.path.",
                self._path,
                what,
                self.dropped,
            )

    def _prune(self, database: sqlite3.Connection) -> None:
        """Erase what is too old or too much, and give its place back to the disk."""
        erased = 0
        now = time.monotonic()
        if now - self._pruned_at >= PRUNE_S:
            self._pruned_at = now
            oldest = time.time() - self._settings.keep_days * _DAY_S
            erased += database.execute("DELETE FROM decisions WHERE at < ?", (oldest,)).rowcount
        while _bytes(database) > self._settings.max_mb * 1_000_000:
            (count,) = database.execute("SELECT count(*) FROM decisions").fetchone()
            if not count:
                break
            erased += database.execute(
                "DELETE FROM decisions WHERE rowid IN "
                "(SELECT rowid FROM decisions ORDER BY at LIMIT ?)",
                (max(1, count // 10),),
            ).rowcount
        if erased:
            # A script, because each step of this pragma frees one page and `execute` makes one.
            database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")


def ledger_path(settings: LedgerSettings, base: Path) -> Path | None:
    """Return where the ledger of a configuration in `base` is, or None when it keeps none."""
    return None if settings.path is None else base / os.path.expanduser(settings.path)


def objection(path: Path) -> str | None:
    """Return why the file at `path` cannot be the ledger, or None: it can, or there is none yet.

    Trouble with its disk is no objection.
    """
    what_to_do = "Name another file in ledger.path, or move this one away"
    try:
        with path.open("rb") as file:  # SQLite would leave files of its own beside it
            head = file.read(_HEAD_BYTES)
    except IsADirectoryError:
        return f"is a directory; expected a file. {what_to_do}"
    except (OSError, ValueError):
        return None
    if not head:
        return None
    if len(head) < _HEAD_BYTES or not head.startswith(b"SQLite format 3\0"):
        return f"is not a ledger (no SQLite file). {what_to_do}"
    changes, version, application = (struct.unpack_from(">I", head, at)[0] for at in (40, 60, 68))
    if not changes:  # it has no tables: its making was cut short
        return None
    if application != _APPLICATION:
        return f"is the database of another program. {what_to_do}"
    if version > VERSION:
        return (
            f"is the ledger of a newer version of this service: its tables have version {version}, "
            f"and {VERSION} is known here. Update the service, or name another file in ledger.path"
        )
    return None


def read(path: Path) -> Iterator[tuple[Entry, Feedback | None]]:
    """Yield every decision in a file with what was said of it, oldest first.

    A service may be writing to it meanwhile.

    Raises
    ------
    BadLedger
        The file cannot be read, or is no ledger.
    """
    if not path.exists():
        raise BadLedger(f"there is no ledger at {path} yet; the service makes it when it runs")
    if wrong := objection(path):
        raise BadLedger(f"{path} {wrong}")
    query = (
        f"SELECT {_ENTRY}, {_FEEDBACK} FROM decisions "  # noqa: S608 - names of our own
        "LEFT JOIN feedback ON decision_id = id ORDER BY decisions.at, id"
    )
    try:
        # Not read-only: the last one to close the file puts its journal away.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            for row in database.execute(query):
                said = row[_ENTRY_WIDTH:]
                yield (
                    _entry(row[:_ENTRY_WIDTH]),
                    _feedback(said) if said[0] is not None else None,
                )
    except sqlite3.Error as error:
        raise BadLedger(f"{path} cannot be read: {error}") from None


# --- SQL ----------------------------------------------------------------------------------------

_OWN_COLUMNS = ("id", "at", "model", "asked", "outcome", "seconds", "text")
"""The fields of `Entry` that have a column of their own; `story` has the others."""

_STORY = [name for name in Entry.__struct_fields__ if name not in _OWN_COLUMNS]
_ENTRY = ", ".join(f"decisions.{name}" for name in ("story", *_OWN_COLUMNS))
_ENTRY_WIDTH = 1 + len(_OWN_COLUMNS)
_FEEDBACK = ", ".join(f"feedback.{name}" for name in Feedback.__struct_fields__)


def _connect(path: Path, settings: LedgerSettings) -> sqlite3.Connection:
    """Return a connection to write with; make the file and its tables if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # What people wrote is for the operator alone.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    database = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        if _marks(database) == (0, 0):  # before the first table, else it has no effect
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("PRAGMA secure_delete = ON")
        database.execute("PRAGMA journal_size_limit = 4000000")
        with _transaction(database):
            marks = _marks(database)
            if marks == (0, 0):
                for statement in filter(str.strip, _TABLES.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                database.execute(f"PRAGMA user_version = {VERSION}")
            elif marks != (_APPLICATION, VERSION):  # its head was still in the journal
                raise sqlite3.DatabaseError("it is not a ledger of this version")
            if not settings.keep_text:
                database.execute("UPDATE decisions SET text = NULL WHERE text IS NOT NULL")
                database.execute("UPDATE feedback SET note = NULL WHERE note IS NOT NULL")
        if not settings.keep_text:
            # What was erased is still in the journal until that is emptied.
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except BaseException:
        database.close()
        raise
    return database


def _attempt(job: _Job, database: sqlite3.Connection) -> Any:
    """Return what a job returns, or what is wrong with its row; trouble with the disk is raised."""
    try:
        return job.work(database)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
        return error


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # of some errors SQLite has done so itself
            database.execute("ROLLBACK")
        raise


def _marks(database: sqlite3.Connection) -> tuple[int, int]:
    """Return whose file it is, and the version of its tables; (0, 0) for a new one."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return application, version


def _bytes(database: sqlite3.Connection) -> int:
    """Return the size of the file once its free pages are given back."""
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    (free,) = database.execute("PRAGMA freelist_count").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * page_bytes)


def _insert(database: sqlite3.Connection, entry: Entry) -> None:
    story = msgspec.json.encode({name: getattr(entry, name) for name in _STORY}).decode()
    # Half of a character is no UTF-8.
    text = None if entry.text is None else entry.text.encode("utf-8", "replace").decode()
    database.execute(
        "INSERT OR IGNORE INTO decisions (id, at, model, asked, task, outcome, seconds, story, "
        "text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.id,
            entry.at,
            entry.model,
            entry.asked,
            entry.task.label,
            entry.outcome,
            entry.seconds,
            story,
            text,
        ),
    )


def _judge(database: sqlite3.Connection, given: Feedback) -> bool:
    known = database.execute("SELECT 1 FROM decisions WHERE id = ?", (given.decision_id,))
    if not known.fetchone():
        return False
    database.execute(
        "REPLACE INTO feedback (decision_id, at, thumbs, task, model, note) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        structs.astuple(given),
    )
    return True


def _find(database: sqlite3.Connection, decision_id: str) -> Entry | None:
    row = database.execute(
        f"SELECT {_ENTRY} FROM decisions WHERE id = ?",  # noqa: S608 - names of our own
        (decision_id,),
    ).fetchone()
    return None if row is None else _entry(row)


def _entry(row: tuple[Any, ...]) -> Entry:
    story, *own = row
    fields = {**msgspec.json.decode(story), **dict(zip(_OWN_COLUMNS, own, strict=True))}
    return msgspec.convert(fields, Entry)


def _feedback(row: tuple[Any, ...]) -> Feedback:
    return Feedback(**dict(zip(Feedback.__struct_fields__, row, strict=True)))
