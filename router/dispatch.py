"""The story of one request: parse, describe, decide, admit, generate, record."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping

import msgspec
from msgspec import Struct

from engines.pool import Pool
from engines.protocol import Answer, EngineFailed, Refused, Reply, Stream
from engines.words import Ticket, Unavailable
from policies import Candidate
from router.choose import Choice, Chooser
from router.conversations import Conversations, Place
from router.errors import translate
from router.escalation import exam_of
from router.forecast import Forecast
from router.journal import Journal, Record
from router.ledger import Usage
from router.parse import parse
from router.shutdown import Shutdown

log = logging.getLogger("axion.request")

QUIET_S = 0.25
"""A stream that has not begun after this long begins with comments, so that nobody times out."""

COMMENT_S = 3.0
"""Seconds between two comments."""


READER_SHARE = 0.2
"""Of the time of a stream that its reader may take, else it says nothing of the model's speed."""


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
    conversations, forecast
        Learn from each answer, for the choices after it.
    journal
        Where the stories end.
    """

    def __init__(
        self,
        chooser: Chooser,
        conversations: Conversations,
        forecast: Forecast,
        journal: Journal,
        pool: Pool,
        shutdown: Shutdown,
    ) -> None:
        self._chooser = chooser
        self._conversations = conversations
        self._forecast = forecast
        self._journal = journal
        self._pool = pool
        self._shutdown = shutdown

    async def dispatch(
        self,
        record: Record,
        body: bytes,
        headers: Mapping[str, str],
        caller: str,
        resources: contextlib.AsyncExitStack,
    ) -> Reply:
        """Answer the request in `body`.

        What must be given back when the request is over, however it ends, is put on `resources`.
        A whole answer is there when this returns. So is the first event of a stream, so that a
        failure before it gets its proper status; but after `QUIET_S` seconds without one the stream
        begins with comments that say what it waits for, and a failure becomes an error event.

        Parameters
        ----------
        headers
            Of the request, by lower-case name.
        caller
            Who asks; callers take turns where there is a queue.

        Raises
        ------
        ApiError, Refused, EngineFailed, Unavailable
            See `router.errors.translate`.
        """
        began = time.perf_counter()
        request = parse(record.endpoint, body)
        record.parse_us = 1e6 * (time.perf_counter() - began)
        record.asked = self._chooser.resolve(request.model)
        choice = record.choice = self._chooser.choose(request, headers)
        decision = choice.decision
        record.model, record.reason = decision.model, decision.reason
        if log.isEnabledFor(logging.DEBUG):  # names and numbers; no text of the client's
            whole = {"task": choice.task, "decision": decision}
            log.debug("%s %s", record.id, msgspec.json.encode(whole).decode())
        self._pool.check(decision.model, record.endpoint, body)
        if decision.loads is not None:
            self._pool.begin_load(decision.loads)
        story = _Story(record, body, choice, caller)

        held = contextlib.AsyncExitStack()
        work = asyncio.create_task(self._answer(story, held))
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
        return reply

    async def _answer(
        self, story: "_Story", held: contextlib.AsyncExitStack
    ) -> Answer | AsyncGenerator[bytes, None]:
        """Return what `_begin` does, or a better model's answer where that is not good enough."""
        record, body = story.record, story.body
        exam = exam_of(story.choice, body)
        if exam is None:
            return await self._begin(story, held)
        story.body = exam.question(body)
        first = await self._begin(story, held)
        assert isinstance(first, Answer)  # noqa: S101 - streams are not examined
        doubt = exam.doubt(first.body)
        first = Answer(exam.reply(first.body))
        if doubt is None:
            return first
        spent_s = time.monotonic() - record.began
        better = self._chooser.better(story.choice, record.model, story.tried, spent_s)
        record.reason += f"; unsure ({doubt})"
        if better is None:
            record.reason += ", but no better model can answer in time"
            return first
        await held.aclose()  # else two models would be held at a time
        record.reason += f" -> {better}"
        answered, usage = record.model, record.usage
        story.turn_to(better, story.choice.deadline_s)
        story.body = body
        try:
            second = await self._attempt(story, held)
        except (Refused, EngineFailed, Unavailable) as failure:
            record.reason += f"; {better} {_clause(failure)}: the first answer is given"
            record.model, record.usage = answered, usage
            await held.aclose()
            return first
        record.escalated_from, record.escalated_usage = answered, usage
        return second

    async def _begin(
        self, story: "_Story", held: contextlib.AsyncExitStack
    ) -> Answer | AsyncGenerator[bytes, None]:
        """Return the answer, or the events of a stream whose first one is there.

        What fails before that is tried on other models, as far as the client left the choice.
        """
        record = story.record
        first_failure: EngineFailed | Unavailable | None = None
        while True:
            try:
                return await self._attempt(story, held)
            except Refused as refused:
                if refused.code != "context_length_exceeded":
                    raise
                next_model = self._next(story, longer_than=story.candidate.max_model_len)
                if next_model is None:
                    raise story.too_long(refused) from None
                why = "counted more than its context"
            except (EngineFailed, Unavailable) as failure:
                next_model = self._next(story) if story.may_turn(failure) else None
                first_failure = first_failure or failure
                if next_model is None:
                    raise first_failure from None  # of the model that should have answered
                why = _clause(failure)
            await held.aclose()  # else two models would be held at a time
            record.reason += f"; {record.model} {why} -> {next_model}"
            story.turn_to(next_model)

    async def _attempt(
        self, story: "_Story", held: contextlib.AsyncExitStack
    ) -> Answer | AsyncGenerator[bytes, None]:
        """Return what the story's model answers; a stream's first event is there."""
        record = story.record
        record.attempts += 1
        engine = await held.enter_async_context(self._pool.lease(story.ticket))
        status = next(each for each in self._pool.snapshots() if each.model == record.model)
        timing = _Timing(self._forecast, story, status.running - 1)
        reply = await engine.generate(record.endpoint, story.body, record.id)
        if isinstance(reply, Answer):
            record.usage = _usage(reply.body)
            timing.whole(record.usage)
            self._note(story, status.loads)
            return reply
        held.push_async_callback(reply.events.aclose)
        events = timing.watch(await anext(reply.events), reply.events)
        held.push_async_callback(events.aclose)
        self._note(story, status.loads)
        return events

    def _next(self, story: "_Story", longer_than: int = 0) -> str | None:
        """Return the next model for a request whose model could not answer it, or None.

        Every model counts with its own vocabulary, and only it knows the number.
        """
        if not story.choice.is_free:
            return None
        tried = [*story.tried, story.record.model]
        spent_s = time.monotonic() - story.record.began
        return self._chooser.again(story.choice, tried, spent_s, longer_than)

    def _note(self, story: "_Story", load: int) -> None:
        """Remember that the story's model, in this load of it, has the conversation."""
        choice = story.choice
        place = Place(story.record.model, choice.task.prompt_tokens, load)
        self._conversations.note(choice.session, choice.request.turns, place)

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
            self._journal.close(record, api_error.code)
            yield b"data: " + api_error.envelope() + b"\n\n"
            yield b"data: [DONE]\n\n"
        else:
            self._journal.close(record, "ok")


class _Story:
    """A request on its way from the decision to the answer.

    Attributes
    ----------
    ticket
        Its place in the queue of `record.model`.
    tried
        The models that could not answer.
    """

    def __init__(self, record: Record, body: bytes, choice: Choice, caller: str) -> None:
        self.record = record
        self.body = body
        self.choice = choice
        self.tried: list[str] = []
        # Neither keys nor names are kept.
        self._group = str(hash((caller, choice.request.user)))
        self.ticket = self._new_ticket()

    @property
    def candidate(self) -> Candidate:
        """The model that answers, as the decision saw it."""
        return self.choice.candidate(self.record.model)

    def may_turn(self, failure: EngineFailed | Unavailable) -> bool:
        """Return whether another model may be tried instead of the one that failed.

        A tool loop waits for its model where that is only busy; its client gets the error, and
        asks again.
        """
        if len(self.tried) >= self.choice.policy.fallbacks:
            return False
        if isinstance(failure, EngineFailed):
            return True
        is_loop = self.choice.task.tool_loop and self.candidate.holds_conversation
        return failure.code in (CLAUSES.keys() - _BUSY if is_loop else CLAUSES)

    def turn_to(self, model: str, deadline_s: float | None = None) -> None:
        """Have another model answer, by a deadline of `deadline_s` after the request began."""
        self.tried.append(self.record.model)
        self.record.model = model
        self.ticket = self._new_ticket(deadline_s)

    def _new_ticket(self, deadline_s: float | None = None) -> Ticket:
        request = self.choice.request
        if deadline_s is None and request.deadline_ms is not None:
            deadline_s = request.deadline_ms / 1000
        deadline = None if deadline_s is None else self.record.began + deadline_s
        return Ticket(
            self.record.model, group=self._group, priority=request.priority, deadline=deadline
        )

    def too_long(self, refused: Refused) -> Refused:
        """Return the refusal of a prompt that is too long, with both numbers and what to do."""
        return Refused(
            f"{refused.message} The whole prompt is about {self.choice.task.prompt_tokens} tokens. "
            "Shorten it, or choose a model with a longer context; GET /v1/models lists them.",
            param=refused.param,
            code=refused.code,
        )


async def _end(work: asyncio.Task[object], held: contextlib.AsyncExitStack) -> None:
    """Stop what is under way for a request, and then give back what it holds."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await held.aclose()


class _Timing:
    """Measures an answer, from the moment its model is free for it."""

    def __init__(self, forecast: Forecast, story: _Story, others: int) -> None:
        self._forecast = forecast
        self._record = story.record
        self._candidate = story.candidate
        self._unread = max(story.choice.task.prompt_tokens - self._candidate.cached_tokens, 1)
        self._prompt_tokens = story.choice.task.prompt_tokens
        self._others = max(others, 0)
        self._began = time.monotonic()

    def whole(self, usage: Usage | None) -> None:
        """Note an answer that came as a whole."""
        if usage is None:
            return
        model, now = self._record.model, time.monotonic()
        # How much of it was reading is not known, only likely.
        reading = self._unread / self._candidate.prefill_tokens_per_s
        writing = max(now - self._began - reading, 0.1 * (now - self._began))
        self._forecast.wrote(model, self._others, usage.completion_tokens, writing)

    async def watch(
        self, first: bytes, events: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Pass a stream on, and note how fast it comes; about every event is a token."""
        model, first_at = self._record.model, time.monotonic()
        self._forecast.read(model, self._unread, first_at - self._began)
        yield first
        count, reader_s = 0, 0.0
        async for event in events:
            count += 1
            given_at = time.monotonic()
            yield event
            reader_s += time.monotonic() - given_at
        tokens = max(count - 2, 0)  # the first says who speaks, the last two how it ended
        self._record.usage = Usage(self._prompt_tokens, tokens)
        seconds = time.monotonic() - first_at
        if reader_s < READER_SHARE * seconds:
            self._forecast.wrote(model, self._others, tokens, seconds)


CLAUSES = {
    "queue_full": "has a full queue",
    "queue_timeout": "was busy for too long",
    "load_failed": "could not be loaded",
    "load_timeout": "was not loaded in time",
    "no_memory": "has no memory",
}
"""Why another model answers instead, by the code of what stood in the way."""


_BUSY = {"queue_full", "queue_timeout"}


def _clause(failure: Refused | EngineFailed | Unavailable) -> str:
    """Return what a model did instead of answering."""
    if isinstance(failure, Refused):
        return "refused the request"
    if isinstance(failure, EngineFailed):
        return "failed"
    return CLAUSES.get(failure.code, "could not begin in time")
