"""Which model answers, and what the reason says: the tables read as the policy."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import RoutingSettings, RuleSettings
from config.settings import ConditionSettings
from policies import Candidate, Decision, Exclusion, Task, Undecidable, decide, unable
from policies.decide import FEWER


def task(label="general", **facts):
    return Task(**{"confidence": 0.9, "language": "en", "prompt_tokens": 100} | facts, label=label)


def model(name, context=4096, *, vision=False, tools=False, state="cold", retry_in_s=0):
    return Candidate(
        model=name,
        max_model_len=context,
        vision=vision,
        tools=tools,
        state="failed" if retry_in_s else state,
        retry_in_s=retry_in_s,
    )


def rule(name, *prefer, **when):
    return RuleSettings(name=name, when=ConditionSettings(**when), prefer=list(prefer))


def routing(*rules, default="small"):
    return RoutingSettings(default=default, rules=list(rules))


SMALL = model("small", 2000)
CODER = model("coder", 4000, tools=True)
MEDIUM = model("medium", 4000)
LARGE = model("large", 8000, vision=True)
ROLES = [SMALL, CODER, MEDIUM, LARGE]

ABLE_TO_ALL = [model(name, vision=True, tools=True) for name in ("small", "chosen")]


def named(value):
    """Return how a row of a table is called: models by their names."""
    if isinstance(value, list):
        return "+".join(each.model for each in value)
    return value.model if isinstance(value, Candidate) else str(value)


def refusal_of(asked, candidates):
    with pytest.raises(Undecidable) as caught:
        decide(asked, candidates, routing(default=candidates[0].model))
    return caught.value


@pytest.mark.parametrize(
    ("when", "facts", "because"),
    [
        ({}, {}, "always"),
        ({"task": "code"}, {"label": "code"}, "code (90% sure)"),
        ({"task": "code"}, {"label": "general"}, None),
        ({"task": "general"}, {"label": "general"}, "general"),
        ({"task": "general"}, {"label": "code"}, None),
        ({"prompt_tokens_min": 500}, {"prompt_tokens": 500}, "about 500 prompt tokens"),
        ({"prompt_tokens_min": 500}, {"prompt_tokens": 499}, None),
        ({"prompt_tokens_max": 500}, {"prompt_tokens": 500}, "about 500 prompt tokens"),
        ({"prompt_tokens_max": 500}, {"prompt_tokens": 501}, None),
        ({"prompt_tokens_min": 0}, {"prompt_tokens": 0}, "about 0 prompt tokens"),
        ({"prompt_tokens_max": 0}, {"prompt_tokens": 1}, None),
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
    decision = decide(task(**facts), ABLE_TO_ALL, routing(rule("r", "chosen", **when)))

    if because:
        assert decision == Decision(
            model="chosen", reason=f"rule r: {because} -> chosen", rule="r", excluded=()
        )
    else:
        assert (decision.model, decision.rule) == ("small", None)


def test_the_first_rule_that_applies_wins():
    rules = [
        rule("spanish", "large", language="es"),
        rule("code", "coder", task="code"),
        rule("all", "medium"),
    ]

    assert decide(task("code"), ROLES, routing(*rules)).rule == "code"
    assert decide(task("code"), ROLES, routing(*reversed(rules))).rule == "all"


def test_a_rule_takes_the_first_model_it_prefers_that_is_able():
    seen = [
        decide(task("code", **facts), ROLES, routing(rule("code", *prefer, task="code")))
        for prefer, facts in (
            (["coder", "medium"], {}),
            (["medium", "coder"], {}),
            (["medium", "coder"], {"tools": 1}),
        )
    ]

    assert [(each.model, each.reason) for each in seen] == [
        ("coder", "rule code: code (90% sure) -> coder"),
        ("medium", "rule code: code (90% sure) -> medium"),
        ("coder", "rule code: code (90% sure) -> coder; medium skipped: it calls no tools"),
    ]


def test_after_a_rule_whose_models_are_all_unable_comes_the_next_rule():
    rules = [rule("code", "coder", task="code"), rule("long", "medium", prompt_tokens_min=50)]
    candidates = [SMALL, model("coder", 64), MEDIUM]

    decision = decide(task("code"), candidates, routing(*rules))

    assert (decision.model, decision.rule) == ("medium", "long")
    assert decision.reason == (
        "rule long: about 100 prompt tokens -> medium; "
        "coder skipped: it has a context of only 64 tokens"
    )


def test_after_the_last_rule_comes_the_default():
    code = routing(rule("code", "coder", task="code"))

    assert decide(task(), ROLES, code).reason == "no rule applies: the default -> small"
    assert decide(task("code"), [SMALL, model("coder", 64)], code).reason == (
        "the default -> small; coder skipped: it has a context of only 64 tokens"
    )


def test_a_model_that_a_rule_prefers_and_nobody_configured_is_skipped():
    decision = decide(task(), ROLES, routing(rule("r", "gone", "medium")))

    assert decision.reason == "rule r: always -> medium; gone skipped: it is not there"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"prompt_tokens": 2490}, "coder"),  # medium has the same context and comes later
        ({"prompt_tokens": 5300}, "large"),
        ({"images": 1}, "large"),
        ({"tools": 1}, "coder"),
    ],
    ids=named,
)
def test_instead_of_a_default_that_is_unable_the_smallest_context_that_is_enough(facts, expected):
    decision = decide(task(**facts), ROLES, routing())

    assert (decision.model, decision.rule) == (expected, None)
    assert decision.reason.startswith(
        f"smallest context that is enough -> {expected}; small skipped: it "
    )


def test_where_no_context_is_surely_enough_the_largest_is_taken():
    candidates = [model("default", 100), model("a", 1000), model("b", 1100), model("c", 1050)]

    decision = decide(task(prompt_tokens=1000), candidates, routing(default="default"))

    assert decision.reason == (
        "largest context -> b although it may have too short a context: nothing better is left; "
        "default skipped: it has a context of only 100 tokens"
    )


def test_a_tie_goes_to_the_model_that_was_configured_first():
    asked = task(prompt_tokens=2500)

    assert decide(asked, [SMALL, CODER, MEDIUM], routing()).model == "coder"
    assert decide(asked, [SMALL, MEDIUM, CODER], routing()).model == "medium"


def test_a_model_that_failed_is_avoided():
    candidates = [SMALL, model("coder", 4000, retry_in_s=9), MEDIUM]
    rules = routing(rule("code", "coder", "medium", task="code"))

    assert decide(task("code"), candidates, rules).reason == (
        "rule code: code (90% sure) -> medium; coder skipped: it has failed"
    )


def test_a_default_that_failed_is_avoided():
    candidates = [model("small", 2000, retry_in_s=9), MEDIUM]

    assert decide(task(), candidates, routing()).reason == (
        "smallest context that is enough -> medium; small skipped: it has failed"
    )


def test_a_model_that_failed_is_used_when_nothing_better_is_left():
    candidates = [model("small", 2000, retry_in_s=9), model("large", 8000, retry_in_s=9)]

    decision = decide(task(), candidates, routing())

    assert decision.model == "small"
    assert decision.reason == (
        "no rule applies: the default -> small although it has failed: nothing better is left"
    )


@pytest.mark.parametrize("state", ["cold", "loading", "ready", "draining", "failed"])
def test_no_state_matters_not_even_a_failure_whose_pause_is_over(state):
    candidates = [model("small", 2000, state=state), model("large", 8000, state="ready")]

    assert decide(task(), candidates, routing()).reason == "no rule applies: the default -> small"


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

    decision = decide(task(prompt_tokens=prompt_tokens), candidates, routing())

    assert decision.model == expected
    assert bool(decision.excluded) == (prompt_tokens > 1249)


def test_a_context_that_may_be_too_short_is_used_when_nothing_better_is_left():
    assert decide(task(prompt_tokens=1249), [model("small", 1000)], routing()).reason == (
        "no rule applies: the default -> small although it may have too short a context: "
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

    assert decide(asked, candidates, routing()).model == expected


@pytest.mark.parametrize(("prompt_tokens", "expected"), [(53, "small"), (54, "large")])
def test_in_a_small_context_a_quarter_is_room_enough(prompt_tokens, expected):
    candidates = [model("small", 100), model("large", 8000)]

    assert decide(task(prompt_tokens=prompt_tokens), candidates, routing()).model == expected


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

    decision = decide(task(prompt_tokens=1000), candidates, routing(rule("r", "large")))

    assert decision.reason == (
        "the default -> small although it may have too short a context: nothing better is left; "
        "large skipped: it has failed"
    )


SERVE = RoutingSettings(
    default="small", rules=[rule("code", "coder", "large", task="code")], serve_while_loading=True
)


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
)
def test_with_serve_while_loading_the_next_best_in_memory_answers(states, answers, loads):
    candidates = [
        model(name, state=state, retry_in_s=9 * (state == "broken"))
        for name, state in states.items()
    ]

    decision = decide(task("code"), candidates, SERVE)

    assert (decision.model, decision.loads) == (answers, loads)
    assert (f"; {answers} answers while {loads} loads" in decision.reason) == (loads is not None)


def test_a_stand_in_can_do_what_was_asked_too():
    candidates = [
        model("coder", tools=True),
        model("large", state="ready"),
        model("small", state="ready"),
    ]

    decision = decide(task("code", tools=1), candidates, SERVE)

    assert (decision.model, decision.loads) == ("coder", None)


def test_both_doubts_are_named():
    failed = model("small", 1000, retry_in_s=9)

    assert "although it has failed and may have too short a context:" in (
        decide(task(prompt_tokens=1000), [failed], routing()).reason
    )


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

    decision = decide(asked, [*others, only], routing(rule("r", "small")))

    assert decision.model == "only"


def test_a_rule_cannot_send_images_or_tools_to_a_model_without_them():
    rules = routing(rule("r", "medium", "small"))

    seen = decide(task(images=1), ROLES, rules)
    called = decide(task(tools=1), ROLES, rules)

    assert seen.reason == (
        "smallest context that is enough -> large; medium skipped: it reads no images; "
        "small skipped: it reads no images"
    )
    assert called.model == "coder"


def test_every_model_that_could_not_have_answered_is_reported_with_why_not():
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
        routing(default="able"),
    )

    assert decision.model == "able"
    assert decision.excluded == (
        Exclusion("neither", "reads no images and calls no tools"),
        Exclusion("blind", "reads no images"),
        Exclusion("mute", "calls no tools"),
        Exclusion("short", "has a context of only 3000 tokens"),
    )


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


def test_the_reason_says_which_task_it_is_and_how_sure_that_is():
    asked = msgspec.structs.replace(task("code"), confidence=0.974)

    decision = decide(asked, ROLES, routing(rule("code", "coder", task="code")))

    assert decision.reason == "rule code: code (97% sure) -> coder"


def test_no_likely_task_needs_no_number():
    decision = decide(task("general"), ROLES, routing(rule("talk", "small", task="general")))

    assert decision.reason == "rule talk: general -> small"


NAMES = ("a", "b", "c", "d")

tasks = st.builds(
    Task,
    label=st.sampled_from(["code", "general"]),
    confidence=st.floats(0, 1),
    language=st.sampled_from(["en", "es", None]),
    prompt_tokens=st.integers(0, 3000),
    output_tokens=st.sampled_from([0, 1, 100, 2000]),
    images=st.integers(0, 2),
    tools=st.integers(0, 2),
    signals=st.dictionaries(st.text(max_size=5), st.floats(-1, 1), max_size=4),
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
    )


candidate_lists = st.lists(
    st.sampled_from(NAMES).flatmap(candidates_named),
    min_size=1,
    unique_by=lambda candidate: candidate.model,
)
conditions = st.builds(
    ConditionSettings,
    task=st.sampled_from([None, "code", "general"]),
    prompt_tokens_min=st.none() | st.integers(0, 3000),
    prompt_tokens_max=st.none() | st.integers(0, 3000),
    images=st.sampled_from([None, True, False]),
    tools=st.sampled_from([None, True, False]),
    language=st.sampled_from([None, "en", "es"]),
)
routings = st.builds(
    RoutingSettings,
    default=st.sampled_from(NAMES),
    rules=st.lists(
        st.builds(
            RuleSettings,
            name=st.sampled_from(["r", "s"]),
            when=conditions,
            prefer=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        ),
        max_size=3,
    ),
)


def is_capable(asked, candidate):
    least = asked.prompt_tokens * (1 - FEWER) + 1
    return (
        (candidate.vision or not asked.images)
        and (candidate.tools or not asked.tools)
        and least <= candidate.max_model_len
    )


def outcome(asked, candidates, chosen):
    try:
        return decide(asked, candidates, chosen)
    except Undecidable as refusal:
        return refusal.message, refusal.code, refusal.param


@settings(deadline=None)  # the machine may be busy with something else
@given(tasks, candidate_lists, routings)
def test_the_decision_is_a_capable_model_or_a_refusal_and_always_the_same(
    asked, candidates, chosen
):
    capable = {each.model for each in candidates if is_capable(asked, each)}

    first = outcome(asked, candidates, chosen)

    assert outcome(asked, candidates, chosen) == first
    if capable:
        assert isinstance(first, Decision)
        assert first.model in capable
        assert {each.model for each in first.excluded} == {
            each.model for each in candidates
        } - capable
        assert first.reason.isascii()
        assert first.reason.isprintable()
        assert first.rule is None or first.reason.startswith(f"rule {first.rule}: ")
        assert re.match(
            rf"[^;]+ -> {first.model}( although [^;]+: nothing better is left)?(;|$)", first.reason
        )
    else:
        assert first[1] in ("no_capable_model", "context_length_exceeded")


@settings(deadline=None)
@given(tasks, candidate_lists, routings, st.randoms(use_true_random=False))
def test_the_order_of_the_models_only_breaks_ties(asked, candidates, chosen, randomly):
    shuffled = randomly.sample(candidates, len(candidates))

    first, second = outcome(asked, candidates, chosen), outcome(asked, shuffled, chosen)

    assert isinstance(first, Decision) == isinstance(second, Decision)
    if isinstance(first, Decision):
        contexts = {each.model: each.max_model_len for each in candidates}
        assert first.rule == second.rule
        assert contexts[first.model] == contexts[second.model]
