"""From the bytes of a body to a request in our own words. Strict, and exact about what is wrong."""

import contextlib
import re
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from config.policy import TASKS
from router.body import (
    ANSWERS_MAX,
    ITEMS_MAX,
    SCHEMA_BYTES,
    Body,
    ChatBody,
    CompletionBody,
    FeedbackBody,
    Message,
)
from router.errors import ApiError
from router.words import Endpoint, Request, Turn

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_chat = msgspec.json.Decoder(ChatBody)
_completion = msgspec.json.Decoder(CompletionBody)
_feedback = msgspec.json.Decoder(FeedbackBody)

THUMBS = ("up", "down")

T = TypeVar("T")


def parse(endpoint: Endpoint, body: bytes) -> Request:
    """Return what routing needs to know of `body`.

    Raises
    ------
    ApiError
        The body is not JSON, or a field that routing reads is missing or wrong.
    """
    if endpoint == "chat":
        return _from_chat(_decoded(_chat, body))
    return _from_completion(_decoded(_completion, body))


class _Kind(Struct):
    prompt: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET


_kind = msgspec.json.Decoder(_Kind)


def endpoint_of(body: bytes) -> Endpoint:
    """Return which endpoint a body is for: completions if it has `prompt` and no `messages`."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        kind = _kind.decode(body)
        if kind.messages is UNSET and kind.prompt is not UNSET:
            return "completions"
    return "chat"  # where what is wrong with it is said


def parse_feedback(body: bytes) -> FeedbackBody:
    """Return what somebody says of a decision; `model` is theirs, before aliases.

    Raises
    ------
    ApiError
        The body is not JSON, says nothing, or a field is missing or wrong.
    """
    feedback = _decoded(_feedback, body)
    if feedback.thumbs is feedback.task is feedback.model is None:
        message = "Nothing is said of the decision. Send `thumbs`, `task` or `model`."
        raise ApiError(message, "missing_required_parameter", param="thumbs")
    for name, given, known in (
        ("thumbs", feedback.thumbs, THUMBS),
        ("task", feedback.task, TASKS),
    ):
        if given is not None and given not in known:
            message = f"Invalid '{name}': expected one of {', '.join(known)}."
            raise ApiError(message, "invalid_value", param=name)
    return feedback


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    if not body.strip():
        raise ApiError("The body is empty; expected a JSON object.", "invalid_json")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except msgspec.DecodeError as error:
        raise ApiError(f"The body is not JSON: {error}.", "invalid_json") from None
    except UnicodeDecodeError:
        raise ApiError("The body is not UTF-8.", "invalid_json") from None
    except RecursionError:
        raise ApiError("The body is nested too deeply.", "invalid_json") from None


def _from_chat(chat: ChatBody) -> Request:
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
    parts = sum(len(each.content) for each in chat.messages if isinstance(each.content, list))
    if parts > ITEMS_MAX:
        raise _out_of_bounds("array", "<=", f"{ITEMS_MAX} parts in all", "messages")
    tools = chat.tools or []
    # The model reads the calls it made, too. They are counted and no part of the text: JSON that a
    # program wrote looks like code, whatever the user is talking about.
    calls = [message.tool_calls for message in chat.messages]
    return Request(
        endpoint="chat",
        **_shared(chat),
        turns=tuple(_turn(message) for message in chat.messages),
        tools=0 if chat.tool_choice == "none" else len(tools),
        tools_chars=sum(len(bytes(raw)) for raw in [*tools, *calls]),
        output_tokens=chat.max_completion_tokens or chat.max_tokens or 0,
    )


def _shared(body: Body) -> dict[str, Any]:
    """Return the fields of `Request` that both endpoints have."""
    for name in ("response_format", "structured_outputs"):
        if len(bytes(getattr(body, name))) > SCHEMA_BYTES:
            message = f"Invalid '{name}': too large. Expected at most {SCHEMA_BYTES} bytes of JSON."
            raise ApiError(message, "invalid_value", param=name)
    # An engine would read these keys as numbers; msgspec only bounds their values.
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in body.logit_bias or ()):
        message = "Invalid 'logit_bias': every key must be a token id, a whole number in quotes."
        raise ApiError(message, "invalid_value", param="logit_bias")
    return {
        "model": body.model,
        "stream": bool(body.stream),
        "json": _wants_json(body),
        "user": body.user or "",
        "metadata": {
            name: value for name, value in (body.metadata or {}).items() if isinstance(value, str)
        },
        "priority": body.priority or 0,
        "deadline_ms": body.deadline_ms,
    }


def _wants_json(body: Body) -> bool:
    """Return whether the engine will hold the answer to JSON."""
    return b'"json' in bytes(body.response_format) + bytes(body.structured_outputs)


def _turn(message: Message) -> Turn:
    content = message.content
    if not isinstance(content, list):
        return Turn(message.role, content or "")
    texts = [part.text for part in content if part.text]
    images = sum(part.type in ("image_url", "input_image", "image") for part in content)
    return Turn(message.role, "\n".join(texts), images)


def _from_completion(completion: CompletionBody) -> Request:
    prompt = completion.prompt
    # A list of numbers is one prompt; every other list is one of prompts.
    prompts: list[Any] = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
    for index, each in enumerate(prompts):
        if isinstance(each, int):
            message = "Invalid 'prompt': it mixes texts and token ids. Expected one kind."
            raise ApiError(message, "invalid_type", param="prompt")
        if not each:
            param = f"prompt[{index}]" if prompts is prompt else "prompt"
            raise ApiError(f"`{param}` is empty.", "invalid_value", param=param)
    if not prompts:
        raise ApiError("`prompt` is empty.", "invalid_value", param="prompt")
    if len(prompts) * (completion.n or 1) > ANSWERS_MAX:
        raise _out_of_bounds("array", "<=", f"{ANSWERS_MAX} prompts, times `n`", "prompt")
    # Of token ids it is enough to count them: `router.tokens` takes " ." for one token.
    texts = [each if isinstance(each, str) else " ." * len(each) for each in prompts]
    return Request(
        endpoint="completions",
        **_shared(completion),
        turns=(Turn("user", max(texts, key=len)),),
        output_tokens=completion.max_tokens or 0,
    )


def _is_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and all(isinstance(each, int) for each in prompt)


_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")
_BOUND = re.compile(
    r"Expected `(?P<kind>\w+)` (?:of )?(?P<relation>(?:length )?[<>]=?) (?P<to>\S+)"
)

_CODES = {"int": "integer", "float": "decimal"}
_LONG = {"array": "array", "str": "string"}  # what has a length, in the words of OpenAI's codes


def _explained(text: str) -> ApiError:
    """Return our error for msgspec's, whose messages never contain the client's values."""
    at = _AT.search(text)
    path = at["path"].replace("[...]", "") if at else ""
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
    if bound := _BOUND.match(what):
        limit = bound["to"] + {"array": " entries", "str": " characters"}.get(bound["kind"], "")
        return _out_of_bounds(bound["kind"], bound["relation"], limit, path)
    what = what.replace("Expected", "expected", 1)
    if not path:
        return ApiError(f"The body is the wrong kind of JSON: {what}.", "invalid_type")
    return ApiError(f"Invalid '{path}': {what}.", "invalid_type", param=path)


def _out_of_bounds(kind: str, relation: str, bound: str, path: str) -> ApiError:
    """Return the error, with OpenAI's code, for a value that `relation` `bound` does not hold for.

    The value itself is not told: clients look for numbers such as 429 in a message.
    """
    above = "<" in relation
    bound = bound.removesuffix(".0")
    if kind in _LONG:
        code = f"{_LONG[kind]}_above_max_length"
        what = f"{_LONG[kind]} too long. Expected at most {bound}"
    else:
        code = f"{_CODES[kind]}_{'above_max' if above else 'below_min'}_value"
        side = "above maximum" if above else "below minimum"
        what = f"{_CODES[kind]} {side} value. Expected a value {relation} {bound}"
    return ApiError(f"Invalid '{path}': {what}.", code, param=path)
