"""The words of the decision: what comes in and what goes out."""

import re
import unicodedata
from collections.abc import Mapping
from functools import cached_property
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


KEYWORD_HEAD_CHARS, KEYWORD_TAIL_CHARS = 4_000, 2_000
"""Where keywords are looked for in a long text: taking accents off takes more than linear time."""


class Facts(Struct, frozen=True, kw_only=True, dict=True):
    """What rules may look at beside the task; none of it is kept.

    Attributes
    ----------
    text
        What the user asks.
    user
        On whose behalf, as far as the request says.
    headers
        By lower-case name.
    minute
        Minutes since midnight, by the machine's clock.
    deadline_s
        When the answer is of no use any more, in seconds, or None.
    """

    text: str = ""
    user: str = ""
    headers: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    minute: int = 0
    deadline_s: float | None = None

    @cached_property
    def folded(self) -> str:
        """Both ends of the text, as keywords are looked for in them: see `fold`."""
        text = self.text
        if len(text) > KEYWORD_HEAD_CHARS + KEYWORD_TAIL_CHARS:
            text = f"{text[:KEYWORD_HEAD_CHARS]}\n{text[-KEYWORD_TAIL_CHARS:]}"
        return fold(text)

    @cached_property
    def found(self) -> dict[object, bool]:
        """Which regular expressions were found in the text, as far as they were searched."""
        return {}

    @cached_property
    def folded_words(self) -> frozenset[str]:
        """The words of the folded text: many keywords are compared with them at once."""
        return frozenset(_WORDS.findall(self.folded))


_WORDS = re.compile(r"\w+")
_MARKS = re.compile("[\u0300-\u036f]+")


def fold(text: str) -> str:
    """Return `text` in lower case, without accents."""
    return without_accents(text).casefold()


def without_accents(text: str) -> str:
    """Return `text` with its letters alone."""
    return text if text.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", text))


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
    held
        Requests that wait for it or run on it.
    load_s
        Seconds until it is in memory; 0 if it is.
    queue_s
        Seconds until it has a free place, once it is in memory.
    prefill_tokens_per_s, decode_tokens_per_s
        How fast it reads a prompt and writes one answer, with what it has to do now.
    cached_tokens
        Tokens of this conversation that it need not read again.
    holds_conversation
        Whether it gave this conversation's last answer.
    evicts
        Models that would have to leave memory for it.
    displacement_s
        Seconds that others are expected to lose by that.
    """

    model: str
    max_model_len: int
    vision: bool
    tools: bool
    state: str
    retry_in_s: float = 0.0
    held: int = 0
    load_s: float = 0.0
    queue_s: float = 0.0
    prefill_tokens_per_s: float = 1000.0
    decode_tokens_per_s: float = 20.0
    cached_tokens: int = 0
    holds_conversation: bool = False
    evicts: tuple[str, ...] = ()
    displacement_s: float = 0.0


class Seconds(Struct, frozen=True, kw_only=True):
    """How long an answer is expected to take, in seconds, by what it waits for."""

    load: float
    queue: float
    prefill: float
    decode: float
    total: float


class Assessment(Struct, frozen=True, kw_only=True):
    """A candidate as the decision saw it: worth = fit - price x total seconds - displacement.

    Attributes
    ----------
    why_not
        Why it cannot answer, as a clause ("calls no tools"), or None.
    fit
        How likely its answer is a good one, by the policy.
    displacement
        What others lose by it, as fit: those who want a model that must leave for it, and those
        whose answers get slower.
    """

    model: str
    capable: bool
    why_not: str | None
    fit: float
    predicted_seconds: Seconds
    displacement: float
    worth: float
    state: str


class Decision(Struct, frozen=True, kw_only=True):
    """A model and the reasons for it.

    Attributes
    ----------
    reason
        One ASCII line that a person can read; it goes into the `x-axion-reason` header.
    policy, version
        By which it was made.
    rule
        Name of the rule that had a part in it, or None.
    loads
        A model to load meanwhile, because later requests like this one are better off with it.
    ranking
        Every model that may answer, best first; `model` is the first, but for one that answers
        while a better one loads.
    candidates
        All models, in the order of the configuration.
    """

    model: str
    reason: str
    policy: str = ""
    version: str = ""
    rule: str | None = None
    loads: str | None = None
    ranking: tuple[str, ...] = ()
    candidates: tuple[Assessment, ...] = ()
