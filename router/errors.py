"""Every error a client can see: one table of codes, one envelope, one place that translates."""

import logging
import uuid
from typing import Any

import msgspec
from litestar import MediaType, Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
)
from msgspec import Struct

from engines.protocol import EngineFailed, Refused
from engines.words import Unavailable

log = logging.getLogger("axion.error")


class Code(Struct, frozen=True):
    """What goes with an error code.

    Attributes
    ----------
    status
        The HTTP status.
    type
        OpenAI's `type`.
    meaning
        When it is sent and what to do, for `docs/errors.md`.
    """

    status: int
    type: str
    meaning: str


_CLIENT, _SERVER = "invalid_request_error", "server_error"

CODES: dict[str, Code] = {
    "invalid_json": Code(400, _CLIENT, "The body is not JSON. Send a JSON object, in UTF-8."),
    "missing_required_parameter": Code(
        400, _CLIENT, "A field that must be there is missing; `param` names it."
    ),
    "invalid_type": Code(400, _CLIENT, "A field has the wrong type; `param` names it."),
    "invalid_value": Code(400, _CLIENT, "A field has a value that is not allowed."),
    "integer_above_max_value": Code(400, _CLIENT, "A whole number is too large; see the message."),
    "integer_below_min_value": Code(400, _CLIENT, "A whole number is too small; see the message."),
    "decimal_above_max_value": Code(400, _CLIENT, "A number is too large; see the message."),
    "decimal_below_min_value": Code(400, _CLIENT, "A number is too small; see the message."),
    "array_above_max_length": Code(400, _CLIENT, "A list has too many entries; see the message."),
    "string_above_max_length": Code(400, _CLIENT, "A text is too long; see the message."),
    "empty_array": Code(400, _CLIENT, "`messages` is empty. Send at least one message."),
    "context_length_exceeded": Code(
        400,
        _CLIENT,
        "Prompt and answer together do not fit the model's context. Shorten the prompt, ask for "
        "fewer tokens, or name a model with a longer context (`GET /v1/models` lists them).",
    ),
    "no_capable_model": Code(
        400,
        _CLIENT,
        "The request needs something (images, tools) that the named model, or with `auto` every "
        "model, lacks.",
    ),
    "model_not_found": Code(
        404, _CLIENT, "There is no such model. `GET /v1/models` lists what there is."
    ),
    "decision_not_found": Code(
        404,
        _CLIENT,
        "There is no decision of this id. Send what `x-axion-decision` of an answer says; "
        "without `ledger.path` only the latest 1,000 are kept, else all for `ledger.keep_days`.",
    ),
    "feedback_off": Code(
        404, _CLIENT, "No decisions are kept here. Set `ledger.path` in the configuration."
    ),
    "policy_invalid": Code(
        400,
        _CLIENT,
        "The policies cannot be used as their files are; the message has each problem with its "
        "line. Those in use stay. Mend the file, and reload again.",
    ),
    "no_earlier_policy": Code(
        409, _CLIENT, "There is no earlier version of the policies to go back to."
    ),
    "policy_not_found": Code(
        404, _CLIENT, "There is no policy of that name; the message lists those there are."
    ),
    "not_found": Code(404, _CLIENT, "There is no such URL. The API's page is at `/docs`."),
    "method_not_allowed": Code(405, _CLIENT, "This URL takes another method; see `Allow`."),
    "request_timeout": Code(
        408, _CLIENT, "The body did not arrive within 60 seconds of its headers. Send it again."
    ),
    "request_too_large": Code(
        413, _CLIENT, "The body is larger than `server.max_body_mb` in the configuration."
    ),
    "queue_full": Code(
        429,
        "rate_limit_error",
        "The model holds as many requests as `pool.queue_max` allows, or all models together "
        "`pool.queue_total_max`. Try again after `Retry-After` seconds.",
    ),
    "queue_timeout": Code(
        503,
        _SERVER,
        "The model was busy with others for `pool.load_wait_s`. Try again after `Retry-After` "
        "seconds.",
    ),
    "deadline_exceeded": Code(
        504, _SERVER, "The request's own `deadline_ms` passed before it could begin."
    ),
    "internal_error": Code(
        500,
        _SERVER,
        "A mistake of the service; its log has the details under the id in `x-request-id`.",
    ),
    "engine_failed": Code(
        503, _SERVER, "The model's engine broke while it ran. Try again: it is restarted."
    ),
    "load_failed": Code(
        503, _SERVER, "The model could not be loaded; the message says why. It is tried again."
    ),
    "load_timeout": Code(
        503, _SERVER, "The model is still loading after `pool.load_wait_s`. Try again later."
    ),
    "no_memory": Code(
        503, _SERVER, "The model does not fit into `pool.memory_budget_gb` beside what is busy."
    ),
    "ledger_failed": Code(
        503, _SERVER, "The ledger could not be used; the log says why. Try again later."
    ),
    "shutting_down": Code(
        503,
        _SERVER,
        "The service is stopping: it takes no new requests, and `server.shutdown_grace_s` was too "
        "short for this one. Try again in a moment.",
    ),
}


class ApiError(Exception):
    """An error that a client gets as it is.

    Attributes
    ----------
    message
        What, where, what was expected, and what to do. Never contains the prompt.
    code
        A key of `CODES`.
    param
        The field at fault, or None.
    retry_after_s
        When to try again, or None.
    """

    def __init__(
        self,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return CODES[self.code].status

    def envelope(self) -> bytes:
        """Return OpenAI's error object as JSON."""
        error = {
            "message": self.message,
            "type": CODES[self.code].type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def headers(self) -> dict[str, str]:
        """Return the headers that go with this error."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


def translate(error: Exception) -> ApiError:
    """Return what a client sees of any exception."""
    match error:
        case ApiError():
            return error
        case Refused():
            return ApiError(error.message, error.code or "invalid_value", param=error.param)
        case EngineFailed():
            return ApiError(str(error), "engine_failed", retry_after_s=1)
        case Unavailable():
            return ApiError(error.message, error.code, retry_after_s=error.retry_after_s)
        case NotFoundException():
            return ApiError("There is no such URL here; the API's page is at /docs.", "not_found")
        case MethodNotAllowedException():
            return ApiError("This URL takes another method.", "method_not_allowed")
        case HTTPException() if error.status_code == CODES["request_too_large"].status:
            return ApiError("The body is larger than this service accepts.", "request_too_large")
        case HTTPException() if error.status_code < 500:
            return ApiError(error.detail, "invalid_value")
    return ApiError("The service made a mistake; its log has the details.", "internal_error")


def new_id() -> str:
    """Return an id for a request; the log and the response's `x-request-id` have it."""
    return uuid.uuid4().hex[:24]


def render(error: ApiError, headers: dict[str, str]) -> Response[bytes]:
    """Return the response for `error`."""
    return Response(
        error.envelope(),
        status_code=error.status,
        media_type=MediaType.JSON,
        headers={**headers, **error.headers()},
    )


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an exception that no handler caught (Litestar's exception handler)."""
    api_error, id_ = translate(error), new_id()
    if api_error.code == "internal_error":
        log.error("%s %s %s: internal error", id_, request.method, request.url.path, exc_info=error)
    given = (error.headers or {}) if isinstance(error, HTTPException) else {}
    allow = {"allow": given["allow"]} if "allow" in given else {}
    return render(api_error, {"x-request-id": id_, **allow})
