"""The story of one request: parse, describe, decide, admit, generate, record."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator

import msgspec
from msgspec import Struct, structs

from config import AUTO, Settings
from engines.pool import Pool
from engines.protocol import Answer, Refused, Reply, Stream
from engines.words import Ticket
from policies import Decision, Task, Undecidable, decide, unable
from router.catalogue import Catalogue
from router.classifier import Classifier
from router.describe import describe, subject
from router.errors import ApiError, new_id, translate
from router.ledger import Entry, Ledger, Usage
from router.parse import parse
from router.shutdown import Shutdown
from router.words import Endpoint, Request

log = logging.getLogger("axion.request")

QUIET_S = 0.25
"""A stream that has not begun after this long begins with comments, so that nobody times out."""

COMMENT_S = 3.0
"""Seconds between two comments."""


class Record(Struct, kw_only=True):
    """The biography of one request; no text of the client's is in it, but for `text`.

    Attributes
    ----------
    model, reason
        Those of the decision, and then of what became of it.
    task, decision
        None until they are made.
    usage
        What the engine counted, where that is known.
    text
        What the classifier read; None unless the operator has it kept.
    ledger
        Where it goes when it is closed, or None.
    """

    id: str
    endpoint: Endpoint
    began: float
    asked: str = "?"
    model: str = "-"
    reason: str = ""
    task: Task | None = None
    decision: Decision | None = None
    usage: Usage | None = None
    text: str | None = None
    outcome: str = "running"
    ledger: Ledger | None = None

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
        """Write the story into the log, as one line, and into the ledger. The first call counts."""
        if self.outcome == "running":
            self.outcome = outcome
            seconds = time.monotonic() - self.began
            log.info(
                "%s %s %s -> %s: %s in %.2f s (%s)",
                self.id,
                self.endpoint,
                self.asked,
                self.model,
                outcome,
                seconds,
                self.reason or "not decided",
            )
            if self.ledger and self.task and self.decision:
                entry = Entry(
                    id=self.id,
                    at=time.time(),
                    endpoint=self.endpoint,
                    asked=self.asked,
                    model=self.model,
                    task=self.task,
                    rule=self.decision.rule,
                    reason=self.reason,
                    excluded=self.decision.excluded,
                    outcome=outcome,
                    seconds=round(seconds, 3),
                    usage=self.usage,
                    text=self.text,
                )
                self.ledger.record(entry)


class _Counted(Struct):
    usage: Usage | None = None


_counted = msgspec.json.Decoder(_Counted)


def _usage(body: bytes) -> Usage | None:
    """Return what an answer says of its tokens, if it does."""
    with contextlib.suppress(msgspec.DecodeError):
        return _counted.decode(body).usage
    return None


class Dispatcher:
    """Takes requests from bytes to replies.

    Parameters
    ----------
    ledger
        Where decisions are kept, or None.
    """

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        classifier: Classifier,
        pool: Pool,
        shutdown: Shutdown,
        ledger: Ledger | None,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._classifier = classifier
        self._pool = pool
        self._shutdown = shutdown
        self._ledger = ledger

    def record(self, endpoint: Endpoint) -> Record:
        """Open the story of a request."""
        return Record(id=new_id(), endpoint=endpoint, began=time.monotonic(), ledger=self._ledger)

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
        task = describe(request, self._classifier)
        decision = self._decide(record.asked, request, task)
        record.task, record.decision = task, decision
        record.model, record.reason = decision.model, decision.reason
        if self._ledger and self._ledger.keeps_text:
            record.text = subject(request.turns)
        if log.isEnabledFor(logging.DEBUG):  # names and numbers; no text of the client's
            whole = {"task": task, "decision": decision}
            log.debug("%s %s", record.id, msgspec.json.encode(whole).decode())
        self._pool.check(decision.model, record.endpoint, body)
        if decision.loads is not None:
            self._pool.begin_load(decision.loads)
        story = _Story(record, body, request, task, caller)

        held = contextlib.AsyncExitStack()
        work = asyncio.create_task(self._begin(story, held))
        resources.push_async_callback(_end, work, held)
        if request.stream:
            await asyncio.wait({work}, timeout=QUIET_S)
            if not work.done():
                company = self._company(story, work)
                resources.push_async_callback(company.aclose)
                return self._stream(record, company, resources)
        reply = await work
        if not isinstance(reply, Answer):
            return self._stream(record, reply, resources)
        if self._ledger:
            record.usage = _usage(reply.body)
        return reply

    async def _begin(
        self, story: "_Story", held: contextlib.AsyncExitStack
    ) -> Answer | AsyncGenerator[bytes, None]:
        """Return the answer, or the events of a stream whose first one is there."""
        record = story.record
        while True:
            engine = await held.enter_async_context(self._pool.lease(story.ticket))
            try:
                reply = await engine.generate(record.endpoint, story.body, record.id)
                if isinstance(reply, Answer):
                    return reply
                held.push_async_callback(reply.events.aclose)
                events = _after(await anext(reply.events), reply.events)
                held.push_async_callback(events.aclose)
                return events
            except Refused as refused:
                if refused.code != "context_length_exceeded":
                    raise
                larger = self._larger(story)
                if larger is None:
                    raise story.too_long(refused) from None
                await held.aclose()  # else two models would be held at a time
                record.reason += f"; {record.model} counted more than its context -> {larger}"
                record.model = larger
                story.ticket = story.new_ticket()

    def _larger(self, story: "_Story") -> str | None:
        """Return the next model for an `auto` request that was too long for one, or None.

        Every model counts with its own vocabulary, and only it knows the number.
        """
        if story.record.asked != AUTO:
            return None
        statuses = self._pool.snapshots()
        tried = self._catalogue.candidate(story.record.model, statuses).max_model_len
        larger = [
            each for each in self._catalogue.candidates(statuses) if each.max_model_len > tried
        ]
        with contextlib.suppress(Undecidable):
            return decide(story.task, larger, self._settings.routing).model if larger else None
        return None

    async def _company(
        self, story: "_Story", work: "asyncio.Task[Answer | AsyncGenerator[bytes, None]]"
    ) -> AsyncGenerator[bytes, None]:
        """Yield comments until the stream begins, and then the stream."""
        while not work.done():
            yield f": {self._pool.waits_for(story.ticket)}\n\n".encode()
            await asyncio.wait({work}, timeout=COMMENT_S)
        events = work.result()
        assert not isinstance(events, Answer)  # noqa: S101 - the request says `stream`
        async for event in events:
            yield event

    def _stream(
        self,
        record: Record,
        events: AsyncGenerator[bytes, None],
        resources: contextlib.AsyncExitStack,
    ) -> Stream:
        guarded = self._guarded(record, events)
        resources.push_async_callback(guarded.aclose)
        return Stream(guarded)

    async def _guarded(
        self, record: Record, events: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Pass a stream on; end it as the API promises when the engine fails or the service stops.

        Never raises: after the first byte the status is gone, so a failure becomes an error event.
        """
        try:
            while True:
                async with self._shutdown.limit():
                    event = await anext(events, None)
                if event is None:
                    break
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


class _Story:
    """A request on its way from the decision to the answer.

    Attributes
    ----------
    ticket
        Its place in the queue of `record.model`.
    """

    def __init__(
        self, record: Record, body: bytes, request: Request, task: Task, caller: str
    ) -> None:
        self.record = record
        self.body = body
        self.task = task
        self._request = request
        # Neither keys nor names are kept.
        self._group = str(hash((caller, request.user)))
        self.ticket = self.new_ticket()

    def new_ticket(self) -> Ticket:
        """Return a ticket for `record.model`."""
        deadline = None
        if self._request.deadline_ms is not None:
            deadline = self.record.began + self._request.deadline_ms / 1000
        return Ticket(
            self.record.model,
            group=self._group,
            priority=self._request.priority,
            deadline=deadline,
        )

    def too_long(self, refused: Refused) -> Refused:
        """Return the refusal of a prompt that is too long, with both numbers and what to do."""
        return Refused(
            f"{refused.message} The whole prompt is about {self.task.prompt_tokens} tokens. "
            "Shorten it, or choose a model with a longer context; GET /v1/models lists them.",
            param=refused.param,
            code=refused.code,
        )


async def _end(work: asyncio.Task[object], held: contextlib.AsyncExitStack) -> None:
    """Stop what is under way for a request, and then give back what it holds."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await held.aclose()


async def _after(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for event in events:
        yield event
