"""The story of one request: parse, describe, decide, admit, generate."""

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator

from msgspec import Struct

from config import AUTO, Settings
from engines.pool import Pool
from engines.protocol import Answer, EngineFailed, Refused, Reply, Stream
from policies import Decision, Task, Undecidable, decide, unable
from router.catalogue import Catalogue
from router.describe import describe
from router.errors import ApiError, translate
from router.parse import parse
from router.words import Endpoint, Request

log = logging.getLogger("axion.request")


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
        self, record: Record, body: bytes, resources: contextlib.AsyncExitStack
    ) -> Reply:
        """Answer the request in `body`.

        What must be given back when the request is over, however it ends, is put on `resources`:
        the lease of the engine, and the stream, which is closed first.
        A stream's first event is already there when this returns, so that a failure before it still
        gets its proper status.

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
        engine = await resources.enter_async_context(self._pool.lease(decision.model))
        try:
            reply = await engine.generate(record.endpoint, body, record.id)
            if isinstance(reply, Answer):
                return reply
            resources.push_async_callback(reply.events.aclose)
            first = await anext(reply.events)
        except Refused as refused:
            raise _with_both_numbers(refused, request, task, engine.max_model_len) from None
        events = _guarded(record, first, reply.events)
        resources.push_async_callback(events.aclose)
        return Stream(events)

    def _decide(self, asked: str, request: Request, task: Task) -> Decision:
        statuses = self._pool.statuses()
        try:
            if asked == AUTO:
                decision = decide(
                    task, self._catalogue.candidates(statuses), self._settings.routing
                )
                via = f"alias {request.model}; " if request.model != AUTO else ""
                return Decision(
                    model=decision.model,
                    reason=via + decision.reason,
                    rule=decision.rule,
                    excluded=decision.excluded,
                )
            if refusal := unable(task, self._catalogue.candidate(asked, statuses)):
                raise refusal
        except Undecidable as refusal:
            param = refusal.param
            if param == "messages" and request.endpoint == "completions":
                param = "prompt"
            raise ApiError(refusal.message, refusal.code, param=param) from None
        via = "named by the client" if request.model == asked else f"alias {request.model}"
        return Decision(model=asked, reason=via, rule=None)


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


async def _guarded(
    record: Record, first: bytes, events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """Pass a stream on; end it as the API promises when the engine fails on the way.

    Never raises: after the first byte the status is gone, so a failure becomes an error event.
    """
    try:
        yield first
        async for event in events:
            yield event
    except Exception as error:
        if not isinstance(error, Refused | EngineFailed):
            log.exception("%s: a stream broke", record.id)
        api_error = translate(error)
        record.close(api_error.code)
        yield b"data: " + api_error.envelope() + b"\n\n"
        yield b"data: [DONE]\n\n"
    else:
        record.close("ok")
