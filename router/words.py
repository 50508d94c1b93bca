"""A request in our own words; after the edge nobody sees the wire."""

from typing import Literal

from msgspec import Struct

Endpoint = Literal["chat", "completions"]


class Turn(Struct, frozen=True):
    """One message of a conversation.

    Attributes
    ----------
    role
        `system`, `developer`, `user`, `assistant` or `tool`.
    text
        All its text parts, joined by newlines.
    images
        How many image parts it has.
    """

    role: str
    text: str
    images: int = 0


class Request(Struct, frozen=True, kw_only=True):
    """What routing needs to know of a request.

    Attributes
    ----------
    model
        The name the client sent, before aliases.
    turns
        The conversation, oldest first; a completion is one user turn.
    tools
        How many tools are offered.
    tools_chars
        Length of the JSON of the tools, and of the calls in the conversation, in characters; the
        model reads them too.
    json
        Whether the answer must be JSON, by `response_format` or `structured_outputs`.
    output_tokens
        Tokens asked for at most, or 0 when the client did not say.
    user
        On whose behalf, as far as the body says; users take turns.
    metadata
        What the client notes of it, as far as it is text.
    priority
        Smaller goes first.
    deadline_ms
        Waiting longer than this is of no use to the client, or None.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    turns: tuple[Turn, ...]
    tools: int = 0
    tools_chars: int = 0
    json: bool = False
    output_tokens: int = 0
    user: str = ""
    metadata: dict[str, str] = {}
    priority: int = 0
    deadline_ms: float | None = None
