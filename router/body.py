"""The bodies of requests: the fields that have bounds or that routing reads.

The bounds are those of OpenAI's schema where it has some. Others are there so that no request can
occupy the service or overflow a number inside an engine, which checks all the rest.
"""

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

ITEMS_MAX = 2048
"""Most messages, parts of a message, and tools: checking as many takes about 50 ms."""

SCHEMA_BYTES = 65_536
"""Largest schema, grammar or list of choices: the engine compiles it before it answers anybody."""

ANSWERS_MAX = 128
"""Most answers of one request: each takes a place in the engine's own queue."""

_WHOLE_MAX = 2**53 - 1  # the largest whole number that every JSON reader keeps exact

Whole = Annotated[int, Meta(ge=-_WHOLE_MAX, le=_WHOLE_MAX)]
Count = Annotated[int, Meta(ge=0, le=_WHOLE_MAX)]
Some = Annotated[int, Meta(ge=1, le=_WHOLE_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Word = Annotated[str, Meta(max_length=500)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Part(Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | Annotated[list[Part], Meta(max_length=ITEMS_MAX)] | None = None
    tool_calls: Raw = Raw()  # not `Raw | None`, which msgspec reads as "null and nothing else"


class Body(Struct, kw_only=True):
    """What both endpoints have."""

    model: str
    stream: bool | None = None

    # How it waits.
    user: str | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    priority: Annotated[int, Meta(ge=-1_000_000, le=1_000_000)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None

    # How the answer is drawn.
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=ANSWERS_MAX)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=1000)] | None = None
    length_penalty: Annotated[float, Meta(ge=-1000, le=1000)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None

    # Where it ends, and what comes with it.
    stop: Word | Annotated[list[Word], Meta(max_length=4)] | None = None
    bad_words: Annotated[list[Word], Meta(max_length=128)] | None = None
    response_format: Raw = Raw()
    structured_outputs: Raw = Raw()
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=ITEMS_MAX)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(max_length=200_000)] | None = None
    min_tokens: Count | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=_WHOLE_MAX)] | None = None


class ChatBody(Body, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(max_length=ITEMS_MAX)]
    max_tokens: Some | None = None
    max_completion_tokens: Some | None = None
    tools: Annotated[list[Raw], Meta(max_length=ITEMS_MAX)] | None = None
    tool_choice: Any = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class FeedbackBody(Struct, kw_only=True):
    """The body of `POST /v1/feedback`."""

    decision_id: Annotated[str, Meta(max_length=64)]
    thumbs: str | None = None
    task: str | None = None
    model: str | None = None
    note: Annotated[str, Meta(max_length=2000)] | None = None


class CompletionBody(Body, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Count | None = None  # none at all is how a prompt is scored
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
