"""The words of the life cycle: what is asked, what is to be done, and how a model looks."""

from typing import Literal

from msgspec import Struct

State = Literal["cold", "loading", "ready", "draining", "failed"]


class Unavailable(Exception):
    """The model cannot take this request now; later it may.

    Attributes
    ----------
    message
        Why, in one sentence.
    code
        `queue_full`, `queue_timeout`, `load_failed`, `load_timeout`, `no_memory`,
        `deadline_exceeded` or `shutting_down`.
    retry_after_s
        When to try again, in seconds.
    """

    def __init__(self, message: str, code: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_after_s = max(retry_after_s, 1.0)


class Ticket(Struct, eq=False):
    """One request's place, from asking until it is over.

    Attributes
    ----------
    group
        Whose request it is; groups take turns.
    priority
        Smaller goes first.
    deadline
        On the machine's clock: from then on waiting is of no use. None: `load_wait_s` alone.
    preload
        Nobody's request but the operator's wish: no other model has to leave for it, no queue is
        too full for it, and it waits as long as the load takes.
    """

    model: str
    group: str = ""
    priority: int = 0
    deadline: float | None = None
    preload: bool = False
    asked_at: float = 0.0
    granted_at: float | None = None
    rank: tuple[int, float, int] = (0, 0.0, 0)


class Locate(Struct, frozen=True):
    """Find the model's files and what it will take; answer with `located` or `failed`."""

    model: str


class Start(Struct, frozen=True):
    """Start the engine; answer with `started` or `failed`."""

    model: str


class Stop(Struct, frozen=True):
    """Stop the engine; answer with `stopped`. `why` is a clause for the log."""

    model: str
    why: str


class Grant(Struct, frozen=True):
    """The ticket's request may run now, until `leave`."""

    ticket: Ticket


class Refuse(Struct, frozen=True):
    """The ticket is not served, and forgotten here."""

    ticket: Ticket
    reason: Unavailable


Effect = Locate | Start | Stop | Grant | Refuse


class Snapshot(Struct, frozen=True, kw_only=True):
    """A model as it looks now.

    Attributes
    ----------
    waiting, running
        Requests that wait for it, and that run on it.
    footprint_bytes
        What it takes when loaded, or 0 while that is not known.
    failure
        Why it failed, in one clause, or None.
    retry_in_s
        For how long a model that failed is not tried again, in seconds; 0: the next request does.
    load_s
        What its last load took, in seconds, or None before the first.
    arrivals_per_min
        How often it was asked for lately.
    loads
        How many times it was loaded; what it had in its cache before a load is gone.
    load_in_s
        Seconds until it could be in memory; 0 if it is.
    queue_s
        Seconds from then on until it has a free place for one more.
    evicts
        Models that would have to leave for it now.
    displacement_s
        Seconds that this is expected to cost those who want them soon.
    """

    model: str
    state: State
    waiting: int
    running: int
    footprint_bytes: int
    failure: str | None
    retry_in_s: float
    load_s: float | None
    arrivals_per_min: float
    loads: int = 0
    load_in_s: float = 0.0
    queue_s: float = 0.0
    evicts: tuple[str, ...] = ()
    displacement_s: float = 0.0

    @property
    def held(self) -> int:
        """Requests that wait for it or run on it."""
        return self.waiting + self.running
