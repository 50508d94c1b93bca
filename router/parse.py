"""From the bytes of a body to a request in our own words. Strict, and exact about what is wrong."""

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from router.errors import ApiError
from router.words import Endpoint, Request, Turn

_OUTPUT_TOKENS_MAX = 2**53 - 1  # the largest whole number that every JSON reader keeps exact
_PRIORITY_MAX = 1_000_000
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class _Part(Struct):
    type: str
    text: str | None = None


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: Raw = Raw()  # not `Raw | None`, which msgspec reads as "null and nothing else"


class _Queued(Struct, kw_only=True):
    """What both endpoints say about waiting."""

    stream: bool | None = None
    user: str | None = None
    priority: int | None = None
    deadline_ms: float | None = None


class _Chat(_Queued):
    """What routing reads of a chat request; everything else is for the engine to check."""

    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Raw] | None = None
    tool_choice: Any = None


class _Completion(_Queued):
    model: str
    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)


def parse(endpoint: Endpoint, body: bytes) -> Request:
    """Return what routing needs to know of `body`.

    Raises
    ------
    ApiError
        The body is not JSON, or a field that routing reads is missing or wrong.
    """
    if not body.strip():
        raise ApiError("The body is empty; expected a JSON object.", "invalid_json")
    try:
        return _from_chat(_chat.decode(body)) if endpoint == "chat" else _from_completion(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except msgspec.DecodeError as error:
        raise ApiError(f"The body is not JSON: {error}.", "invalid_json") from None
    except UnicodeDecodeError:
        raise ApiError("The body is not UTF-8.", "invalid_json") from None
    except RecursionError:
        raise ApiError("The body is nested too deeply.", "invalid_json") from None


def _from_chat(chat: _Chat) -> Request:
    if not chat.messages:
        raise ApiError(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an "
            "empty array instead.",
            "empty_array",
            param="messages",
        )
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            raise ApiError(
                f"messages[{index}].role must be one of {', '.join(_ROLES)}.",
                "invalid_value",
                param=f"messages[{index}].role",
            )
    tools = chat.tools or []
    # The model reads the calls it made, too. They are counted and no part of the text: JSON that a
    # program wrote looks like code, whatever the user is talking about.
    calls = [message.tool_calls for message in chat.messages]
    return Request(
        endpoint="chat",
        model=chat.model,
        **_queued(chat),
        turns=tuple(_turn(message) for message in chat.messages),
        tools=0 if chat.tool_choice == "none" else len(tools),
        tools_chars=sum(len(bytes(raw)) for raw in [*tools, *calls]),
        output_tokens=_output_tokens(
            max_completion_tokens=chat.max_completion_tokens, max_tokens=chat.max_tokens
        ),
    )


def _queued(body: _Queued) -> dict[str, Any]:
    """Return the fields of `Request` that say how it waits."""
    priority = body.priority or 0
    if abs(priority) > _PRIORITY_MAX:
        bounds = f"between -{_PRIORITY_MAX} and {_PRIORITY_MAX}; smaller goes first"
        raise ApiError(f"priority must be {bounds}.", "invalid_value", param="priority")
    if body.deadline_ms is not None and body.deadline_ms <= 0:
        message = "deadline_ms must be above 0: milliseconds from now."
        raise ApiError(message, "invalid_value", param="deadline_ms")
    return {
        "stream": bool(body.stream),
        "user": body.user or "",
        "priority": priority,
        "deadline_ms": body.deadline_ms,
    }


def _output_tokens(**fields: int | None) -> int:
    """Return the first of the fields that asks for an answer of some length, else 0."""
    for name, tokens in fields.items():
        if tokens and tokens > _OUTPUT_TOKENS_MAX:
            raise ApiError(
                f"{name} must be at most {_OUTPUT_TOKENS_MAX}.", "invalid_value", param=name
            )
    asked = next((tokens for tokens in fields.values() if tokens), 0)
    return max(asked, 0)  # what is below zero is for the engine to refuse


def _turn(message: _Message) -> Turn:
    content = message.content
    if not isinstance(content, list):
        return Turn(message.role, content or "")
    texts = [part.text for part in content if part.text]
    images = sum(part.type in ("image_url", "input_image", "image") for part in content)
    return Turn(message.role, "\n".join(texts), images)


def _from_completion(body: bytes) -> Request:
    completion = _completion.decode(body)
    prompt = completion.prompt
    if not prompt:
        raise ApiError("`prompt` is empty.", "invalid_value", param="prompt")
    if isinstance(prompt, str):
        text = prompt
    else:
        texts = [part if isinstance(part, str) else _stand_in(part) for part in prompt]
        text = max(texts, key=len) if isinstance(prompt[0], str | list) else "".join(texts)
    return Request(
        endpoint="completions",
        model=completion.model,
        **_queued(completion),
        turns=(Turn("user", text),),
        output_tokens=_output_tokens(max_tokens=completion.max_tokens),
    )


def _stand_in(ids: int | list[int]) -> str:
    """Return a text that `router.tokens` counts as one token for each id, and that says nothing."""
    return " ." * (len(ids) if isinstance(ids, list) else 1)


_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")


def _explained(text: str) -> ApiError:
    """Return our error for msgspec's, whose messages never contain the client's values."""
    at = _AT.search(text)
    path = at["path"].replace("[...]", "[]") if at else ""
    what = _AT.sub("", text)
    if missing := _MISSING.match(what):
        param = f"{path}.{missing['name']}" if path else missing["name"]
        hint = (
            ' Send "auto" to have one chosen; GET /v1/models lists the others.'
            if param == "model"
            else ""
        )
        message = f"You must provide `{param}`.{hint}"
        return ApiError(message, "missing_required_parameter", param=param)
    what = what.replace("Expected", "expected", 1)
    if not path:
        return ApiError(f"The body is the wrong kind of JSON: {what}.", "invalid_type")
    return ApiError(f"Invalid '{path}': {what}.", "invalid_type", param=path)
