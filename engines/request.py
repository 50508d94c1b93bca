"""From a body to vLLM's own request object, and from its complaints to ours."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from engines.protocol import Endpoint, Refused

_ADVICE = (
    (
        r"--enable-auto-tool-choice",
        "This model is not set up for tools: set its `tool_parser` in the configuration.",
    ),
    (r"--trust-request-chat-template", "A chat template from a client is not accepted."),
    (r"--enable-prompt-embeds", "A prompt of embeddings is not accepted."),
    (r"--allowed-local-media-path", "A file of the server is not accepted as an image."),
    (r"--allowed-media-domains", "An image from this address is not accepted."),
    (r"--[a-z]+-", "This service does not offer that."),
    (r"^\d+ validation errors? for", "A part of a message is of a kind that is not known."),
    (r"\w\(\) ", "The chat template cannot be used with these arguments."),
)
"""What to say instead of messages that are about options, functions or types of vLLM's own."""

_GRAMMAR = re.compile("(?i)grammar|schema|regex|pointer|ebnf|recursion|structured|json")

# fmt: off
_WORDS = frozenset((
    "auto", "none", "required", "function", "text", "object", "string", "array", "number",
    "integer", "boolean", "null", "true", "false", "json_object", "json_schema", "image_url",
    "user", "assistant", "system", "developer", "tool",
))
# fmt: on
"""Values that a message may name, because the API itself does."""

_DETAILS = re.compile(r"(?s) \(parameter=.*\)$")  # vLLM's, with the value at fault

_VALUE_CHARS = 3  # a shorter value may be in a message by chance,
_TEXT_CHARS = 20  # and so may a shorter text of the conversation
_LEAVES_MAX = 10_000


def read_request(endpoint: Endpoint, body: bytes, max_model_len: int | None = None) -> Any:
    """Return vLLM's request for the JSON in `body`, its values checked. Takes about 0.1 ms.

    Parameters
    ----------
    max_model_len
        The model's context, if it is known. An answer is never longer, so asking for more tokens
        asks for as many as there is room for, and is no mistake.

    Raises
    ------
    Refused
        The body cannot be run by any model.
    """
    from pydantic import ValidationError
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.exceptions import VLLMClientError

    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Refused(f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise Refused("The body must be a JSON object.", code="invalid_type")
    # To OpenAI a null is a field left out; several of vLLM's fields do not take one.
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in ("max_tokens", "max_completion_tokens"):
        if max_model_len is not None and isinstance(fields.get(name), int):
            fields[name] = min(fields[name], max_model_len)
    if fields.get("top_p") == 0:
        fields["top_p"] = 1e-6  # the likeliest token and no other; vLLM wants a number above 0
    kind = ChatCompletionRequest if endpoint == "chat" else CompletionRequest
    try:
        request = kind.model_validate(fields)
        if not request.use_beam_search:
            asked = getattr(request, "max_completion_tokens", None) or request.max_tokens
            request.to_sampling_params(asked or 2**31, {})  # it checks the values
    except ValidationError as error:
        raise _first_finding(error, fields) from None
    except (VLLMClientError, ValueError, TypeError) as error:
        param = getattr(error, "parameter", None)
        raise refusal(str(error.args[0]), param, fields) from None
    return request


def refusal(message: str, param: str | None, fields: Any) -> Refused:
    """Return the refusal for what vLLM says, without the client's own text."""
    message = _DETAILS.sub("", message)
    for pattern, advice in _ADVICE:
        if re.search(pattern, message):
            return Refused(advice, param=param)
    asked = grammar_of(fields)
    if asked and _GRAMMAR.search(message) and not (param or "").startswith(asked):
        # The compilers of grammars quote what they could not read, in parts.
        return no_grammar(asked)
    first = message.partition(" ")[0].strip("`'")
    if param is None and first in fields:
        param = first
    return Refused(_without_values(message, param, fields), param=param)


def no_grammar(field: str) -> Refused:
    """Return the refusal of a field that cannot be made into a grammar."""
    return Refused(
        f"`{field}` cannot be made into a grammar: it is broken, endless, or has what is not "
        "supported.",
        param=field,
    )


def grammar_of(fields: Any) -> str | None:
    """Return the field of a request that makes its answer follow a grammar, or None."""
    names = ("structured_outputs", "response_format")
    return next((name for name in names if isinstance(fields.get(name), dict)), None)


def _first_finding(error: Any, fields: dict[str, Any]) -> Refused:
    """Return pydantic's finding that says most."""
    findings = error.errors(include_url=False, include_input=False)
    # It tells what is wrong with each kind of message: the role, what else that kind must have.
    wrong = [each for each in findings if each["type"] != "missing"]
    inside = [each for each in wrong if each["loc"] and each["loc"][-1] not in ("role", "type")]
    first = (inside or wrong or findings)[0]
    param = _path(first["loc"], fields, first["type"] == "missing")
    cause = first.get("ctx", {}).get("error")
    param = getattr(cause, "parameter", None) or param
    message = str(cause or first["msg"]).rstrip(".")
    if first["type"] == "missing":
        return Refused(
            f"You must provide `{param}`.", param=param, code="missing_required_parameter"
        )
    if cause is None and param:
        message = f"Invalid '{param}': {message[:1].lower()}{message[1:]}"
    return refusal(f"{message}.", param or None, fields)


def _path(places: tuple[str | int, ...], fields: Any, is_missing: bool) -> str:
    """Return where in the client's body a finding is.

    Pydantic's places also name the types that it tried, which are nowhere in the body.
    """
    path, here = "", fields
    for index, place in enumerate(places):
        if isinstance(here, dict) and isinstance(place, str):
            if place not in here and not (is_missing and index == len(places) - 1):
                continue
            path, here = f"{path}.{place}" if path else place, here.get(place)
        elif isinstance(here, list) and isinstance(place, int) and place < len(here):
            path, here = f"{path}[{place}]", here[place]
    return path


def _without_values(message: str, param: str | None, fields: Any) -> str:
    """Return `message` with the client's own values taken out.

    They may be private, and clients look for words such as `429` and `rate limit` in a message.
    """
    field = (param or "").partition(".")[0].partition("[")[0]
    # The model's name is the service's own word.
    at_fault = fields.get(field) or {name: fields[name] for name in fields if name != "model"}
    found = {leaf for leaf in _leaves(at_fault) if leaf in message and leaf not in _WORDS}
    for leaf in sorted(found, key=len, reverse=True):
        message = re.sub(rf"(?<!\w){re.escape(leaf)}(?!\w)", "...", message)
    return message


def _leaves(value: Any) -> Iterator[str]:
    """Yield every value inside, and every key that is no field of the API, as text."""
    stack, seen = [(value, True)], 0
    while stack and seen < _LEAVES_MAX:
        (here, tells), seen = stack.pop(), seen + 1
        if isinstance(here, dict):
            for key, inner in here.items():
                if not key.isidentifier():
                    yield key
                stack.append((inner, key not in ("content", "text", "prompt")))
        elif isinstance(here, list):
            stack += [(inner, tells) for inner in here]
        elif here is not None and not isinstance(here, bool):
            text = str(here)
            if len(text) >= (_VALUE_CHARS if tells else _TEXT_CHARS):
                yield text
