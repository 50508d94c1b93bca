"""The words of the decision: what comes in and what goes out."""

from typing import Literal

from msgspec import Struct


class Task(Struct, frozen=True, kw_only=True):
    """What kind of work a request is.

    Attributes
    ----------
    label
        The kind of work that was recognised (`code`, `math`, ...); `general` when none is likely.
    confidence
        How likely the likeliest kind is, 0 to 1.
    difficulty
        How much a larger model is likely to gain, 0 (nothing) to 1; half of all requests are
        below 0.5.
    output
        The form of the answer that is asked for.
    language
        ISO 639-1 code of the user's text, or None when it cannot be told.
    prompt_tokens
        Estimated tokens of everything the model would read (all turns, system prompt, tools).
    output_tokens
        Tokens the client asked for at most, or 0 when it did not say.
    images, tools
        How many images and how many tools the request carries.
    turns
        How many turns of the user it has.
    tool_loop
        Whether it goes on after the result of a tool: nobody has asked for anything new.
    signals
        How likely each kind of work is, for people to read.
    """

    label: str
    confidence: float
    difficulty: float = 0.5
    output: Literal["code", "json", "table", "essay", "text"] = "text"
    language: Literal["en", "es"] | None
    prompt_tokens: int
    output_tokens: int = 0
    images: int = 0
    tools: int = 0
    turns: int = 1
    tool_loop: bool = False
    signals: dict[str, str | int | float | bool] = {}


class Candidate(Struct, frozen=True, kw_only=True):
    """A model as it looked when the decision was made.

    Attributes
    ----------
    max_model_len
        Largest context, prompt plus answer, in tokens.
    state
        Life-cycle state of its engine (`cold`, `loading`, `ready`, ...).
    retry_in_s
        For how long it is not tried again, because it failed, in seconds. 0: the next request
        would load it, so its failure is history.
    """

    model: str
    max_model_len: int
    vision: bool
    tools: bool
    state: str
    retry_in_s: float = 0.0


class Exclusion(Struct, frozen=True):
    """A model that cannot answer this request, and why not, as a clause ("calls no tools")."""

    model: str
    why_not: str


class Decision(Struct, frozen=True, kw_only=True):
    """A model and the reasons for it.

    Attributes
    ----------
    reason
        One ASCII line that a person can read; it goes into the `x-axion-reason` header.
    rule
        Name of the rule that decided, or None.
    loads
        A model to load meanwhile, because later requests like this one are better off with it.
    excluded
        The models that could not have answered.
    """

    model: str
    reason: str
    rule: str | None
    loads: str | None = None
    excluded: tuple[Exclusion, ...] = ()
