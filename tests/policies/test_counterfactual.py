"""What would have to be different: every sentence is tried by somebody who only reads it."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from config import ConditionSettings, PolicySettings, RuleSettings
from config.policy import FitSettings
from policies import Candidate, Task, Undecidable, counterfactuals, decide, make_policy
from policies.counterfactual import SENTENCES_MAX

NAMES = ["small", "coder", "medium", "large"]


def policy(*rules, fit=None, name="test", **changes):
    rows = {
        model: FitSettings(other=value, slope=0.3) if isinstance(value, float) else value
        for model, value in (fit or {}).items()
    }
    made = PolicySettings(
        default="small", rules=list(rules), fit={"*": FitSettings(other=0.7)} | rows, **changes
    )
    return make_policy(name, made, Path("test.yaml"), NAMES)


def rule(name, *prefer, **when):
    return RuleSettings(name=name, when=ConditionSettings(**when), prefer=list(prefer))


def model(name, context=8000, **more):
    return Candidate(
        **{"vision": False, "tools": False, "state": "ready"} | more,
        model=name,
        max_model_len=context,
    )


def task(label="general", **facts):
    return Task(**{"confidence": 0.9, "language": "en", "prompt_tokens": 100} | facts, label=label)


def said(asked, candidates, chosen, others=None):
    decision = decide(asked, candidates, chosen)
    return counterfactuals(decision, asked, candidates, chosen, others=others or {})


def winner_after(sentence, asked, candidates, chosen, others):
    """Return who wins when what `sentence` says is done, and who it says would."""
    promised = re.search(r"`(\w+)` would win|would take `(\w+)`", sentence)
    name = promised[1] or promised[2]

    def changed(**facts):
        return [structs.replace(c, **facts) if c.model == name else c for c in candidates]

    if found := re.match(r"Without the rule `([\w-]+)`, ", sentence):
        rules = tuple(r for r in chosen.rules if r.settings.name != found[1])
        chosen = structs.replace(chosen, rules=rules)
    elif sentence.endswith("if it were in memory."):
        candidates = changed(
            state="ready", load_s=0.0, retry_in_s=0.0, displacement_s=0.0, evicts=()
        )
    elif sentence.endswith("if it were idle."):
        candidates = changed(queue_s=0.0, held=0)
    elif sentence.endswith("if no model had this conversation."):
        candidates = [
            structs.replace(c, holds_conversation=False, cached_tokens=0) for c in candidates
        ]
    elif found := re.search(r"just (below|above) ([\d,]+) prompt tokens\.$", sentence):
        tokens = int(found[2].replace(",", "")) + (1 if found[1] == "above" else -1)
        asked = structs.replace(asked, prompt_tokens=tokens)
    elif found := re.search(r"just (below|above) a difficulty of (\d+)%\.$", sentence):
        percent = int(found[2]) + (1 if found[1] == "above" else -1)
        asked = structs.replace(asked, difficulty=percent / 100)
    elif found := re.search(r"taken for (\w+) \((\d+)% likely\)\.$", sentence):
        asked = structs.replace(asked, label=found[1], confidence=int(found[2]) / 100)
    elif found := re.match(r"`([\w:]+)` would take ", sentence):
        chosen = others[found[1]]
    else:
        raise AssertionError(sentence)
    return decide(asked, candidates, chosen).model, name


def test_the_rule_that_decided_is_named():
    chosen = policy(rule("night", "large"))

    assert said(task(), [model("small"), model("large")], chosen) == [
        "Without the rule `night`, `small` would win."
    ]


def test_the_better_model_that_is_not_in_memory_is_named():
    candidates = [model("small"), model("large", state="cold", load_s=60, displacement_s=5)]

    assert said(task(), candidates, policy(fit={"large": 0.8}))[0] == (
        "`large` would win if it were in memory."
    )


def test_a_model_that_has_failed_would_win_if_it_were_in_memory():
    candidates = [model("small"), model("large", state="failed", retry_in_s=60)]

    assert said(task(), candidates, policy(fit={"large": 0.8}))[0] == (
        "`large` would win if it were in memory."
    )


def test_while_a_model_loads_it_is_told_that_it_would_answer_in_memory():
    chosen = policy(rule("all", "large"), serve_while_loading=True)
    candidates = [model("small"), model("medium"), model("large", state="cold", load_s=60)]

    assert "`large` would win if it were in memory." in said(task(), candidates, chosen)


def test_the_better_model_that_is_busy_is_named():
    candidates = [model("small"), model("large", queue_s=60, held=3)]

    assert said(task(), candidates, policy(fit={"large": 0.8}))[0] == (
        "`large` would win if it were idle."
    )


def test_a_conversation_that_stays_says_who_would_have_a_new_one():
    candidates = [model("small"), model("large", holds_conversation=True, cached_tokens=90)]

    assert said(task(), candidates, policy(fit={"small": 0.72}))[0] == (
        "`small` would win if no model had this conversation."
    )


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (2_000, "`small` would win just below 1,900 prompt tokens."),
        (1_900, "`small` would win just below 1,900 prompt tokens."),
        (1_899, "`large` would win just above 1,899 prompt tokens."),
        (100, "`large` would win just above 1,899 prompt tokens."),
    ],
)
def test_the_number_of_prompt_tokens_is_told_exactly(tokens, sentence):
    chosen = policy(rule("long", "large", prompt_tokens_min=1_900))
    candidates = [model("small"), model("large")]

    assert sentence in said(task(prompt_tokens=tokens), candidates, chosen)


def test_a_long_prompt_finds_the_model_with_the_longer_context():
    candidates = [model("small", 4_000), model("large", 128_000)]

    sentences = said(task(prompt_tokens=10), candidates, policy())

    assert len(sentences) == 1
    assert re.fullmatch(r"`large` would win just above 2,\d\d\d prompt tokens\.", sentences[0])


def test_the_difficulty_is_told_in_percent():
    fit = {"large": FitSettings(other=0.65, slope=0.0), "small": FitSettings(other=0.8, slope=0.3)}
    candidates = [model("small"), model("large")]

    assert said(task(difficulty=0.3), candidates, policy(fit=fit)) == [
        "`large` would win just above a difficulty of 50%."
    ]


def test_the_second_likeliest_kind_of_work_is_told():
    fit = {"coder": FitSettings(code=0.9, other=0.5)}
    asked = task("qa", signals={"qa": 0.6, "code": 0.31, "math": 0.09})

    sentences = said(asked, [model("small"), model("coder")], policy(fit=fit))

    assert "`coder` would win if it were taken for code (31% likely)." in sentences


def test_other_policies_are_named_as_a_client_asks_for_them():
    others = {"auto:best": policy(fit={"large": 0.9}), "auto:same": policy()}

    assert said(task(), [model("small"), model("large")], policy(), others) == [
        "`auto:best` would take `large`."
    ]


def test_of_a_named_model_it_is_only_told_what_auto_would_take():
    candidates = [model("small"), model("large", state="cold", load_s=60)]
    decision = structs.replace(decide(task(), candidates, policy()), model="large")

    sentences = counterfactuals(
        decision, task(), candidates, policy(), others={"auto": policy()}, is_free=False
    )

    assert sentences == ["`auto` would take `small`."]


def test_where_nothing_would_change_anything_nothing_is_said():
    assert said(task(), [model("small")], policy(rule("all", "small"))) == []


_conditions = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["code", "qa", "general"]),
        "difficulty_min": st.sampled_from([0.2, 0.5, 0.8]),
        "prompt_tokens_max": st.integers(0, 9_000),
        "prompt_tokens_min": st.integers(0, 9_000),
        "confidence_min": st.sampled_from([0.3, 0.7]),
    },
)
_seconds = st.sampled_from([0.0, 1.0, 10.0, 100.0])


@st.composite
def _policies(draw):
    rules = [
        RuleSettings(
            name=f"rule{index}",
            when=ConditionSettings(**draw(_conditions)),
            **{
                draw(st.sampled_from(["prefer", "only", "exclude"])): [draw(st.sampled_from(NAMES))]
            },
            cap=draw(st.sampled_from([{}, {"coder": 2}])),
        )
        for index in range(draw(st.integers(0, 3)))
    ]
    fits = draw(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1)))
    return policy(
        *rules,
        fit={name: FitSettings(other=value, slope=0.4) for name, value in fits.items()},
        price_per_second=draw(st.sampled_from([0.0, 0.001, 0.02])),
        switch_margin=draw(st.sampled_from([0.0, 0.1])),
        serve_while_loading=draw(st.booleans()),
        deadline_s=draw(st.sampled_from([None, 5.0, 50.0])),
    )


@st.composite
def _candidates(draw):
    holder = draw(st.sampled_from([*NAMES, None]))
    return [
        model(
            name,
            draw(st.sampled_from([64, 2_000, 8_000])),
            state=(state := draw(st.sampled_from(["ready", "ready", "cold", "failed"]))),
            retry_in_s=30.0 if state == "failed" else 0.0,
            load_s=0.0 if state == "ready" else draw(_seconds),
            queue_s=draw(_seconds),
            held=draw(st.integers(0, 3)),
            displacement_s=draw(_seconds),
            holds_conversation=name == holder,
            cached_tokens=draw(st.integers(0, 3_000)) if name == holder else 0,
            decode_tokens_per_s=draw(st.floats(1, 100)),
        )
        for name in NAMES
    ]


@settings(max_examples=80, deadline=None)
@given(
    st.builds(
        task,
        st.sampled_from(["code", "qa", "general"]),
        prompt_tokens=st.integers(0, 10_000),
        difficulty=st.integers(0, 100).map(lambda percent: percent / 100),
        tool_loop=st.booleans(),
        signals=st.dictionaries(st.sampled_from(["code", "qa", "math"]), st.floats(0.05, 0.9)),
    ),
    _candidates(),
    _policies(),
    _policies(),
)
def test_every_sentence_is_true(asked, candidates, chosen, other):
    others = {"auto:other": other}
    try:
        decision = decide(asked, candidates, chosen)
    except Undecidable:
        return

    sentences = counterfactuals(decision, asked, candidates, chosen, others=others)

    assert len(sentences) <= SENTENCES_MAX
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        winner, promised = winner_after(sentence, asked, candidates, chosen, others)
        assert winner == promised != decision.model, sentence


@pytest.mark.parametrize(("count", "most_s"), [(4, 0.005), (50, 0.050)])
def test_it_takes_milliseconds(count, most_s):
    names = [f"m{index}" for index in range(count)]
    fits = {name: 0.5 + 0.4 * index / count for index, name in enumerate(names)}
    chosen = policy(rule("code", names[1], task="code"), fit=fits)
    # The longest search: everything is tried, and nothing but the policies changes anything.
    candidates = [
        model(name, 4_000 + index, state="ready" if index == 1 else "cold", load_s=9e9, queue_s=1e9)
        for index, name in enumerate(names)
    ]
    candidates[1] = model(names[1], 999_999, held=1)
    asked = task("code", signals={"code": 0.6, "qa": 0.3})
    decision = decide(asked, candidates, chosen)

    def once():
        began = time.perf_counter()
        counterfactuals(decision, asked, candidates, chosen)
        return time.perf_counter() - began

    assert min(once() for _ in range(20)) < most_s
