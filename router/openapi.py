"""What the OpenAPI page says about bodies that the handlers read as bytes."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

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


def _completion_body() -> RequestBody:
    return _body(["prompt"], prompt=Schema(type=OpenAPIType.STRING), max_tokens=_MAX)


@dataclass
class ChatOperation(Operation):
    """`POST /v1/chat/completions`."""

    def __post_init__(self) -> None:
        self.request_body = _chat_body()


@dataclass
class CompletionOperation(Operation):
    """`POST /v1/completions`."""

    def __post_init__(self) -> None:
        self.request_body = _completion_body()
