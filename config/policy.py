"""Every key of a policy: how `auto` chooses. The text of `docs/policy-keys.md` comes from here.

A key that is left out is taken from the policy that this one extends.
"""

from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

from config.names import PlainName

TaskName = Literal["code", "math", "reasoning", "writing", "qa", "chat", "extraction", "general"]

TASKS: tuple[str, ...] = get_args(TaskName)
"""The kinds of work; `general` is what none is likely for."""

ANY_MODEL = "*"
"""The row of the fit table for models that have none of their own."""

REGEX_S = 0.005
"""Longest search for a rule's regular expression, in seconds."""

Name = Annotated[str, Meta(min_length=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Keyword = Annotated[
    str, Meta(pattern=r"\S", max_length=100, description="a word or phrase, not only spaces")
]


class FitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well a model answers: for each task the share of easy requests, 0 to 1."""

    code: Annotated[Share | None, Meta(description="Programming.")] = None
    math: Annotated[Share | None, Meta(description="Computing and proving.")] = None
    reasoning: Annotated[Share | None, Meta(description="Puzzles, plans, conclusions.")] = None
    writing: Annotated[Share | None, Meta(description="Texts and translations.")] = None
    qa: Annotated[Share | None, Meta(description="Questions about facts.")] = None
    chat: Annotated[Share | None, Meta(description="Conversation.")] = None
    extraction: Annotated[Share | None, Meta(description="Work on a given text.")] = None
    general: Annotated[Share | None, Meta(description="What is not recognised.")] = None
    other: Annotated[
        Share | None, Meta(description="Every task that is not given here; 0.5 if this is not.")
    ] = None
    slope: Annotated[
        Share | None,
        Meta(description="How much less it is for the hardest requests; 0 if left out."),
    ] = None
    languages: Annotated[
        dict[Literal["en", "es"], Annotated[float, Meta(ge=-1, le=1)]],
        Meta(description="What a language adds, for example `es: -0.1`."),
    ] = {}


class ConditionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a rule applies: every key that is given must hold."""

    task: Annotated[
        TaskName | list[TaskName] | None,
        Meta(description="The kind of work that was recognised; `general` when none is likely."),
    ] = None
    confidence_min: Annotated[
        Share | None, Meta(description="The likeliest kind of work is at least this likely.")
    ] = None
    difficulty_min: Annotated[Share | None, Meta(description="It is at least this hard.")] = None
    difficulty_max: Annotated[Share | None, Meta(description="It is at most this hard.")] = None
    prompt_tokens_min: Annotated[
        Count | None, Meta(description="The prompt has at least this many tokens.")
    ] = None
    prompt_tokens_max: Annotated[
        Count | None, Meta(description="The prompt has at most this many tokens.")
    ] = None
    turns_min: Annotated[
        Count | None, Meta(description="The user has had at least this many turns.")
    ] = None
    turns_max: Annotated[
        Count | None, Meta(description="The user has had at most this many turns.")
    ] = None
    images: Annotated[
        bool | None, Meta(description="The request has images (true) or none (false).")
    ] = None
    tools: Annotated[
        bool | None, Meta(description="The request offers tools (true) or none (false).")
    ] = None
    language: Annotated[
        Literal["en", "es"] | None, Meta(description="The language of the user's text.")
    ] = None
    output: Annotated[
        Literal["code", "json", "table", "essay", "text"] | None,
        Meta(description="The form of the answer that is asked for."),
    ] = None
    keywords: Annotated[
        Annotated[list[Keyword], Meta(min_length=1, max_length=1000)] | None,
        Meta(
            description="One of these words or phrases is in what the user asks, as whole words; "
            "case and accents do not count. Of a long text the first 4,000 and the last 2,000 "
            "characters are read."
        ),
    ] = None
    regex: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1000)] | None,
        Meta(
            description="This regular expression is found in the first 4,000 characters of what "
            "the user asks; a search that takes longer than 5 ms has found nothing."
        ),
    ] = None
    user: Annotated[
        str | list[str] | None, Meta(description="The request's `user` is this, or one of these.")
    ] = None
    headers: Annotated[
        dict[str, str],
        Meta(description="The request has these headers with these values; `*` is any value."),
    ] = {}
    metadata: Annotated[
        dict[str, str],
        Meta(description="The request's `metadata` has these values; `*` is any value."),
    ] = {}
    hours: Annotated[
        Annotated[
            str,
            Meta(
                pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
                description="a time span like 22:00-06:00",
            ),
        ]
        | None,
        Meta(
            description="It is between these times of the day, by the machine's clock, for example "
            "`22:00-06:00`."
        ),
    ] = None


class RuleSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule; the first that applies wins. It needs at least one action beside `when`."""

    name: Annotated[
        PlainName,
        Meta(description="Named in the reason of every decision this rule has a part in."),
    ]
    when: Annotated[ConditionSettings, Meta(description="When the rule applies.")]
    prefer: Annotated[
        Annotated[list[str], Meta(min_length=1)] | None,
        Meta(description="Models to take, best first; the first able one answers."),
    ] = None
    only: Annotated[
        Annotated[list[str], Meta(min_length=1)] | None,
        Meta(description="No other models than these; which of them, their worth says."),
    ] = None
    exclude: Annotated[
        Annotated[list[str], Meta(min_length=1)] | None, Meta(description="Not these models.")
    ] = None
    cap: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=100_000)]],
        Meta(description="Models that are out while they hold so many requests already."),
    ] = {}
    deadline_s: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None,
        Meta(
            description="Only models that are expected to have answered by then; if none is, the "
            "quickest."
        ),
    ] = None


class EscalationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an answer is not good enough, and the next better model gives another."""

    logprob_min: Annotated[
        Annotated[float, Meta(le=0)] | None,
        Meta(
            description="Least mean log-probability of the answer's tokens, for example -1.2. "
            "Leave out not to look at it."
        ),
    ] = None
    refusal: Annotated[
        bool | None, Meta(description='An answer like "I cannot help with that" is unsure.')
    ] = None
    invalid_json: Annotated[
        bool | None, Meta(description="Where JSON was asked for, what is not JSON is unsure.")
    ] = None


class PolicyTestSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the policy is expected to choose, tried before it is used."""

    prompt: Annotated[str | None, Meta(description="What the user asks.")] = None
    request: Annotated[
        dict[str, Any] | None,
        Meta(
            description="Instead of `prompt`, the body of a chat request; `model` may be left out."
        ),
    ] = None
    state: Annotated[
        dict[str, Literal["ready", "cold", "loading", "failed"]],
        Meta(description="States of models; the others are ready."),
    ] = {}
    queue_s: Annotated[
        dict[str, Annotated[float, Meta(ge=0)]],
        Meta(description="Seconds that others ahead will take; 0 for the others."),
    ] = {}
    tokens_per_s: Annotated[
        dict[str, Annotated[float, Meta(gt=0)]],
        Meta(description="How fast models write; 20 tokens a second for the others."),
    ] = {}
    expect: Annotated[
        str | list[str], Meta(description="The model that must be chosen, or one of these.")
    ]


class PolicySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy: what it is worth to have an answer from which model, and how soon."""

    extends: Annotated[
        Name | None,
        Meta(
            description="A shipped policy (`balanced`, `fastest`, `quality`) or a file, relative "
            "to this one when it begins with `./` or `../`. What is not given here is taken from "
            "there; its rules come after the ones here. Left out: `balanced`.",
        ),
    ] = None
    default: Annotated[
        Name | None,
        Meta(
            description="The model that answers when nothing speaks for another. Choose a small "
            "one. Left out: the first model of the configuration.",
        ),
    ] = None
    price_per_second: Annotated[
        Annotated[float, Meta(ge=0, le=10)] | None,
        Meta(
            description="How much fit a second is worth: with 0.01 a model may take ten seconds "
            "longer for 0.1 more fit."
        ),
    ] = None
    switch_margin: Annotated[
        Share | None,
        Meta(
            description="How much more another model must be worth to take a conversation from the "
            "model that has it."
        ),
    ] = None
    deadline_s: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None,
        Meta(
            description="Only models that are expected to have answered by then; if none is, the "
            "quickest."
        ),
    ] = None
    serve_while_loading: Annotated[
        bool | None,
        Meta(
            description="When the model that should answer is not in memory, load it and let the "
            "next best one that is in memory answer meanwhile. false: the request waits."
        ),
    ] = None
    fallbacks: Annotated[
        Annotated[int, Meta(ge=0, le=10)] | None,
        Meta(
            description="How many other models may be tried when one fails before its first byte. "
            "A model that the client names is never replaced."
        ),
    ] = None
    output_tokens: Annotated[
        dict[TaskName, Annotated[int, Meta(ge=1, le=1_000_000)]],
        Meta(description="How long an answer is likely to be, in tokens, by task."),
    ] = {}
    fit: Annotated[
        dict[str, FitSettings],
        Meta(description="How well each model answers; `*` is any other model."),
    ] = {}
    rules: Annotated[
        list[RuleSettings], Meta(description="Tried in order; the first that applies wins.")
    ] = []
    escalation: Annotated[
        EscalationSettings | None,
        Meta(description="When another model gives another answer. Left out: never."),
    ] = None
    tests: Annotated[
        list[PolicyTestSettings],
        Meta(description="Tried by `axion check` and before the policy is used."),
    ] = []
