"""What every engine promises, whatever runs inside it."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from msgspec import Struct

Endpoint = Literal["chat", "completions"]
"""What is asked of an engine: `/v1/chat/completions` or `/v1/completions`."""


class Answer(Struct, frozen=True):
    """A whole reply: the JSON body of OpenAI's response object."""

    body: bytes


class Stream(Struct, frozen=True):
    """A streamed reply: server-sent events, each complete with its blank line.

    The last event is `data: [DONE]`. Closing `events` aborts the generation.
    A failure on the way is raised from the iteration as `Refused` or `EngineFailed`, never written
    into the stream.
    """

    events: AsyncGenerator[bytes, None]


Reply = Answer | Stream


class Refused(Exception):
    """The engine will not run this request, and the client can mend it.

    Attributes
    ----------
    message
        What is wrong and what to do; never contains the client's text.
    param
        The field at fault, as OpenAI names it, or None.
    code
        OpenAI's error code, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class EngineFailed(Exception):
    """The engine broke; the request was not the reason. The message is one sentence."""


class Engine(Protocol):
    """A loaded model."""

    @property
    def failure(self) -> str | None:
        """Why this engine can never answer again, in one clause; None while it is sound."""

    @property
    def running(self) -> int:
        """How many requests the engine computes or has queued inside."""

    @property
    def max_model_len(self) -> int:
        """Largest context, prompt plus answer, in tokens."""

    @property
    def pids(self) -> list[int]:
        """The processes of its own that it runs in."""

    def use_threads(self, count: int) -> None:
        """Compute with this many threads from now on; others are busy, or no longer."""

    async def generate(self, endpoint: Endpoint, body: bytes, request_id: str) -> Reply:
        """Answer the JSON request in `body`.

        Returns a `Stream` if and only if the body says `"stream": true`.
        Cancelling the call, or closing the stream, aborts the work inside the engine.

        Raises
        ------
        Refused
            The request cannot be run as it is.
        EngineFailed
            The engine died; `failure` is set from then on.
        """

    async def close(self) -> None:
        """Abort what runs and give the memory back. Idempotent, never raises."""
