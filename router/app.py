"""The HTTP end: routes, headers, and the one place where a request's resources are given back."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.config.cors import CORSConfig
from litestar.datastructures import MutableScopeHeaders
from litestar.exceptions import InternalServerException, NotFoundException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.params import Parameter
from litestar.response import Stream as StreamResponse
from litestar.types import (
    ASGIApp,
    LifeSpanReceive,
    LifeSpanScope,
    LifeSpanSend,
    Message,
    Receive,
    Scope,
    Send,
)

from config import ConfigError, Settings
from engines.pool import Pool
from engines.protocol import Answer
from router import VERSION, errors, explain
from router.catalogue import Catalogue
from router.choose import Chooser, api_key
from router.dispatch import Dispatcher
from router.errors import ApiError
from router.forecast import Forecast
from router.journal import Journal, Record
from router.ledger import Feedback, Ledger, LedgerFailed
from router.openapi import (
    ChatOperation,
    CompletionOperation,
    DecisionOperation,
    FeedbackOperation,
    LoadOperation,
    ModelOperation,
    Page,
    PlainOperation,
    ReloadOperation,
    RollbackOperation,
    RouteOperation,
    page_router,
)
from router.parse import parse_feedback
from router.policies import NothingBefore
from router.shutdown import Shutdown
from router.system import describe_system
from router.words import Endpoint

BODY_S = 60.0
"""Longest that the body of a request may take to arrive, in seconds."""

_RESOURCES = "axion_resources"

_OURS = ("x-request-id", "x-axion-decision", "x-axion-model", "x-axion-reason", "retry-after")
"""Headers that a page of another origin may read (CORS)."""

T = TypeVar("T")


class _ClientLeft(Exception):
    """Nobody is there to answer."""


class Service(msgspec.Struct, frozen=True):
    """What the handlers work with.

    Attributes
    ----------
    base
        Directory that relative model sources start from.
    ledger
        Where decisions are kept, or None.
    """

    settings: Settings
    base: Path
    pool: Pool
    catalogue: Catalogue
    chooser: Chooser
    dispatcher: Dispatcher
    journal: Journal
    forecast: Forecast
    shutdown: Shutdown
    ledger: Ledger | None


class _App(Litestar):
    """Litestar, which also answers HEAD where it answers GET."""

    async def __call__(
        self,
        scope: Scope | LifeSpanScope,
        receive: Receive | LifeSpanReceive,
        send: Send | LifeSpanSend,
    ) -> None:
        if scope.get("method") == "HEAD":
            # In a copy: the server still sees HEAD, and sends the headers only.
            scope = cast("Scope", {**scope, "method": "GET"})
        await super().__call__(scope, receive, send)


def create_app(service: Service) -> Litestar:
    """Return the ASGI application.

    Starting it begins the preloads; stopping it ends the pool, and closes the ledger.
    """
    shutdown = service.shutdown

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None, None]:
        policies = service.chooser.policies
        tasks = [
            asyncio.create_task(service.pool.preload(), name="preload"),
            asyncio.create_task(policies.watch(), name="policies"),
            asyncio.create_task(service.forecast.keep(), name="forecast"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await service.pool.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            await service.forecast.save()
            if service.ledger:
                await asyncio.to_thread(service.ledger.close)

    @post(
        "/v1/chat/completions",
        status_code=200,
        operation_class=ChatOperation,
        summary="Chat completion",
    )
    async def chat_completions(request: Request[Any, Any, Any]) -> Response[Any]:
        """Answer a conversation; `model: "auto"` chooses the model."""
        return await _serve(service, "chat", request)

    @post(
        "/v1/completions",
        status_code=200,
        operation_class=CompletionOperation,
        summary="Text completion",
    )
    async def completions(request: Request[Any, Any, Any]) -> Response[Any]:
        """Continue a text; `model: "auto"` chooses the model."""
        return await _serve(service, "completions", request)

    @post(
        "/v1/feedback",
        status_code=200,
        operation_class=FeedbackOperation,
        summary="Say how good a decision was",
    )
    async def feedback(request: Request[Any, Any, Any]) -> Response[Any]:
        """Needs `ledger.path` in the configuration; replaces what was said of it before."""
        return await _judge(service, request)

    @post(
        "/v1/route",
        status_code=200,
        operation_class=RouteOperation,
        summary="Say which model would answer, and why",
    )
    async def route(request: Request[Any, Any, Any]) -> Response[Any]:
        """Take the body and headers of a request as they are; load and remember nothing."""
        return await _explain(service, request)

    @get(
        "/v1/decisions/{decision_id:str}",
        operation_class=DecisionOperation,
        summary="What was decided, and what came of it",
    )
    async def decision(
        decision_id: Annotated[str, Parameter(description="What `x-axion-decision` says.")],
    ) -> dict[str, Any]:
        return await _decision(service, decision_id)

    @get("/v1/policy", operation_class=PlainOperation, summary="The policies, and those before")
    async def policy() -> dict[str, Any]:
        return service.chooser.policies.report()

    @post(
        "/v1/policy/reload",
        status_code=200,
        operation_class=ReloadOperation,
        summary="Read the policies again",
    )
    async def reload() -> dict[str, Any]:
        """They are checked and tested first; when they are refused, those in use stay."""
        policies = service.chooser.policies
        try:
            changed = await policies.reload()
        except ConfigError as error:
            raise ApiError(
                f"The policies were not loaded, those in use stay. {error}", "policy_invalid"
            ) from None
        return {"changed": changed, **policies.report()}

    @post(
        "/v1/policy/rollback",
        status_code=200,
        operation_class=RollbackOperation,
        summary="Go back to the policies before",
    )
    async def rollback() -> dict[str, Any]:
        """Stay with them until a file changes, or until they are read again."""
        policies = service.chooser.policies
        try:
            await policies.rollback()
        except NothingBefore:
            raise ApiError(
                "There is no version of the policies before this one; GET /v1/policy lists those "
                "that are kept. To change the policies, edit their files.",
                "no_earlier_policy",
            ) from None
        return policies.report()

    @get(
        "/v1/models",
        operation_class=PlainOperation,
        summary="All models, with state and capabilities",
    )
    async def models() -> dict[str, Any]:
        chosen = service.chooser.policies.chosen
        entries = service.catalogue.entries(service.pool.snapshots(), chosen)
        return {"object": "list", "data": entries}

    @get("/v1/models/{model:str}", operation_class=ModelOperation, summary="One model")
    async def model(
        model: Annotated[
            str, Parameter(description="A model's name, an alias, `auto`, or `auto:POLICY`.")
        ],
    ) -> dict[str, Any]:
        return _one_model(service, model)

    # Aliases may have slashes, as in `openai/gpt-4o`.
    @get("/v1/models/{model:str}/{rest:path}", include_in_schema=False)
    async def model_with_owner(
        model: Annotated[str, Parameter()], rest: Annotated[Path, Parameter()]
    ) -> dict[str, Any]:
        return _one_model(service, f"{model}{rest}")

    @post(
        "/v1/models/{model:str}/load",
        status_code=200,
        operation_class=LoadOperation,
        summary="Load a model into memory",
    )
    async def load(
        model: Annotated[str, Parameter(description="A model's name, or an alias of one.")],
    ) -> dict[str, Any]:
        """Answer once it is loaded; other models may have to leave for it."""
        return await _move(service, model, service.pool.load)

    @post(
        "/v1/models/{model:str}/unload",
        status_code=200,
        operation_class=LoadOperation,
        summary="Take a model out of memory",
    )
    async def unload(
        model: Annotated[str, Parameter(description="A model's name, or an alias of one.")],
    ) -> dict[str, Any]:
        """Answer once its memory is free; its running requests end first."""
        return await _move(service, model, service.pool.unload)

    @post("/v1/models/{model:str}/{rest:path}", status_code=200, include_in_schema=False)
    async def move_with_owner(
        model: Annotated[str, Parameter()], rest: Annotated[Path, Parameter()]
    ) -> dict[str, Any]:
        moves = {"load": service.pool.load, "unload": service.pool.unload}
        if rest.name not in moves:
            raise NotFoundException
        return await _move(service, f"{model}{rest.parent}", moves[rest.name])

    @get("/health", operation_class=PlainOperation, summary="Live: the service runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @get(
        "/health/ready",
        operation_class=PlainOperation,
        summary="Ready: it can answer",
        responses={503: ResponseSpec(dict[str, Any], False, "It cannot; `reasons` says why")},
    )
    async def ready() -> Response[dict[str, Any]]:
        report = readiness(service.pool, shutdown)
        return Response(report, status_code=503 if report["reasons"] else 200)

    @get(
        "/v1/system",
        operation_class=PlainOperation,
        summary="The machine and its engines: processor, memory, states",
    )
    async def system() -> dict[str, Any]:
        snapshots = service.pool.snapshots()  # here: the pool belongs to the event loop
        found = await asyncio.to_thread(
            describe_system,
            *(service.settings, service.base, service.pool, snapshots, service.forecast),
        )
        return {**found, **service.chooser.policies.report()}

    @get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {
            "service": "axion",
            "version": VERSION,
            "api": "/v1",
            "docs": "/docs",
            "health": "/health/ready",
        }

    async def finish_headers(message: Message, _: Scope) -> None:
        if message["type"] == "http.response.start":
            headers = MutableScopeHeaders.from_message(message)
            headers.setdefault("x-request-id", errors.new_id())
            if "GET" in headers.get("allow", ""):
                headers["allow"] += ", HEAD"
            if shutdown.begun or message["status"] == errors.CODES["request_timeout"].status:
                headers["connection"] = "close"  # nothing good comes on this one

    origins = service.settings.server.cors_origins
    return _App(
        [
            chat_completions,
            completions,
            feedback,
            route,
            decision,
            policy,
            reload,
            rollback,
            models,
            model,
            model_with_owner,
            load,
            unload,
            move_with_owner,
            system,
            health,
            ready,
            root,
        ],
        lifespan=[lifespan],
        middleware=[_give_back],
        before_send=[finish_headers],
        cors_config=CORSConfig(origins, expose_headers=[*_OURS]) if origins else None,
        exception_handlers={Exception: errors.respond},
        request_max_body_size=int(service.settings.server.max_body_mb * 1_000_000),
        openapi_config=OpenAPIConfig(
            title="Axion",
            version=VERSION,
            description="One OpenAI-compatible endpoint that routes each request to the right "
            "local model.",
            render_plugins=[Page()],
            use_handler_docstrings=True,
            openapi_router=page_router("/docs"),
        ),
        logging_config=None,
    )


def _one_model(service: Service, name: str) -> dict[str, Any]:
    target = service.chooser.resolve(name)
    return service.catalogue.entry(target, service.pool.snapshots())


async def _move(
    service: Service, name: str, move: Callable[[str], Awaitable[None]]
) -> dict[str, Any]:
    """Load or unload the one model that `name` stands for, and return it as it is then."""
    target = service.catalogue.one(name, service.chooser.policies.names)
    with service.shutdown.admit():
        async with service.shutdown.limit():
            await move(target)
    return service.catalogue.entry(target, service.pool.snapshots())


def readiness(pool: Pool, shutdown: Shutdown) -> dict[str, Any]:
    """Return whether the service can answer, why not, and which models are broken.

    It can when every preload has been tried and one model is sound or will be tried again by its
    next request, for every model can answer a plain one; one that failed makes it "degraded".
    """
    statuses = pool.snapshots()
    failures = {status.model: status.failure for status in statuses if status.state == "failed"}
    reasons = ["the service is stopping"] if shutdown.begun else []
    reasons += [f"{name} is loading" for name in pool.to_preload]
    if all(status.retry_in_s > 0 for status in statuses):
        reasons += [f"{model} failed: {failure}" for model, failure in failures.items()]
    return {
        "status": "not ready" if reasons else "degraded" if failures else "ready",
        "reasons": reasons,
        "models": {status.model: status.state for status in statuses},
        "failures": failures,
    }


async def _judge(service: Service, request: Request[Any, Any, Any]) -> Response[Any]:
    """Take feedback on a decision."""
    ledger = service.ledger
    if ledger is None:
        raise ApiError(
            "This service keeps no decisions, so it takes no feedback on them. Set ledger.path in "
            "its configuration, and start it again.",
            "feedback_off",
        )
    try:
        body = parse_feedback(await _body(request))
    except _ClientLeft:
        return Response(b"", status_code=499)
    given = Feedback(
        decision_id=body.decision_id,
        at=time.time(),
        thumbs=body.thumbs,
        task=body.task,
        model=None
        if body.model is None
        else service.catalogue.one(body.model, service.chooser.policies.names),
        note=body.note,
    )
    try:
        with service.shutdown.admit():
            async with service.shutdown.limit():
                stored = await ledger.feedback(given)
    except LedgerFailed:
        raise ApiError(
            "The feedback could not be written; the service's log says why. Send it again later.",
            "ledger_failed",
            retry_after_s=60,
        ) from None
    if not stored:
        raise ApiError(
            "There is no decision of this id. Send what `x-axion-decision` of an answer says; "
            "decisions are kept for ledger.keep_days, those of requests that were refused are not.",
            "decision_not_found",
            param="decision_id",
        )
    answer = {"object": "feedback", "decision_id": given.decision_id, "stored": True}
    return Response(answer, media_type=MediaType.JSON)


async def _explain(service: Service, request: Request[Any, Any, Any]) -> Response[Any]:
    """Say what a request would get."""
    with service.shutdown.admit():
        try:
            async with service.shutdown.limit():
                body = await _body(request)
        except _ClientLeft:
            return Response(b"", status_code=499)
        headers = dict(request.headers.items())
        found = explain.dry_run(body, headers, service.chooser, service.pool.check)
    return Response(found, media_type=MediaType.JSON)


async def _decision(service: Service, decision_id: str) -> dict[str, Any]:
    """Return what was decided for a request, and what came of it."""
    try:
        entry = await service.journal.find(decision_id)
    except LedgerFailed:
        raise ApiError(
            "The ledger could not be read; the service's log says why. Ask again later.",
            "ledger_failed",
            retry_after_s=60,
        ) from None
    if entry is None:
        raise ApiError(
            "There is no decision of this id. Send what `x-axion-decision` of an answer says; "
            "without ledger.path only the latest decisions are kept, and those of requests that "
            "were refused before a model was chosen never are.",
            "decision_not_found",
        )
    return explain.told(entry, service.chooser.policies)


async def _serve(
    service: Service, endpoint: Endpoint, request: Request[Any, Any, Any]
) -> Response[Any]:
    """Answer one generating request."""
    dispatcher, shutdown = service.dispatcher, service.shutdown
    journal = service.journal
    record = journal.open(endpoint)
    resources: contextlib.AsyncExitStack = request.scope[_RESOURCES]  # type: ignore[literal-required]
    resources.callback(journal.close, record, "left by the client")  # unless it was closed before
    try:
        resources.enter_context(shutdown.admit())
        async with shutdown.limit():
            body = await _body(request)
            headers = dict(request.headers.items())
            work = dispatcher.dispatch(record, body, headers, _caller(request), resources)
            reply = await _unless_client_leaves(request.receive, work)
    except _ClientLeft:
        return Response(b"", status_code=499)
    except Exception as error:
        return _failed(journal, record, error)
    if isinstance(reply, Answer):
        journal.close(record, "ok")
        return Response(reply.body, media_type=MediaType.JSON, headers=record.headers())
    return StreamResponse(
        reply.events,
        media_type="text/event-stream",
        headers={
            **record.headers(),
            "cache-control": "no-cache, must-revalidate",
            "x-accel-buffering": "no",  # nginx would collect the stream otherwise
        },
    )


async def _body(request: Request[Any, Any, Any]) -> bytes:
    """Return the body; a client that sends it for ever holds nothing but its connection."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.body()
    except TimeoutError:
        raise ApiError(
            f"The body did not arrive within {BODY_S:g} seconds. Send it again.", "request_timeout"
        ) from None
    except InternalServerException:  # Litestar's word for a client that left half-way
        raise _ClientLeft from None


def _caller(request: Request[Any, Any, Any]) -> str:
    """Return who asks: the API key where there is one, else the address."""
    return api_key(request.headers) or (request.client.host if request.client else "")


def _failed(journal: Journal, record: Record, error: Exception) -> Response[bytes]:
    api_error = errors.translate(error)
    if api_error.code == "internal_error":
        errors.log.error("%s: internal error", record.id, exc_info=error)
    journal.close(record, api_error.code)
    return errors.render(api_error, record.headers())


async def _unless_client_leaves(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it when the client closes the connection meanwhile."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


def _give_back(app: ASGIApp) -> ASGIApp:
    """Give back what a request holds when it is over, however it ends (ASGI middleware).

    A generator's `finally` is not enough: when the client leaves while the server is inside
    `send()`, Litestar drops the generator unclosed and it waits for the garbage collector.
    """

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.AsyncExitStack() as resources:
            scope[_RESOURCES] = resources  # type: ignore[literal-required]
            await app(scope, receive, send)

    return middleware
