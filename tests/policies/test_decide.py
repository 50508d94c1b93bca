"""Which model answers, and what the reason says: the tables read as the policy."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import structs

from config import ConditionSettings, PolicySettings, RuleSettings
from config.policy import TASKS, FitSettings
from policies import Candidate, Decision, Facts, Task, Undecidable, decide, make_policy, unable
from policies.decide import FEWER, assess
from policies.policy import make_rule

BASE = make_policy(
    "test",
    PolicySettings(
        default="small",
        price_per_second=0.01,
        switch_margin=0.05,
        output_tokens=dict.fromkeys(TASKS, 100),
        fit={"*": FitSettings(other=0.7, slope=0)},
    ),
    Path("test.yaml"),
    ["small"],
)
"""All models are as good and as fast: the default answers when nothing else is said."""


def task(label="general", **facts):
    return Task(**{"confidence": 0.9, "language": "en", "prompt_tokens": 100} | facts, label=label)


def model(name, context=4096, *, vision=False, tools=False, state="ready", retry_in_s=0, **more):
    return Candidate(
        model=name,
        max_model_len=context,
        vision=vision,
        tools=tools,
        state="failed" if retry_in_s else state,
        retry_in_s=retry_in_s,
        **more,
    )


def rule(name, *prefer, when=None, **actions):
    if prefer:
        actions["prefer"] = list(prefer)
    return RuleSettings(name=name, when=ConditionSettings(**when or {}), **actions)


def policy(*rules, fit=None, **changes):
    """Return the base policy with rules; `fit` has one number for each model."""
    if fit:
        changes["fits"] = BASE.fits | {
            name: FitSettings(other=each, slope=0) for name, each in fit.items()
        }
    return structs.replace(BASE, rules=tuple(make_rule(each) for each in rules), **changes)


SMALL = model("small", 2000)
CODER = model("coder", 4000, tools=True)
MEDIUM = model("medium", 4000)
LARGE = model("large", 8000, vision=True)
ROLES = [SMALL, CODER, MEDIUM, LARGE]

ABLE_TO_ALL = [model(name, vision=True, tools=True) for name in ("small", "chosen")]

# An answer of 100 tokens takes 5 s at 20 tokens/s, and the prompt 0.1 s.
ANSWER_S = 5.1


def named(value):
    """Return how a row of a table is called: models by their names."""
    if isinstance(value, list):
        return "+".join(map(named, value))
    if isinstance(value, RuleSettings):
        return value.name
    return value.model if isinstance(value, Candidate) else str(value)


def refusal_of(asked, candidates):
    with pytest.raises(Undecidable) as caught:
        decide(asked, candidates, policy(default=candidates[0].model))
    return caught.value


# --- when a rule applies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "facts", "because"),
    [
        ({}, {}, "always"),
        ({"task": "code"}, {"label": "code"}, "code (90% sure)"),
        ({"task": "code"}, {"label": "general"}, None),
        ({"task": "general"}, {"label": "general"}, "general"),
        ({"task": "general"}, {"label": "code"}, None),
        ({"task": ["math", "code"]}, {"label": "code"}, "code (90% sure)"),
        ({"task": ["math", "code"]}, {"label": "chat"}, None),
        ({"confidence_min": 0.9}, {"confidence": 0.9}, "90% sure"),
        ({"confidence_min": 0.9}, {"confidence": 0.89}, None),
        ({"difficulty_min": 0.7}, {"difficulty": 0.7}, "70% hard"),
        ({"difficulty_min": 0.7}, {"difficulty": 0.69}, None),
        ({"difficulty_max": 0.3}, {"difficulty": 0.3}, "30% hard"),
        ({"difficulty_max": 0.3}, {"difficulty": 0.31}, None),
        ({"prompt_tokens_min": 500}, {"prompt_tokens": 500}, "about 500 prompt tokens"),
        ({"prompt_tokens_min": 500}, {"prompt_tokens": 499}, None),
        ({"prompt_tokens_max": 500}, {"prompt_tokens": 500}, "about 500 prompt tokens"),
        ({"prompt_tokens_max": 500}, {"prompt_tokens": 501}, None),
        ({"prompt_tokens_min": 0}, {"prompt_tokens": 0}, "about 0 prompt tokens"),
        ({"prompt_tokens_max": 0}, {"prompt_tokens": 1}, None),
        ({"turns_min": 3}, {"turns": 3}, "3 turns"),
        ({"turns_min": 3}, {"turns": 2}, None),
        ({"turns_max": 1}, {"turns": 1}, "1 turn"),
        ({"turns_max": 1}, {"turns": 2}, None),
        ({"images": True}, {"images": 1}, "1 image"),
        ({"images": True}, {"images": 2}, "2 images"),
        ({"images": True}, {"images": 0}, None),
        ({"images": False}, {"images": 0}, "no images"),
        ({"images": False}, {"images": 1}, None),
        ({"tools": True}, {"tools": 1}, "1 tool"),
        ({"tools": True}, {"tools": 0}, None),
        ({"tools": False}, {"tools": 0}, "no tools"),
        ({"tools": False}, {"tools": 3}, None),
        ({"language": "es"}, {"language": "es"}, "language es"),
        ({"language": "es"}, {"language": "en"}, None),
        ({"language": "es"}, {"language": None}, None),
        ({"output": "json"}, {"output": "json"}, "json asked for"),
        ({"output": "json"}, {"output": "text"}, None),
        (
            {"task": "code", "prompt_tokens_max": 500, "images": False, "tools": True},
            {"label": "code", "prompt_tokens": 80, "tools": 2},
            "code (90% sure), about 80 prompt tokens, no images, 2 tools",
        ),
        ({"task": "code", "language": "es"}, {"label": "code", "language": "en"}, None),
        ({"prompt_tokens_min": 5, "prompt_tokens_max": 9}, {"prompt_tokens": 10}, None),
    ],
    ids=named,
)
def test_a_rule_applies_when_all_its_conditions_hold_and_names_the_facts(when, facts, because):
    decision = decide(task(**facts), ABLE_TO_ALL, policy(rule("r", "chosen", when=when)))

    if because:
        assert (decision.model, decision.rule) == ("chosen", "r")
        assert decision.reason == f"rule r: {because} -> chosen"
    else:
        assert (decision.model, decision.rule) == ("small", None)


WORDS = ["refund", "c++", "pull request", "Contraseña", "straße", "node.js", "🎉"]


@pytest.mark.parametrize(
    ("when", "facts", "because"),
    [
        ({"keywords": WORDS}, {"text": "I want a refund!"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "REFUND"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "refunds"}, None),  # another word
        ({"keywords": WORDS}, {"text": "my_refund"}, None),
        ({"keywords": WORDS}, {"text": "why (refund)?"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "in C++, please"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "in C, please"}, None),
        ({"keywords": WORDS}, {"text": "in objc++"}, None),
        ({"keywords": WORDS}, {"text": "c, objc++"}, None),
        ({"keywords": WORDS}, {"text": "request: pull requests"}, None),
        ({"keywords": WORDS}, {"text": "open a pull\n  request"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "request a pull"}, None),
        ({"keywords": WORDS}, {"text": "pull requests"}, None),
        ({"keywords": WORDS}, {"text": "olvidé mi CONTRASEÑA"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "olvide mi contrasena"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "contrasen\u0303a"}, "keywords match"),  # in two parts
        ({"keywords": WORDS}, {"text": "in der HAUPTSTRASSE"}, None),
        ({"keywords": WORDS}, {"text": "welche STRASSE?"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "Node.js"}, "keywords match"),
        ({"keywords": WORDS}, {"text": "node and js"}, None),
        ({"keywords": WORDS}, {"text": "party 🎉"}, "keywords match"),
        ({"keywords": ["api"]}, {"text": "What is the capital of France?"}, None),
        ({"keywords": ["\u0301"]}, {"text": "anything, else"}, None),  # nothing is left of it
        ({"keywords": WORDS}, {"text": ""}, None),
        ({"regex": r"JIRA-\d+"}, {"text": "see JIRA-12"}, "regex match"),
        ({"regex": r"JIRA-\d+"}, {"text": "see jira-12"}, None),
        ({"regex": r"(?i)JIRA-\d+"}, {"text": "see jira-12"}, "regex match"),
        ({"regex": "end$"}, {"text": "x" * 3997 + "end"}, "regex match"),
        ({"regex": "end"}, {"text": "x" * 3998 + "end"}, None),  # past the first 4,000
        ({"user": "ana"}, {"user": "ana"}, "user match"),
        ({"user": "ana"}, {"user": "Ana"}, None),
        ({"user": ["ana", "luis"]}, {"user": "luis"}, "user match"),
        ({"user": ["ana", "luis"]}, {"user": ""}, None),
        ({"headers": {"X-Team": "red"}}, {"headers": {"x-team": "red"}}, "headers match"),
        ({"headers": {"x-team": "red"}}, {"headers": {"x-team": "blue"}}, None),
        ({"headers": {"x-team": "red"}}, {"headers": {}}, None),
        ({"headers": {"x-team": "*"}}, {"headers": {"x-team": "blue"}}, "headers match"),
        ({"headers": {"a": "1", "b": "2"}}, {"headers": {"a": "1"}}, None),
        ({"metadata": {"app": "web"}}, {"metadata": {"app": "web"}}, "metadata match"),
        ({"metadata": {"app": "web"}}, {"metadata": {"App": "web"}}, None),
        ({"metadata": {"app": "*"}}, {"metadata": {"app": ""}}, "metadata match"),
        ({"metadata": {"app": "*"}}, {"metadata": {}}, None),
        ({"hours": "09:00-17:30"}, {"minute": 9 * 60}, "between 09:00-17:30"),
        ({"hours": "09:00-17:30"}, {"minute": 9 * 60 - 1}, None),
        ({"hours": "09:00-17:30"}, {"minute": 17 * 60 + 29}, "between 09:00-17:30"),
        ({"hours": "09:00-17:30"}, {"minute": 17 * 60 + 30}, None),
        ({"hours": "22:00-06:00"}, {"minute": 22 * 60}, "between 22:00-06:00"),
        ({"hours": "22:00-06:00"}, {"minute": 0}, "between 22:00-06:00"),
        ({"hours": "22:00-06:00"}, {"minute": 5 * 60 + 59}, "between 22:00-06:00"),
        ({"hours": "22:00-06:00"}, {"minute": 6 * 60}, None),
        ({"hours": "22:00-06:00"}, {"minute": 22 * 60 - 1}, None),
        (
            {"user": "ana", "keywords": ["x"], "hours": "00:00-23:59"},
            {"user": "ana", "text": "x", "minute": 1},
            "keywords match, user match, between 00:00-23:59",
        ),
    ],
    ids=named,
)
def test_a_rule_may_look_at_the_text_and_at_who_asks_but_does_not_quote_them(when, facts, because):
    decision = decide(task(), ABLE_TO_ALL, policy(rule("r", "chosen", when=when)), Facts(**facts))

    if because:
        assert decision.reason == f"rule r: {because} -> chosen"
    else:
        assert (decision.model, decision.rule) == ("small", None)


def test_a_search_that_takes_too_long_has_found_nothing_and_holds_nobody_up():
    import time

    slow = policy(rule("r", "chosen", when={"regex": "(a+)+$"}))
    begun = time.thread_time()

    decision = decide(task(), ABLE_TO_ALL, slow, Facts(text="a" * 3999 + "!"))

    assert decision.rule is None
    assert time.thread_time() - begun < 0.5  # without a bound it would be years


# --- which rule, and what it does -----------------------------------------------------------------


def test_the_first_rule_that_applies_wins():
    rules = [
        rule("spanish", "large", when={"language": "es"}),
        rule("code", "coder", when={"task": "code"}),
        rule("all", "medium"),
    ]

    assert decide(task("code"), ROLES, policy(*rules)).rule == "code"
    assert decide(task("code"), ROLES, policy(*reversed(rules))).rule == "all"


CODE = {"task": "code"}


@pytest.mark.parametrize(
    ("rules", "facts", "reason"),
    [
        # prefer: the first that is able
        ([rule("r", "coder", "medium")], {}, "rule r: always -> coder"),
        ([rule("r", "medium", "coder")], {}, "rule r: always -> medium"),
        (
            [rule("r", "medium", "coder")],
            {"tools": 1},
            "rule r: always -> coder; medium skipped: it calls no tools",
        ),
        (
            [rule("r", "gone", "medium")],
            {},
            "rule r: always -> medium; gone skipped: it is not there",
        ),
        # only and exclude: the most worthy of those that are left
        (
            [rule("r", only=["coder", "large"])],
            {},
            "rule r: always, fit 0.90, 5.1 s: worth 0.77, next is coder with 0.57 -> large",
        ),
        ([rule("r", only=["coder"])], {}, "rule r: always, the only one left -> coder"),
        (
            [rule("r", exclude=["large"])],
            {},
            "rule r: always, fit 0.80, 5.1 s: worth 0.67, next is small with 0.57 -> medium",
        ),
        ([rule("r", exclude=["large", "medium"])], {}, "rule r: always, the default -> small"),
        # cap: 2 requests are on each
        (
            [rule("r", cap={"large": 2})],
            {},
            "rule r: always, fit 0.80, 5.1 s: worth 0.67, next is small with 0.57 -> medium",
        ),
        (
            [rule("r", cap={"large": 3})],
            {},
            "rule r: always, fit 0.90, 5.1 s: worth 0.77, next is medium with 0.67 -> large",
        ),
        # combinations
        (
            [rule("r", "large", "small", exclude=["large"])],
            {},
            "rule r: always -> small; large skipped: it is left out by the rule",
        ),
        (
            [rule("r", "large", "small", only=["small", "coder"])],
            {},
            "rule r: always -> small; large skipped: it is left out by the rule",
        ),
        (
            [rule("r", "large", "small", cap={"large": 2})],
            {},
            "rule r: always -> small; large skipped: it is capped at 2 requests",
        ),
        (
            [rule("r", only=["large", "small"], exclude=["large"])],
            {},
            "rule r: always, the only one left -> small",
        ),
        # a rule that leaves nothing is passed over
        (
            [rule("r", "coder", when=CODE), rule("s", "medium")],
            {"label": "code", "images": 0, "prompt_tokens": 2400},
            "rule r: code (90% sure) -> coder",
        ),
        (
            [rule("r", "medium"), rule("s", "coder")],
            {"tools": 1},
            "rule s: always -> coder; medium skipped: it calls no tools",
        ),
        (
            [rule("r", only=["medium"]), rule("s", "coder")],
            {"tools": 1},
            "rule s: always -> coder; rule r passed over: it leaves no model",
        ),
        (
            [rule("r", exclude=["coder"]), rule("s", cap={"coder": 0})],
            {"tools": 1},
            "general, the only one left -> coder; rule r passed over: it leaves no model; "
            "rule s passed over: it leaves no model",
        ),
        (
            [rule("r", "small", "medium"), rule("s", "medium", "large")],
            {"images": 1},
            "rule s: always -> large; small skipped: it reads no images; "
            "medium skipped: it reads no images",
        ),
        (
            [rule("r", "large", only=["medium"])],
            {},
            "general, fit 0.90, 5.1 s: worth 0.77, next is medium with 0.67 -> large; "
            "large skipped: it is left out by the rule",
        ),
    ],
    ids=named,
)
def test_what_a_rule_does(rules, facts, reason):
    candidates = [structs.replace(each, held=2) for each in ROLES]
    fit = {"medium": 0.8, "large": 0.9}

    assert decide(task(**facts), candidates, policy(*rules, fit=fit)).reason == reason


def test_a_model_that_a_rule_leaves_out_does_not_stand_by_either():
    left_out = policy(rule("r", exclude=["large"], cap={"medium": 0}), fit={"large": 0.9})

    assert decide(task(), ROLES, left_out).ranking == ("small", "coder")


# --- deadlines ----------------------------------------------------------------------------------

# In seconds: quick 1.1, middle 5.1, slow 50.1.
SPEEDS = [
    model("slow", decode_tokens_per_s=2),
    model("middle", decode_tokens_per_s=20),
    model("quick", decode_tokens_per_s=100),
]
BY_FIT = {"slow": 0.9, "middle": 0.8, "quick": 0.7}


@pytest.mark.parametrize(
    ("of_policy", "of_request", "of_rule", "expected"),
    [
        (None, None, None, "slow"),
        (60, None, None, "slow"),
        (50.1, None, None, "slow"),
        (50, None, None, "middle"),
        (None, 50, None, "middle"),
        (None, None, 50, "middle"),
        (60, 50, 2, "quick"),  # the shortest counts
        (2, 50, 60, "quick"),
        (60, 2, 50, "quick"),
    ],
)
def test_only_models_that_are_in_time_are_left(of_policy, of_request, of_rule, expected):
    rules = [rule("r", deadline_s=of_rule)] if of_rule else []
    chosen = policy(*rules, fit=BY_FIT, price_per_second=0, deadline_s=of_policy)

    decision = decide(task(), SPEEDS, chosen, Facts(deadline_s=of_request))

    assert decision.model == expected
    assert set(decision.ranking) == {"slow", "middle", "quick"}  # later is better than never


@pytest.mark.parametrize(
    ("rules", "deadline_s", "reason"),
    [
        (
            [],
            0.5,
            "general, the only one left -> quick; nobody is expected to answer within 0.5 s",
        ),
        (
            [rule("r", "slow", "middle")],
            10,
            "rule r: always -> middle; slow skipped: it is expected to take 50.1 s",
        ),
        (
            [rule("r", "slow")],
            2,
            "rule r: always, the only one left -> quick; "
            "slow skipped: it is expected to take 50.1 s",
        ),
        (
            [rule("r", only=["slow", "middle"])],
            2,
            "rule r: always, the only one left -> middle; nobody is expected to answer within 2 s",
        ),
    ],
    ids=named,
)
def test_a_deadline_in_the_reason(rules, deadline_s, reason):
    decision = decide(task(), SPEEDS, policy(*rules, fit=BY_FIT), Facts(deadline_s=deadline_s))

    assert decision.reason == reason


# --- worth --------------------------------------------------------------------------------------


def test_of_those_that_are_late_but_equally_quick_the_most_worthy_answers():
    candidates = [model("small"), model("better")]

    decision = decide(task(), candidates, policy(fit={"better": 0.8}), Facts(deadline_s=1))

    assert decision.model == "better"


def test_a_second_costs_its_price():
    slower = [model("small", decode_tokens_per_s=10), model("quick", decode_tokens_per_s=20)]
    best = {"small": 0.75, "quick": 0.7}  # 0.05 more, for 5 s more

    assert decide(task(), slower, policy(fit=best, price_per_second=0.009)).model == "small"
    assert decide(task(), slower, policy(fit=best, price_per_second=0.011)).model == "quick"


@pytest.mark.parametrize(
    ("worse", "expected"),
    [
        ({"load_s": 1}, "other"),
        ({"queue_s": 1}, "other"),
        ({"prefill_tokens_per_s": 100}, "other"),
        ({"decode_tokens_per_s": 19}, "other"),
        ({"displacement_s": 1}, "other"),
        ({"cached_tokens": 50}, "small"),
        ({}, "small"),  # the default wins ties
    ],
    ids=named,
)
def test_everything_that_takes_time_counts(worse, expected):
    assert decide(task(), [model("other"), model("small", **worse)], policy()).model == expected


def test_the_worth_is_explained_number_by_number():
    busy = model(
        "small",
        load_s=10,
        queue_s=2,
        prefill_tokens_per_s=50,
        decode_tokens_per_s=25,
        cached_tokens=40,
        displacement_s=3,
        state="cold",
    )

    (found,) = assess(task(prompt_tokens=100), [busy], policy())

    assert structs.asdict(found.predicted_seconds) == {
        "load": 10,
        "queue": 2,
        "prefill": 60 / 50,
        "decode": 100 / 25,
        "total": pytest.approx(17.2),
    }
    assert (found.model, found.capable, found.why_not, found.state) == ("small", True, None, "cold")
    assert found.fit == 0.7
    assert found.displacement == pytest.approx(0.03)
    assert found.worth == pytest.approx(0.7 - 0.172 - 0.03)


def test_what_other_models_compute_gets_slower_by_an_answer_and_that_counts():
    # 5 s of writing and 0.1 s of reading, beside one model with 2 requests and another with 1.
    alone, one, two = (
        assess(task(), [SMALL, model("coder", held=2 * (n > 0)), model("medium", held=n > 1)], p)[0]
        for n, p in ((0, policy()), (1, policy()), (2, policy()))
    )

    computed = alone.predicted_seconds.prefill + alone.predicted_seconds.decode
    assert alone.displacement == 0
    assert one.displacement == pytest.approx(0.01 * computed * 2 / 2)
    assert two.displacement == pytest.approx(0.01 * computed * 3 / 3)
    itself = assess(task(), [model("small", held=9)], policy())[0]
    assert itself.displacement == 0  # what its own model holds is in its queue


def test_a_client_that_asks_for_less_gets_it_sooner_and_one_that_asks_for_more_does_not_count():
    def decode_s(output_tokens):
        asked = task(output_tokens=output_tokens)
        return assess(asked, [SMALL], policy())[0].predicted_seconds.decode

    assert [decode_s(each) for each in (0, 20, 100, 10**9)] == [5, 1, 5, 5]


def test_more_in_the_cache_than_the_prompt_has_costs_nothing():
    full = model("small", cached_tokens=500)

    assert assess(task(), [full], policy())[0].predicted_seconds.prefill == 0


@pytest.mark.parametrize(
    ("row", "facts", "fit"),
    [
        (FitSettings(code=0.9, other=0.2), {"label": "code"}, 0.9),
        (FitSettings(code=0.9, other=0.2), {"label": "math"}, 0.2),
        (FitSettings(code=0.9), {"label": "math"}, 0.5),
        (FitSettings(code=0.9, slope=0.4), {"label": "code", "difficulty": 0}, 0.9),
        (FitSettings(code=0.9, slope=0.4), {"label": "code", "difficulty": 1}, 0.5),
        (FitSettings(code=0.9, slope=0.4), {"label": "code", "difficulty": 0.5}, 0.7),
        (FitSettings(other=0.1, slope=0.4), {"difficulty": 1}, 0),  # never below
        (FitSettings(other=0.9, languages={"es": 0.2}), {"language": "es"}, 1),  # never above
        (FitSettings(other=0.5, languages={"es": -0.2}), {"language": "es"}, 0.3),
        (FitSettings(other=0.5, languages={"es": -0.2}), {"language": "en"}, 0.5),
        (FitSettings(other=0.5, languages={"es": -0.2}), {"language": None}, 0.5),
        (None, {}, 0.7),  # as any other model
    ],
    ids=named,
)
def test_the_fit_is_read_from_the_table(row, facts, fit):
    fits = BASE.fits | ({"small": row} if row else {})

    found = structs.replace(BASE, fits=fits).fit("small", task(**facts))

    assert found == pytest.approx(fit)


def test_each_task_has_its_fit():
    row = FitSettings(**{label: index / 10 for index, label in enumerate(TASKS, 1)})
    table = structs.replace(BASE, fits={"small": row})

    assert [table.fit("small", task(label)) for label in TASKS] == [
        index / 10 for index, _ in enumerate(TASKS, 1)
    ]
    assert table.fit("unknown", task()) == 0.5


def test_a_tie_goes_to_the_default_and_else_to_the_model_that_was_configured_first():
    tie = policy(default="large")

    assert decide(task(), ROLES, tie).reason == "general, the default -> large"
    assert decide(task(), [SMALL, MEDIUM, CODER], tie).model == "small"
    assert decide(task(), [MEDIUM, SMALL, CODER], tie).model == "medium"


# --- conversations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "expected"),
    [(0.04, "holder"), (0.05, "holder"), (0.06, "other"), (-0.1, "holder")],
)
def test_a_conversation_stays_unless_another_model_is_worth_more_by_the_margin(gain, expected):
    candidates = [model("other"), model("holder", holds_conversation=True)]

    decision = decide(task(), candidates, policy(fit={"other": 0.7 + gain}))

    assert decision.model == expected
    assert ("the conversation stays" in decision.reason) == (0 < gain <= 0.05)


def test_a_rule_that_prefers_another_takes_the_conversation_away():
    candidates = [model("other"), model("holder", holds_conversation=True)]

    assert decide(task(), candidates, policy(rule("r", "other"))).model == "other"
    assert decide(task(), candidates, policy(rule("r", exclude=["holder"]))).model == "other"
    stays = decide(task(), candidates, policy(rule("r", only=["holder", "other"]), default="other"))
    assert stays.reason == "rule r: always, the conversation stays -> holder"


@pytest.mark.parametrize(
    "rules",
    [[rule("r", "other")], [rule("r", only=["other"])], [rule("r", exclude=["holder"])], []],
    ids=named,
)
def test_a_model_that_waits_for_its_tool_goes_on_whatever_rules_and_deadline_say(rules):
    candidates = [
        model("other", tools=True),
        model("holder", tools=True, holds_conversation=True, state="cold", load_s=60),
    ]
    hasty = policy(*rules, fit={"other": 1, "holder": 0}, deadline_s=1, serve_while_loading=True)

    goes_on = decide(task(tools=1, tool_loop=True), candidates, hasty)

    assert goes_on.reason == "it waits for the result of its tool -> holder"
    assert (goes_on.rule, goes_on.loads) == (None, None)
    assert goes_on.ranking == ("holder", "other")
    assert decide(task(tools=1), candidates, hasty).model == "other"


def test_a_model_that_waits_for_its_tool_goes_on_though_its_context_may_become_too_short():
    candidates = [
        model("other", 99_999, tools=True),
        model("holder", 4_000, tools=True, holds_conversation=True),
    ]

    decision = decide(task(tools=1, tool_loop=True, prompt_tokens=3_500), candidates, policy())

    assert decision.reason == "it waits for the result of its tool -> holder"
    asks_anew = task(tools=1, prompt_tokens=3_500)
    assert decide(asks_anew, candidates, policy()).model == "other"


def test_a_model_that_waits_for_its_tool_and_is_broken_is_replaced():
    candidates = [
        model("other", tools=True),
        model("holder", tools=True, holds_conversation=True, retry_in_s=9),
    ]

    assert decide(task(tools=1, tool_loop=True), candidates, policy()).model == "other"


# --- capability and doubts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"prompt_tokens": 2490}, "coder"),  # medium is as good and comes later
        ({"prompt_tokens": 5300}, "large"),
        ({"images": 1}, "large"),
        ({"tools": 1}, "coder"),
    ],
    ids=named,
)
def test_what_a_model_cannot_do_is_never_traded(facts, expected):
    best = policy(rule("r", "small"), fit={"small": 1, "medium": 0.7, "coder": 0.7, "large": 0})

    decision = decide(task(**facts), ROLES, best)

    assert (decision.model, decision.rule) == (expected, None)
    assert "; small skipped: it " in decision.reason


def test_a_model_that_failed_is_avoided():
    candidates = [SMALL, model("coder", 4000, retry_in_s=9), MEDIUM]
    rules = policy(rule("code", "coder", "medium", when=CODE))

    decision = decide(task("code"), candidates, rules)

    assert decision.reason == ("rule code: code (90% sure) -> medium; coder skipped: it has failed")
    assert decision.ranking == ("medium", "small", "coder")


def test_a_default_that_failed_is_avoided():
    candidates = [model("small", 2000, retry_in_s=9), MEDIUM]

    assert decide(task(), candidates, policy()).reason == (
        "general, the only one left -> medium; small skipped: it has failed"
    )


def test_a_model_that_failed_is_used_when_nothing_better_is_left():
    candidates = [model("small", 2000, retry_in_s=9), model("large", 8000, retry_in_s=9)]

    decision = decide(task(), candidates, policy())

    assert decision.model == "small"
    assert decision.reason == (
        "general, the default -> small although it has failed: nothing better is left"
    )


@pytest.mark.parametrize("state", ["cold", "loading", "ready", "draining", "failed"])
def test_no_state_matters_but_for_its_seconds_not_even_a_failure_whose_pause_is_over(state):
    candidates = [model("small", 2000, state=state), model("large", 8000, state="ready")]

    assert decide(task(), candidates, policy()).reason == "general, the default -> small"


@pytest.mark.parametrize(
    ("prompt_tokens", "expected"),
    [
        (535, "small"),  # two fifths more is 749, and 250 for the answer
        (536, "large"),  # two fifths more is 750.4: small may be too short
        (1249, "large"),  # a fifth less is 999.2: small could still do it
        (1250, "large"),
    ],
)
def test_a_context_that_may_be_too_short_is_taken_after_one_that_is_surely_enough(
    prompt_tokens, expected
):
    candidates = [model("small", 1000), model("large", 8000)]

    decision = decide(task(prompt_tokens=prompt_tokens), candidates, policy())

    assert decision.model == expected
    assert ("small" in decision.ranking) == (prompt_tokens <= 1249)
    assert decision.candidates[0].capable == (prompt_tokens <= 1249)


def test_a_context_that_may_be_too_short_is_used_when_nothing_better_is_left():
    assert decide(task(prompt_tokens=1249), [model("small", 1000)], policy()).reason == (
        "general, the only one left -> small although it may have too short a context: "
        "nothing better is left"
    )
    assert refusal_of(task(prompt_tokens=1250), [model("small", 1000)]).code == (
        "context_length_exceeded"
    )


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "expected"),
    [
        (100, 10**9, "small"),  # an upper bound, which chat apps set far above what they get
        (1000, 0, "small"),  # 1400 and 512 for the answer are within 2048
        (1098, 0, "large"),  # 1537.2 and 512 are not
        (1098, 510, "small"),  # who asks for less gets by with less
        (1098, 511, "large"),
        (1098, 10**9, "large"),
    ],
)
def test_a_context_that_is_enough_has_room_for_an_answer(prompt_tokens, output_tokens, expected):
    candidates = [model("small", 2048), model("large", 8000)]
    asked = task(prompt_tokens=prompt_tokens, output_tokens=output_tokens)

    assert decide(asked, candidates, policy()).model == expected


@pytest.mark.parametrize(("prompt_tokens", "expected"), [(53, "small"), (54, "large")])
def test_in_a_small_context_a_quarter_is_room_enough(prompt_tokens, expected):
    candidates = [model("small", 100), model("large", 8000)]

    assert decide(task(prompt_tokens=prompt_tokens), candidates, policy()).model == expected


def test_a_named_model_refuses_what_is_many_times_its_context():
    assert unable(task(prompt_tokens=8 * SMALL.max_model_len), SMALL) is None

    refusal = unable(task(prompt_tokens=8 * SMALL.max_model_len + 1), SMALL)

    assert refusal is not None
    assert refusal.code == "context_length_exceeded"
    assert refusal.message.startswith(
        f"This model's maximum context length is {SMALL.max_model_len} tokens. However, the prompt "
        "is about "
    )


def test_to_be_perhaps_too_short_is_better_than_to_have_failed():
    candidates = [model("small", 1000), model("large", 8000, retry_in_s=9)]

    decision = decide(task(prompt_tokens=1000), candidates, policy(rule("r", "large")))

    assert decision.reason == (
        "general, the only one left -> small although it may have too short a context: "
        "nothing better is left; large skipped: it has failed"
    )


def test_both_doubts_are_named():
    failed = model("small", 1000, retry_in_s=9)

    assert "although it has failed and may have too short a context:" in (
        decide(task(prompt_tokens=1000), [failed], policy()).reason
    )


def test_those_that_stand_by_are_in_the_order_of_their_doubts_and_then_of_their_worth():
    candidates = [
        model("broken", 4000, retry_in_s=9),
        model("tight", 1000),
        model("tight_but_better", 1000),
        model("enough", 4000),
        model("blind", 100),
    ]

    decision = decide(
        task(prompt_tokens=1000), candidates, policy(fit={"tight_but_better": 0.8, "broken": 0.9})
    )

    assert decision.ranking == ("enough", "tight_but_better", "tight", "broken")


@pytest.mark.parametrize(
    ("facts", "only"),
    [
        ({"images": 1}, model("only", 500, vision=True, retry_in_s=9)),
        ({"tools": 1}, model("only", 500, tools=True, retry_in_s=9)),
        ({"images": 1, "tools": 1}, model("only", 500, vision=True, tools=True, retry_in_s=9)),
        ({"prompt_tokens": 600}, model("only", 500, retry_in_s=9)),
    ],
    ids=named,
)
def test_what_no_other_model_can_is_done_by_one_that_failed_and_is_tight(facts, only):
    others = [model("small", 450), model("sees", 100, vision=True), model("calls", 100, tools=True)]
    asked = task(**{"prompt_tokens": 450} | facts)

    decision = decide(asked, [*others, only], policy(rule("r", "small")))

    assert decision.model == "only"


def test_every_model_is_assessed_with_why_it_could_not_have_answered():
    decision = decide(
        task(images=1, tools=1, prompt_tokens=5000),
        [
            model("neither", 100),
            model("blind", 8000, tools=True),
            model("mute", 8000, vision=True),
            model("short", 3000, vision=True, tools=True),
            model("able", 8000, vision=True, tools=True),
            model("broken", 8000, vision=True, tools=True, retry_in_s=9),  # but able
        ],
        policy(default="able"),
    )

    assert decision.model == "able"
    assert [(each.model, each.capable, each.why_not) for each in decision.candidates] == [
        ("neither", False, "reads no images and calls no tools"),
        ("blind", False, "reads no images"),
        ("mute", False, "calls no tools"),
        ("short", False, "has a context of only 3000 tokens"),
        ("able", True, None),
        ("broken", True, None),
    ]


# --- while a model loads ------------------------------------------------------------------------

SERVE = policy(rule("code", "coder", "large", when=CODE), serve_while_loading=True)


@pytest.mark.parametrize(
    ("states", "answers", "loads"),
    [
        ({"coder": "ready", "large": "ready", "small": "ready"}, "coder", None),
        ({"coder": "cold", "large": "ready", "small": "ready"}, "large", "coder"),
        ({"coder": "loading", "large": "cold", "small": "ready"}, "small", "coder"),
        ({"coder": "draining", "large": "loading", "small": "cold"}, "coder", None),
        ({"coder": "broken", "large": "cold", "small": "ready"}, "small", "large"),
        ({"coder": "failed", "large": "cold", "small": "ready"}, "small", "coder"),
    ],
    ids=named,
)
def test_with_serve_while_loading_the_next_best_in_memory_answers(states, answers, loads):
    candidates = [
        model(name, state=state, retry_in_s=9 * (state == "broken"))
        for name, state in states.items()
    ]

    decision = decide(task("code"), candidates, SERVE)

    assert (decision.model, decision.loads) == (answers, loads)
    assert (f"; {answers} answers while {loads} loads" in decision.reason) == (loads is not None)
    assert decision.ranking[0] == loads or answers


def test_without_it_the_request_waits():
    candidates = [model("coder", state="cold"), model("small")]
    waits = structs.replace(SERVE, serve_while_loading=False)

    assert decide(task("code"), candidates, waits).loads is None


def test_a_stand_in_can_do_what_was_asked_too():
    candidates = [model("coder", tools=True, state="cold"), model("large"), model("small")]

    decision = decide(task("code", tools=1), candidates, SERVE)

    assert (decision.model, decision.loads) == ("coder", None)


def test_a_stand_in_is_not_one_that_the_rule_leaves_out():
    candidates = [model("coder", state="cold"), model("small")]
    strict = structs.replace(SERVE, rules=(make_rule(rule("r", only=["coder"])),))

    assert decide(task("code"), candidates, strict).model == "coder"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "candidates", "problem", "param"),
    [
        ({"images": 1}, [SMALL, CODER], "1 image, but no model here reads images", "messages"),
        ({"images": 3}, [SMALL], "3 images, but no model here reads images", "messages"),
        ({"tools": 1}, [SMALL, LARGE], "1 tool, but no model here calls tools", "tools"),
        (
            {"images": 2, "tools": 1},
            [SMALL, MEDIUM],
            "2 images and 1 tool, but no model here reads images and calls tools",
            None,
        ),
        (  # each is there, but never both
            {"images": 2, "tools": 1},
            [CODER, LARGE],
            "2 images and 1 tool, but no model here reads images and calls tools",
            None,
        ),
        (  # tools are there: the images are at fault
            {"images": 2, "tools": 1},
            [SMALL, CODER],
            "2 images, but no model here reads images",
            "messages",
        ),
        (
            {"images": 2, "tools": 1},
            [SMALL, LARGE],
            "1 tool, but no model here calls tools",
            "tools",
        ),
    ],
    ids=named,
)
def test_what_nobody_can_is_refused_by_its_name(facts, candidates, problem, param):
    refusal = refusal_of(task(**facts), candidates)

    assert refusal.message == (
        f"The request has {problem}. "
        "Leave them out, or use a model that can; GET /v1/models lists them."
    )
    assert (refusal.code, refusal.param) == ("no_capable_model", param)
    assert str(refusal) == refusal.message


def test_a_prompt_past_every_context_is_refused_with_both_numbers():
    refusal = refusal_of(task(prompt_tokens=12000, output_tokens=500), ROLES)

    assert refusal.message == (
        "This model's maximum context length is 8000 tokens "
        "(`large`, the largest model that could answer). "
        "However, the prompt is about 12000 tokens. Shorten it."
    )
    assert (refusal.code, refusal.param) == ("context_length_exceeded", "messages")


def test_the_largest_context_that_is_named_is_of_a_model_with_the_skills():
    refusal = refusal_of(task(prompt_tokens=12000, tools=1), ROLES)

    assert refusal.message.startswith(
        "This model's maximum context length is 4000 tokens (`coder`, "
    )
    assert refusal.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("facts", "named", "problem", "param"),
    [
        ({"images": 1}, SMALL, "1 image, but the model `small` reads no images", "messages"),
        ({"tools": 2}, LARGE, "2 tools, but the model `large` calls no tools", "tools"),
        (
            {"images": 1, "tools": 1},
            SMALL,
            "1 image and 1 tool, but the model `small` reads no images and calls no tools",
            None,
        ),
        (
            {"images": 1, "tools": 1},
            LARGE,
            "1 tool, but the model `large` calls no tools",
            "tools",
        ),
    ],
    ids=named,
)
def test_a_named_model_without_the_skills_refuses(facts, named, problem, param):
    refusal = unable(task(**facts), named)

    assert refusal is not None
    assert refusal.message == (
        f"The request has {problem}. "
        "Leave them out, or use a model that can; GET /v1/models lists them."
    )
    assert (refusal.code, refusal.param) == ("no_capable_model", param)


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({}, SMALL),
        ({"images": 1}, LARGE),
        ({"tools": 1}, CODER),
        ({"prompt_tokens": 2 * SMALL.max_model_len}, SMALL),  # its engine counts exactly
        ({"output_tokens": 10**9}, SMALL),
        ({}, model("small", retry_in_s=9)),
    ],
    ids=named,
)
def test_a_named_model_is_not_refused_for_anything_else(facts, named):
    assert unable(task(**facts), named) is None


# --- the reason ---------------------------------------------------------------------------------


def test_the_reason_says_which_task_it_is_and_how_sure_that_is():
    asked = task("code", confidence=0.974)

    decision = decide(asked, ROLES, policy(rule("code", "coder", when=CODE)))

    assert decision.reason == "rule code: code (97% sure) -> coder"
    assert decide(asked, ROLES, policy()).reason == "code (97% sure), the default -> small"


def test_no_likely_task_needs_no_number():
    decision = decide(task(), ROLES, policy(rule("talk", "small", when={"task": "general"})))

    assert decision.reason == "rule talk: general -> small"


def test_the_decision_says_by_which_policy_it_was_made():
    decision = decide(task(), ROLES, BASE)

    assert (decision.policy, decision.version) == ("test", BASE.version)


# --- what always holds --------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
CLIENTS = "zebra"  # is in all that the client says
shares = st.floats(0, 1)
seconds = st.sampled_from([0.0, 0.5, 10.0, 300.0])

tasks = st.builds(
    Task,
    label=st.sampled_from(["code", "general"]),
    confidence=shares,
    difficulty=shares,
    language=st.sampled_from(["en", "es", None]),
    prompt_tokens=st.integers(0, 3000),
    output_tokens=st.sampled_from([0, 1, 100, 2000]),
    images=st.integers(0, 2),
    tools=st.integers(0, 2),
    turns=st.integers(0, 3),
    tool_loop=st.booleans(),
    signals=st.just({CLIENTS: CLIENTS}),
)
facts = st.builds(
    Facts,
    text=st.sampled_from([CLIENTS, f"word {CLIENTS}\r\nñ"]),
    user=st.just(CLIENTS),
    headers=st.just({CLIENTS: CLIENTS}),
    metadata=st.just({CLIENTS: CLIENTS}),
    minute=st.integers(0, 1439),
    deadline_s=st.none() | st.floats(0.001, 100),
)


def candidates_named(name):
    return st.builds(
        Candidate,
        model=st.just(name),
        max_model_len=st.sampled_from([16, 1000, 2000, 4000]),
        vision=st.booleans(),
        tools=st.booleans(),
        state=st.sampled_from(["cold", "loading", "ready", "draining", "failed"]),
        retry_in_s=st.sampled_from([0.0, 0.5, 60.0]),
        held=st.integers(0, 2),
        load_s=seconds,
        queue_s=seconds,
        prefill_tokens_per_s=st.sampled_from([10.0, 1000.0]),
        decode_tokens_per_s=st.sampled_from([2.0, 20.0]),
        cached_tokens=st.sampled_from([0, 500]),
        holds_conversation=st.booleans(),
        displacement_s=seconds,
    )


candidate_lists = st.lists(
    st.sampled_from(NAMES).flatmap(candidates_named),
    min_size=1,
    unique_by=lambda candidate: candidate.model,
)
conditions = st.builds(
    ConditionSettings,
    task=st.sampled_from([None, "code", "general"]),
    difficulty_min=st.none() | shares,
    prompt_tokens_min=st.none() | st.integers(0, 3000),
    turns_max=st.none() | st.integers(0, 3),
    images=st.sampled_from([None, True, False]),
    language=st.sampled_from([None, "en", "es"]),
    keywords=st.sampled_from([None, ["word"]]),
    regex=st.sampled_from([None, "w.r"]),
    user=st.sampled_from([None, CLIENTS]),
    headers=st.sampled_from([{}, {CLIENTS: "*"}]),
    hours=st.sampled_from([None, "22:00-06:00"]),
)
models = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
rules = st.builds(
    RuleSettings,
    name=st.sampled_from(["r", "s"]),
    when=st.just(ConditionSettings()) | conditions,
    prefer=st.none() | models,
    only=st.none() | models,
    exclude=st.none() | models,
    cap=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2), max_size=2),
    deadline_s=st.none() | st.floats(0.001, 100),
)
percents = st.integers(0, 100).map(lambda percent: percent / 100)
fits = st.fixed_dictionaries(dict.fromkeys(NAMES, percents))
policies = st.builds(
    lambda rules, **changes: policy(*rules, **changes),
    st.lists(rules, max_size=3),
    fit=fits,
    default=st.sampled_from(NAMES),
    price_per_second=st.sampled_from([0.0, 0.0003, 0.003, 0.02]),
    switch_margin=st.sampled_from([0.0, 0.05]),
    deadline_s=st.none() | st.floats(0.001, 100),
    serve_while_loading=st.booleans(),
)


def is_capable(asked, candidate):
    least = asked.prompt_tokens * (1 - FEWER) + 1
    return (
        (candidate.vision or not asked.images)
        and (candidate.tools or not asked.tools)
        and least <= candidate.max_model_len
    )


def outcome(asked, candidates, chosen, seen):
    try:
        return decide(asked, candidates, chosen, seen)
    except Undecidable as refusal:
        return refusal.message, refusal.code, refusal.param


@settings(deadline=None)  # the machine may be busy with something else
@given(tasks, candidate_lists, policies, facts)
def test_the_decision_is_a_capable_model_or_a_refusal_and_always_the_same(
    asked, candidates, chosen, seen
):
    capable = {each.model for each in candidates if is_capable(asked, each)}

    first = outcome(asked, candidates, chosen, seen)

    assert outcome(asked, candidates, chosen, seen) == first
    if not capable:
        assert first[1] in ("no_capable_model", "context_length_exceeded")
        assert CLIENTS not in str(first)
        return
    assert isinstance(first, Decision)
    assert first.model in capable
    assert set(first.ranking) <= capable
    assert len(set(first.ranking)) == len(first.ranking)
    assert first.ranking[0] == (first.loads or first.model)
    assert {each.model for each in first.candidates if each.capable} == capable


@settings(deadline=None)
@given(tasks, candidate_lists, policies, facts)
def test_the_reason_is_one_line_of_ascii_that_names_what_was_chosen_and_nothing_of_the_client(
    asked, candidates, chosen, seen
):
    decision = outcome(asked, candidates, chosen, seen)
    assume(isinstance(decision, Decision))

    assert decision.reason.isascii()
    assert decision.reason.isprintable()
    assert CLIENTS not in decision.reason
    assert decision.rule is None or decision.reason.startswith(f"rule {decision.rule}: ")
    chosen, *notes = decision.reason.split("; ")
    assert re.match(
        rf"[^;]+ -> {decision.ranking[0]}( although [^;]+: nothing better is left)?$", chosen
    )
    if decision.loads:
        assert notes[-1] == f"{decision.model} answers while {decision.loads} loads"


@settings(deadline=None)
@given(tasks, candidate_lists, policies, facts)
def test_the_worth_adds_up(asked, candidates, chosen, seen):
    decision = outcome(asked, candidates, chosen, seen)
    assume(isinstance(decision, Decision))

    for each, candidate in zip(decision.candidates, candidates, strict=True):
        parts = each.predicted_seconds
        assert parts.total == pytest.approx(parts.load + parts.queue + parts.prefill + parts.decode)
        assert min(structs.astuple(parts)) >= 0
        assert 0 <= each.fit <= 1
        least = chosen.price_per_second * candidate.displacement_s
        others = sum(other.held for other in candidates) - candidate.held
        most = least + chosen.price_per_second * (parts.prefill + parts.decode) * others
        assert least - 1e-9 <= each.displacement <= most + 1e-9
        assert each.worth == pytest.approx(
            each.fit - chosen.price_per_second * parts.total - each.displacement
        )


@settings(deadline=None)
@given(tasks, candidate_lists, fits, st.lists(percents, min_size=2, max_size=5))
def test_when_time_costs_more_the_choice_never_takes_longer(asked, candidates, fit, prices):
    asked = structs.replace(asked, tool_loop=False)
    alone = [structs.replace(each, holds_conversation=False) for each in candidates]

    def took(price):
        decision = outcome(asked, alone, policy(fit=fit, price_per_second=price), Facts())
        assume(isinstance(decision, Decision))
        # What others lose is time too.
        found = next(each for each in decision.candidates if each.model == decision.model)
        here = next(each for each in alone if each.model == decision.model)
        return found.predicted_seconds.total + here.displacement_s

    for cheap, dear in itertools.pairwise(took(price) for price in sorted(prices)):
        assert dear <= cheap + 1e-6


@settings(deadline=None)
@given(tasks, candidate_lists, policies, facts, st.randoms(use_true_random=False))
def test_the_order_of_the_models_only_breaks_ties(asked, candidates, chosen, seen, randomly):
    candidates = [structs.replace(each, holds_conversation=False) for each in candidates]
    shuffled = randomly.sample(candidates, len(candidates))

    first = outcome(asked, candidates, chosen, seen)
    second = outcome(asked, shuffled, chosen, seen)

    assert isinstance(first, Decision) == isinstance(second, Decision)
    if isinstance(first, Decision):
        worths = {each.model: each.worth for each in first.candidates}
        assert first.rule == second.rule
        assert worths[first.ranking[0]] == pytest.approx(worths[second.ranking[0]])
