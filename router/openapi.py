"""The API's own page, and what it says about bodies that the handlers read as bytes."""

import re
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

from litestar import Request, Response, Router
from litestar.exceptions import NotFoundException
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from config.policy import TASKS
from router.errors import CODES
from router.parse import THUMBS

_MODEL = Schema(
    type=OpenAPIType.STRING,
    description='`"auto"`, a model of `GET /v1/models`, or an alias.',
    examples=["auto"],
)
_STREAM = Schema(type=OpenAPIType.BOOLEAN, description="Send the answer as server-sent events.")
_MAX = Schema(type=OpenAPIType.INTEGER, minimum=1, description="Longest answer, in tokens.")


def _body(required: list[str], **properties: Schema) -> RequestBody:
    schema = Schema(
        type=OpenAPIType.OBJECT,
        required=["model", *required],
        properties={"model": _MODEL, **properties, "stream": _STREAM},
        description="OpenAI's request object; every further field of it is passed to the engine.",
    )
    return RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)}, required=True)


def _chat_body() -> RequestBody:
    message = Schema(
        type=OpenAPIType.OBJECT,
        required=["role"],
        properties={
            "role": Schema(
                type=OpenAPIType.STRING,
                enum=["system", "developer", "user", "assistant", "tool", "function"],
            ),
            "content": Schema(description="Text, or a list of content parts."),
        },
    )
    return _body(
        ["messages"],
        messages=Schema(type=OpenAPIType.ARRAY, items=message, min_items=1),
        max_completion_tokens=_MAX,
        temperature=Schema(type=OpenAPIType.NUMBER, minimum=0, maximum=2),
    )


def _route_body() -> RequestBody:
    return _body(
        [], messages=Schema(type=OpenAPIType.ARRAY), prompt=Schema(type=OpenAPIType.STRING)
    )


def _completion_body() -> RequestBody:
    return _body(["prompt"], prompt=Schema(type=OpenAPIType.STRING), max_tokens=_MAX)


def _feedback_body() -> RequestBody:
    def text(description: str, *choices: str) -> Schema:
        enum = list(choices) or None
        return Schema(type=OpenAPIType.STRING, enum=enum, description=description)

    schema = Schema(
        type=OpenAPIType.OBJECT,
        required=["decision_id"],
        properties={
            "decision_id": text("What `x-axion-decision` of the answer says."),
            "thumbs": text("Whether the choice was good.", *THUMBS),
            "task": text("What kind of work it really was.", *TASKS),
            "model": text("The model that should have answered, or an alias of it."),
            "note": text(
                "In your own words, at most 2,000 characters; kept only with `ledger.keep_text`."
            ),
        },
        description="At least one of `thumbs`, `task` and `model`.",
    )
    return RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)}, required=True)


_ERROR = Schema(
    type=OpenAPIType.OBJECT,
    required=["error"],
    properties={
        "error": Schema(
            type=OpenAPIType.OBJECT,
            required=["message", "type", "param", "code"],
            properties={
                "message": Schema(type=OpenAPIType.STRING),
                "type": Schema(type=OpenAPIType.STRING),
                "param": Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL]),
                "code": Schema(type=OpenAPIType.STRING, enum=[*CODES]),
            },
        )
    },
)


@dataclass
class _Operation(Operation):
    """An operation with our own errors in place of Litestar's."""

    codes: ClassVar[tuple[str, ...]] = ("internal_error",)

    def __post_init__(self) -> None:
        found = self.responses or {}
        by_status: dict[str, list[str]] = {}
        for name in self.codes:
            by_status.setdefault(str(CODES[name].status), []).append(f"`{name}`")
        self.responses = {
            **{status: answer for status, answer in found.items() if status != "400"},
            **{
                status: OpenAPIResponse(
                    description=", ".join(names),
                    content={"application/json": OpenAPIMediaType(schema=_ERROR)},
                )
                for status, names in sorted(by_status.items())
            },
        }


@dataclass
class PlainOperation(_Operation):
    """An operation that takes nothing."""


@dataclass
class ModelOperation(_Operation):
    """An operation that looks at one model."""

    codes = ("model_not_found", "internal_error")


@dataclass
class LoadOperation(_Operation):
    """An operation that changes where one model is."""

    codes = (
        "invalid_value",
        "model_not_found",
        "queue_full",
        "internal_error",
        "load_failed",
        "load_timeout",
        "no_memory",
        "shutting_down",
    )


_ELSEWHERE = (
    "not_found",
    "method_not_allowed",
    "decision_not_found",
    "feedback_off",
    "ledger_failed",
    "policy_invalid",
    "no_earlier_policy",
)
"""What no request for an answer gets."""


@dataclass
class _GeneratingOperation(_Operation):
    codes = tuple(name for name in CODES if name not in _ELSEWHERE)


@dataclass
class ChatOperation(_GeneratingOperation):
    """`POST /v1/chat/completions`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request_body = _chat_body()


@dataclass
class CompletionOperation(_GeneratingOperation):
    """`POST /v1/completions`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request_body = _completion_body()


@dataclass
class RouteOperation(_Operation):
    """`POST /v1/route`: what a request is refused for before a model is waited for."""

    codes = (
        *(name for name in CODES if CODES[name].status == 400 and name not in _ELSEWHERE),
        "model_not_found",
        "policy_not_found",
        "request_timeout",
        "request_too_large",
        "internal_error",
        "shutting_down",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request_body = _route_body()


@dataclass
class DecisionOperation(_Operation):
    """`GET /v1/decisions/{decision_id}`."""

    codes = ("decision_not_found", "internal_error", "ledger_failed")


@dataclass
class ReloadOperation(_Operation):
    """`POST /v1/policy/reload`."""

    codes = ("policy_invalid", "internal_error")


@dataclass
class RollbackOperation(_Operation):
    """`POST /v1/policy/rollback`."""

    codes = ("no_earlier_policy", "internal_error")


@dataclass
class FeedbackOperation(_Operation):
    """`POST /v1/feedback`."""

    codes = (
        "invalid_json",
        "missing_required_parameter",
        "invalid_type",
        "invalid_value",
        "string_above_max_length",
        "decision_not_found",
        "feedback_off",
        "model_not_found",
        "request_timeout",
        "request_too_large",
        "internal_error",
        "ledger_failed",
        "shutting_down",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request_body = _feedback_body()


class Page(OpenAPIRenderPlugin):
    """The API as one page without scripts: it needs nothing from the internet."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the page."""
        return page(openapi_schema).encode()


def page_router(path: str) -> Router:
    """Return the router of the page and the document; errors under it are like everywhere else."""

    async def as_everywhere(response: Response[Any]) -> Response[Any]:
        if response.status_code == 404:  # Litestar has an HTML page of its own for this
            raise NotFoundException
        return response

    return Router(path, route_handlers=[], include_in_schema=False, after_request=as_everywhere)


def page(schema: dict[str, Any]) -> str:
    """Return an OpenAPI document as an HTML page: each operation with its fields and codes."""
    info = schema["info"]
    operations = "".join(
        _operation(method, path, operation)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
        if isinstance(operation, dict) and "responses" in operation
    )
    codes = "".join(
        f"<tr><td>{_text(f'`{name}`')}<td>{code.status}<td>{_text(code.meaning)}"
        for name, code in CODES.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])}</title>
<style>{_STYLE}</style>
<h1>{escape(info["title"])} {escape(info["version"])}</h1>
<p>{_text(info["description"])}
<p>For programs: <a href="/docs/openapi.json">openapi.json</a>.
{operations}
<h2 id="errors">Errors</h2>
<p>Every error is one object:
{_text('`{"error": {"message", "type", "param", "code"}}`')}.
<table><tr><th>code<th>status<th>when, and what to do{codes}</table>
"""


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-top: 1px solid; margin-top: 2rem; padding-top: 1rem; font-size: 1.1rem }
table { border-collapse: collapse } td, th { text-align: left; padding: .2rem 1rem .2rem 0;
vertical-align: top }
"""


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    fields = [
        (each["name"], each["in"], each["schema"], each["required"], each.get("description", ""))
        for each in operation.get("parameters", [])
    ]
    description = operation.get("description", "")
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = content["schema"]
        description += f" The body: {body['description']}"
        fields += [
            (name, "body", field, name in body["required"], field.get("description", ""))
            for name, field in body["properties"].items()
        ]
    rows = "".join(
        f"<tr><td>{_text(f'`{name}`')}<td>{where}<td>{_type(schema)}"
        f"<td>{'needed' if required else ''}<td>{_text(meaning)}"
        for name, where, schema, required, meaning in fields
    )
    answers = "".join(
        f"<li>{status}: {_text(response['description'])}"
        for status, response in operation["responses"].items()
    )
    return f"""
<h2><code>{method.upper()} {escape(path)}</code></h2>
<p>{_text(operation["summary"])}. {_text(description)}
{f"<table><tr><th>name<th>in<th>type<th><th>meaning{rows}</table>" if rows else ""}
<ul>{answers}</ul>
"""


def _type(schema: dict[str, Any]) -> str:
    return escape(str(schema.get("type", "any")))


def _text(markdown: str) -> str:
    """Return a line of text as HTML, with `code` as such."""
    return re.sub("`(.*?)`", r"<code>\1</code>", escape(markdown, quote=False))
