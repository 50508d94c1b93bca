"""The story of one request: parse, describe, decide, admit, generate."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator

import msgspec
from msgspec import Struct, structs

from config import AUTO, Settings
from engines.pool import Pool
from engines.protocol import Answer, Refused, Reply, Stream
from engines.words import Ticket
from policies import Decision, Task, Undecidable, decide, unable
from router.catalogue import Catalogue
from router.describe import describe
from router.errors import ApiError, translate
from router.parse import parse
from router.words import Endpoint, Request

log = logging.getLogger("axion.request")

QUIET_S = 0.25
"""A stream that has not begun after this long begins with comments, so that nobody times out."""

COMMENT_S = 3.0
"""Seconds between two comments."""


class Record(Struct, kw_only=True):
    """The biography of one request; no text of the client's is in it."""

    id: str
    endpoint: Endpoint
    began: float
    asked: str = "?"
    model: str = "-"
    reason: str = ""
    outcome: str = "running"

    def headers(self) -> dict[str, str]:
        """Return the headers that every answer carries, as far as the story has gone."""
        known = {
            "x-request-id": self.id,
            "x-axion-decision": self.id,
            "x-axion-model": self.model if self.model != "-" else "",
            "x-axion-reason": self.reason,
        }
        # An alias may have any character; a header may not.
        return {name: ascii(value)[1:-1] for name, value in known.items() if value}

    def close(self, outcome: str) -> None:
        """Write the story's one line into the log. The first call counts."""
        if self.outcome == "running":
            self.outcome = outcome
            log.info(
                "%s %s %s -> %s: %s in %.2f s (%s)",
                self.id,
                self.endpoint,
                self.asked,
                self.model,
                outcome,
                time.monotonic() - self.began,
                self.reason or "not decided",
            )


class Dispatcher:
    """Takes requests from bytes to replies."""

    def __init__(self, settings: Settings, catalogue: Catalogue, pool: Pool) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._pool = pool

    @staticmethod
    def record(endpoint: Endpoint) -> Record:
        """Open the story of a request."""
        return Record(id=uuid.uuid4().hex[:24], endpoint=endpoint, began=time.monotonic())

    async def dispatch(
        self, record: Record, body: bytes, caller: str, resources: contextlib.AsyncExitStack
    ) -> Reply:
        """Answer the request in `body`.

        What must be given back when the request is over, however it ends, is put on `resources`.
        A whole answer is there when this returns. So is the first event of a stream, so that a
        failure before it gets its proper status; but after `QUIET_S` seconds without one the stream
        begins with comments that say what it waits for, and a failure becomes an error event.

        Parameters
        ----------
        caller
            Who asks; callers take turns where there is a queue.

        Raises
        ------
        ApiError, Refused, EngineFailed, Unavailable
            See `router.errors.translate`.
        """
        request = parse(record.endpoint, body)
        record.asked = self._catalogue.resolve(request.model)
        task = describe(request)
        decision = self._decide(record.asked, request, task)
        record.model, record.reason = decision.model, decision.reason
        if log.isEnabledFor(logging.DEBUG):  # names and numbers; no text of the client's
            whole = {"task": task, "decision": decision}
            log.debug("%s %s", record.id, msgspec.json.encode(whole).decode())
        if decision.loads is not None:
            self._pool.begin_load(decision.loads)
        ticket = _ticket(decision.model, request, caller, record)

        held = contextlib.AsyncExitStack()
        work = asyncio.create_task(self._begin(record, body, request, task, ticket, held))
        resources.push_async_callback(_end, work, held)
        if request.stream:
            await asyncio.wait({work}, timeout=QUIET_S)
            if not work.done():
                return _stream(record, self._company(ticket, work), resources)
        reply = await work
        return reply if isinstance(reply, Answer) else _stream(record, reply, resources)

    async def _begin(
        self,
        record: Record,
        body: bytes,
        request: Request,
        task: Task,
        ticket: Ticket,
        held: contextlib.AsyncExitStack,
    ) -> Answer | AsyncGenerator[bytes, None]:
        """Return the answer, or the events of a stream whose first one is there."""
        engine = await held.enter_async_context(self._pool.lease(ticket))
        try:
            reply = await engine.generate(record.endpoint, body, record.id)
            if isinstance(reply, Answer):
                return reply
            held.push_async_callback(reply.events.aclose)
            return _after(await anext(reply.events), reply.events)
        except Refused as refused:
            raise _with_both_numbers(refused, request, task, engine.max_model_len) from None

    async def _company(
        self, ticket: Ticket, work: "asyncio.Task[Answer | AsyncGenerator[bytes, None]]"
    ) -> AsyncGenerator[bytes, None]:
        """Yield comments until the stream begins, and then the stream."""
        while not work.done():
            yield f": {self._pool.waits_for(ticket)}\n\n".encode()
            await asyncio.wait({work}, timeout=COMMENT_S)
        events = work.result()
        assert not isinstance(events, Answer)  # noqa: S101 - the request says `stream`
        async for event in events:
            yield event

    def _decide(self, asked: str, request: Request, task: Task) -> Decision:
        statuses = self._pool.snapshots()
        try:
            if asked == AUTO:
                decision = decide(
                    task, self._catalogue.candidates(statuses), self._settings.routing
                )
                via = f"alias {request.model}; " if request.model != AUTO else ""
                return structs.replace(decision, reason=via + decision.reason)
            if refusal := unable(task, self._catalogue.candidate(asked, statuses)):
                raise refusal
        except Undecidable as refusal:
            param = refusal.param
            if param == "messages" and request.endpoint == "completions":
                param = "prompt"
            raise ApiError(refusal.message, refusal.code, param=param) from None
        via = "named by the client" if request.model == asked else f"alias {request.model}"
        return Decision(model=asked, reason=f"{via} -> {asked}", rule=None)


def _with_both_numbers(
    refused: Refused, request: Request, task: Task, max_model_len: int
) -> Refused:
    """Return the refusal of a request that is too long with the limit and what was asked."""
    if refused.code != "context_length_exceeded":
        return refused
    field = "messages" if request.endpoint == "chat" else "prompt"
    if request.output_tokens >= max_model_len:
        field = "max_tokens"
    return Refused(
        # Clients look for the first words of this sentence.
        f"This model's maximum context length is {max_model_len} tokens. However, you asked for "
        f"about {task.prompt_tokens + request.output_tokens} tokens (about {task.prompt_tokens} in "
        f"the {'messages' if request.endpoint == 'chat' else 'prompt'}, {request.output_tokens} "
        "in the completion). Shorten the prompt, ask for fewer tokens, or choose a model with a "
        "longer context.",
        param=field,
        code="context_length_exceeded",
    )


def _ticket(model: str, request: Request, caller: str, record: Record) -> Ticket:
    deadline = None
    if request.deadline_ms is not None:
        deadline = record.began + request.deadline_ms / 1000
    # Neither keys nor names are kept.
    group = str(hash((caller, request.user)))
    return Ticket(model, group=group, priority=request.priority, deadline=deadline)


async def _end(work: asyncio.Task[object], held: contextlib.AsyncExitStack) -> None:
    """Stop what is under way for a request, and then give back what it holds."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await held.aclose()


async def _after(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for event in events:
        yield event


def _stream(
    record: Record, events: AsyncGenerator[bytes, None], resources: contextlib.AsyncExitStack
) -> Stream:
    resources.push_async_callback(events.aclose)
    guarded = _guarded(record, events)
    resources.push_async_callback(guarded.aclose)
    return Stream(guarded)


async def _guarded(
    record: Record, events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """Pass a stream on; end it as the API promises when the engine fails on the way.

    Never raises: after the first byte the status is gone, so a failure becomes an error event.
    """
    try:
        async for event in events:
            yield event
    except Exception as error:
        api_error = translate(error)
        if api_error.code == "internal_error":
            log.exception("%s: a stream broke", record.id)
        record.close(api_error.code)
        yield b"data: " + api_error.envelope() + b"\n\n"
        yield b"data: [DONE]\n\n"
    else:
        record.close("ok")
