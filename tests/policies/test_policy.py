"""Policy files: what they extend, what is said of what is wrong with one, how long it takes."""

import time
from pathlib import Path

import pytest
from msgspec import structs

from config import (
    ConditionSettings,
    ConfigError,
    PolicySettings,
    RuleSettings,
    Settings,
    read,
    read_as,
)
from policies import SHIPPED, Facts, Task, make_policy, read_policy, shipped_policy

MODELS = ["small", "large"]
RULE = "  - {name: r, when: {task: code}, prefer: [large]}\n"


def task(label="general", difficulty=0.0, language="en"):
    return Task(
        label=label, confidence=0.9, difficulty=difficulty, language=language, prompt_tokens=100
    )


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a policy file and returns its path."""

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def problems(write):
    """Return a function that returns line, key and message of all that is wrong with a text."""

    def problems(text, name="mine.yaml"):
        with pytest.raises(ConfigError) as caught:
            read_policy(write(text, name), MODELS)
        return [(each.line, each.key, each.message) for each in caught.value.problems]

    return problems


# --- what is taken from where -------------------------------------------------------------------


def test_an_empty_file_is_the_balanced_policy_with_the_first_model_as_the_default(write):
    mine, balanced = read_policy(write(""), MODELS), shipped_policy("balanced", MODELS)

    assert mine.name == "mine"
    assert mine.default == "small"
    assert structs.replace(mine, name="balanced", tests=balanced.tests, version="", files=()) == (
        structs.replace(balanced, version="", files=())
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("default", "large"),
        ("price_per_second", 0.5),
        ("price_per_second", 0.0),
        ("switch_margin", 0.5),
        ("switch_margin", 0.0),
        ("deadline_s", 9.0),
        ("serve_while_loading", True),
        ("fallbacks", 0),
    ],
)
def test_a_value_that_is_given_counts_and_the_others_come_from_there(write, key, value):
    write(f"{{{key}: {str(value).lower()}}}", "base.yaml")
    child = read_policy(write("extends: ./base.yaml"), MODELS)
    other = read_policy(write("extends: ./base.yaml\nfallbacks: 7"), MODELS)

    assert getattr(child, key) == value
    if key != "fallbacks":
        assert (getattr(other, key), other.fallbacks) == (value, 7)
    else:
        assert other.fallbacks == 7


def test_the_length_of_answers_is_taken_over_by_task(write):
    mine = read_policy(write("output_tokens: {code: 9}"), MODELS)

    assert mine.output_tokens["code"] == 9
    assert mine.output_tokens["chat"] == shipped_policy("balanced", MODELS).output_tokens["chat"]


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        ("{}", {"code": 0.9, "math": 0.4, "hard code": 0.6, "es code": 0.8}),
        ("{math: 0.7}", {"code": 0.9, "math": 0.7, "hard code": 0.6, "es code": 0.8}),
        ("{other: 0.7}", {"code": 0.7, "math": 0.7, "hard code": 0.4, "es code": 0.6}),
        ("{code: 0.5, other: 0.7}", {"code": 0.5, "math": 0.7, "hard code": 0.2, "es code": 0.4}),
        ("{slope: 0}", {"code": 0.9, "math": 0.4, "hard code": 0.9, "es code": 0.8}),
        ("{languages: {es: 0.1}}", {"code": 0.9, "math": 0.4, "hard code": 0.6, "es code": 1.0}),
        ("{languages: {en: 0.1}}", {"code": 1.0, "math": 0.5, "hard code": 0.7, "es code": 0.8}),
    ],
)
def test_the_fit_is_taken_over_by_task_and_other_speaks_for_all(write, child, expected):
    row = "{code: 0.9, other: 0.4, slope: 0.3, languages: {es: -0.1}}"
    write(f"fit: {{small: {row}}}", "base.yaml")
    mine = read_policy(write(f"extends: ./base.yaml\nfit: {{small: {child}}}"), MODELS)

    asked = {
        "code": task("code"),
        "math": task("math"),
        "hard code": task("code", difficulty=1),
        "es code": task("code", language="es"),
    }
    assert {name: round(mine.fit("small", each), 9) for name, each in asked.items()} == expected
    assert mine.fit("large", task()) == 0.7  # `*` of `balanced`


def test_rules_come_before_those_that_they_extend_and_replace_them_by_name(write):
    first = "  - {name: a, when: {task: math}, prefer: [small]}\n"
    write(f"rules:\n{RULE}{first}", "base.yaml")
    text = (
        "extends: ./base.yaml\nrules:\n"
        "  - {name: b, when: {images: true}, prefer: [large]}\n"
        "  - {name: r, when: {task: chat}, exclude: [large]}\n"
    )
    mine = read_policy(write(text), MODELS)

    assert [each.settings.name for each in mine.rules] == ["b", "r", "a"]
    assert mine.rules[1].settings.exclude == ["large"]
    assert mine.rules[1].applies(task("chat"), Facts())
    assert not mine.rules[1].applies(task("code"), Facts())


def test_tests_are_of_one_file_and_escalation_is_taken_over(write):
    write("escalation: {refusal: true}\ntests:\n  - {prompt: Hello, expect: small}\n", "base.yaml")
    child = read_policy(write("extends: ./base.yaml"), MODELS)

    assert child.tests == ()
    assert child.escalation.refusal


def test_a_chain_of_three_files(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("extends: quality\nfallbacks: 1\ndeadline_s: 5", "sub/first.yaml")
    write("extends: ./sub/first.yaml\nfallbacks: 2\ndefault: large", "second.yaml")
    third = read_policy(write("extends: ./second.yaml\nfallbacks: 3"), MODELS)

    assert (third.fallbacks, third.default, third.deadline_s) == (3, "large", 5)
    assert third.price_per_second == shipped_policy("quality", MODELS).price_per_second


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_may_be_used_without_the_models_it_names(name):
    policy = shipped_policy(name, MODELS)

    assert policy.name == name
    assert policy.default == "small"
    assert policy.fit("small", task()) == 0.7


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_has_no_problems_where_its_models_are(name):
    from config import policy_problems

    roles = ["phi4_fast", "qwen_coder", "mistral_balanced", "gemma3_multimodal"]
    settings = read_as(SHIPPED[name], PolicySettings, lambda data: policy_problems(data, roles))

    assert settings.tests


def test_the_shipped_policies_differ_in_what_time_costs():
    fastest, balanced, quality = (
        shipped_policy(name, MODELS) for name in ("fastest", "balanced", "quality")
    )

    assert fastest.price_per_second > balanced.price_per_second > quality.price_per_second > 0
    assert fastest.serve_while_loading
    assert not balanced.serve_while_loading
    assert not quality.serve_while_loading


@pytest.mark.parametrize(
    "change",
    [
        "default: large",
        "price_per_second: 0.5",
        "switch_margin: 0.5",
        "deadline_s: 5",
        "serve_while_loading: true",
        "fallbacks: 3",
        "output_tokens: {chat: 81}",
        "fit: {small: {code: 0.9}}",
        "fit: {small: {slope: 0.1}}",
        "fit: {small: {languages: {es: 0.1}}}",
        f"rules:\n{RULE}",
        f"rules:\n{RULE.replace('code', 'math')}",
        "rules: [{name: r, when: {hours: '01:00-02:00'}, cap: {small: 1}}]",
        "escalation: {logprob_min: -1}",
        "tests: [{prompt: Hello, expect: small}]",
        "extends: quality",
    ],
)
def test_the_version_changes_with_every_key_and_with_nothing_else(write, change):
    plain = read_policy(write(""), MODELS).version

    first = read_policy(write(change), MODELS)
    again = read_policy(write(f"# a comment\n{change}\n\n", "other.yaml"), MODELS)

    assert first.version != plain
    assert again.version == first.version
    assert len(plain) == 12


def test_the_version_changes_with_what_is_extended_and_with_the_default_that_stands_in(write):
    write("fallbacks: 1", "base.yaml")
    mine = write("extends: ./base.yaml")
    before = read_policy(mine, MODELS).version
    write("fallbacks: 3", "base.yaml")

    assert read_policy(mine, MODELS).version != before
    assert read_policy(mine, MODELS).version != read_policy(mine, MODELS[::-1]).version


def test_the_policy_of_a_configuration_may_extend_files_too(write):
    write("fallbacks: 5", "base.yaml")
    text = "models: [{name: small, source: ./s}]\nrouting:\n  extends: ./base.yaml\n"
    path = write(text, "axion.yaml")

    settings: Settings = read(path)

    assert make_policy("default", settings.routing, path, ["small"], "routing").fallbacks == 5


# --- what is refused ----------------------------------------------------------------------------

ONE_RULE = "rules:\n  - name: r\n    when: {%s}\n    prefer: [small]\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fallback: 1", (1, "fallback", "unknown key (did you mean `fallbacks`?)")),
        (
            "fit:\n  small: {cod: 1}",
            (2, "fit.small.cod", "unknown key (did you mean `code`?)"),
        ),
        (
            ONE_RULE % "langage: es",
            (3, "rules[0].when.langage", "unknown key (did you mean `language`?)"),
        ),
        ("fit: {small: {code: 1.1}}", (1, "fit.small.code", "expected a number <= 1.0, found 1.1")),
        (
            "fit:\n  small:\n    slope: -0.1",
            (3, "fit.small.slope", "expected a number >= 0.0, found -0.1"),
        ),
        ("price_per_second: .nan", (1, "price_per_second", "expected a finite number, found NaN")),
        (
            "default: smal",
            (1, "default", "there is no model called `smal` (did you mean `small`?)"),
        ),
        (
            "fit:\n  tiny: {code: 1}",
            (2, "fit.tiny", "there is no model called `tiny` (there are: *, large, small)"),
        ),
        (
            "rules:\n  - {name: r, when: {}, only: [tiny]}",
            (2, "rules[0].only[0]", "there is no model called `tiny` (there are: large, small)"),
        ),
        (
            "rules:\n  - {name: r, when: {}, exclude: [tiny]}",
            (2, "rules[0].exclude[0]", "there is no model called `tiny` (there are: large, small)"),
        ),
        (
            "rules:\n  - {name: r, when: {}, cap: {tiny: 1}}",
            (2, "rules[0].cap.tiny", "there is no model called `tiny` (there are: large, small)"),
        ),
        (
            "tests:\n  - {prompt: x, expect: tiny}",
            (2, "tests[0].expect[0]", "there is no model called `tiny` (there are: large, small)"),
        ),
        (
            "tests:\n  - {prompt: x, state: {tiny: cold}, expect: small}",
            (2, "tests[0].state.tiny", "there is no model called `tiny` (there are: large, small)"),
        ),
        ("tests:\n  - {expect: small}", (2, "tests[0]", "expected one of `prompt` and `request`")),
        (f"rules:\n{RULE}{RULE}", (3, "rules[1].name", "there is already a rule called `r`")),
        (
            "rules:\n  - {name: r, when: {task: code}}",
            (
                2,
                "rules[0]",
                "does nothing; give it `prefer`, `only`, `exclude`, `cap` or `deadline_s`",
            ),
        ),
        (
            "rules:\n  - {name: r, when: {task: code}, cap: {}}",
            (
                2,
                "rules[0]",
                "does nothing; give it `prefer`, `only`, `exclude`, `cap` or `deadline_s`",
            ),
        ),
        (
            ONE_RULE % "difficulty_min: 0.5, difficulty_max: 0.4",
            (
                3,
                "rules[0].when.difficulty_min",
                "0.5 is more than difficulty_max 0.4: this rule can never apply",
            ),
        ),
        (
            ONE_RULE % "prompt_tokens_min: 5, prompt_tokens_max: 4",
            (
                3,
                "rules[0].when.prompt_tokens_min",
                "5 is more than prompt_tokens_max 4: this rule can never apply",
            ),
        ),
        (
            ONE_RULE % "turns_min: 5, turns_max: 4",
            (
                3,
                "rules[0].when.turns_min",
                "5 is more than turns_max 4: this rule can never apply",
            ),
        ),
        (
            ONE_RULE % "hours: '09:00-09:00'",
            (
                3,
                "rules[0].when.hours",
                "begins when it ends: this rule can never apply; leave it out for the whole day",
            ),
        ),
        (
            ONE_RULE % "task: []",
            (3, "rules[0].when.task", "is an empty list: this rule can never apply"),
        ),
        (
            ONE_RULE % "user: []",
            (3, "rules[0].when.user", "is an empty list: this rule can never apply"),
        ),
        (
            ONE_RULE % "regex: '(a'",
            (
                3,
                "rules[0].when.regex",
                "is no regular expression: missing ) at position 2",
            ),
        ),
        (
            ONE_RULE % f"regex: '{'(' * 450}{')' * 450}'",
            (
                3,
                "rules[0].when.regex",
                "has too many brackets inside brackets; expected a few dozen at most",
            ),
        ),
        (
            "extends: balancd",
            (
                1,
                "extends",
                "there is no shipped policy and no file called `balancd` "
                "(did you mean `balanced`?); shipped are balanced, fastest, quality",
            ),
        ),
        (
            "fallbacks: 1\nextends: ./mine.yaml",
            (
                2,
                "extends",
                "goes in a circle: `mine.yaml` extends `mine.yaml`; "
                "let the last one extend `balanced`",
            ),
        ),
    ],
)
def test_what_is_wrong_is_said_with_line_and_key(problems, text, found):
    assert problems(text) == [found]


@pytest.mark.parametrize(
    "when",
    ["{}", "{task: null}", "{headers: {}, metadata: {}}", "{prompt_tokens_min: 0, turns_min: 0}"],
)
@pytest.mark.parametrize(
    "action", ["prefer: [small]", "only: [small]", "exclude: [small]", "cap: {small: 1}"]
)
def test_a_rule_after_one_that_always_applies_is_refused(problems, when, action):
    text = f"rules:\n  - {{name: all, when: {when}, {action}}}\n{RULE}"

    message = "comes after the rule `all`, which always applies; move it above that"
    assert problems(text) == [(3, "rules[1]", message)]


@pytest.mark.parametrize(
    "when",
    ["images: false", "prompt_tokens_max: 0", "turns_max: 0", "difficulty_max: 0", "user: ''"],
)
def test_a_condition_that_is_false_or_nought_is_still_one(write, when):
    assert read_policy(write(f"{ONE_RULE % when}{RULE.replace('r,', 's,')}"), MODELS).rules


def test_a_circle_of_files_is_refused_where_it_closes(write, tmp_path):
    write("extends: ./b.yaml", "a.yaml")
    write("extends: ./c.yaml", "b.yaml")
    last = write("fallbacks: 1\n\nextends: ./a.yaml", "c.yaml")

    with pytest.raises(ConfigError) as caught:
        read_policy(tmp_path / "a.yaml", MODELS)

    assert str(caught.value) == (
        f"{last} has 1 problem:\n  line 3: extends: goes in a circle: `a.yaml` extends `b.yaml` "
        "extends `c.yaml` extends `a.yaml`; let the last one extend `balanced`"
    )


def test_what_is_wrong_with_a_file_that_is_extended_is_said_of_that_file(write):
    base = write("\nfallback: 1", "base.yaml")

    with pytest.raises(ConfigError) as caught:
        read_policy(write("extends: ./base.yaml"), MODELS)

    assert str(caught.value).startswith(f"{base} has 1 problem:\n  line 2: fallback: unknown key")


def test_what_is_wrong_in_a_configuration_is_said_with_its_place_there(write):
    text = "models: [{name: small, source: ./s}]\nrouting:\n  extends: ./gone.yaml\n"
    path = write(text, "axion.yaml")

    with pytest.raises(ConfigError) as caught:
        make_policy("default", read(path).routing, path, ["small"], "routing")

    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "routing.extends")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_policy(tmp_path / "gone.yaml", MODELS)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "[]",
        "rules: 5",
        "rules: [5]",
        "rules: [{name: [x], when: 5, prefer: 5, only: {}, cap: []}, {name: [x]}]",
        "rules: [{name: {a: 1}, when: {task: {}, hours: 5, regex: 5, keywords: 5}}]",
        "fit: 5",
        "fit: [small]",
        "fit: {small: 5}",
        "tests: {}",
        "tests: [[]]",
        "tests: [{expect: {}}]",
        "extends: [balanced]",
        "default: {}",
        "escalation: 5",
        "output_tokens: []",
        "output_tokens: {code: many}",
    ],
)
def test_what_has_the_wrong_shape_is_refused_too(problems, text):
    assert problems(text)


# --- regular expressions ------------------------------------------------------------------------

SLOW = "takes too long on some texts; avoid repetitions inside repetitions, as in (a+)+, or use"


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(x|x)*y",
        r"([a-z]+)*\d",
        r"(\w+\s?)*$",
        r"(\s*\w+\s*)+!",
        r"(foo|fo+)*bar",
        r"(ab|a|b)*c",
        r"(a|aa)+$",
        r"(á+)+$",
        r"([\w.]+)+@",
        r"(?:[^,]+,?)*;",
        "((a*)*)*b",
        r"(hello\s*)+(hello\s*)+(hello\s*)+!",
    ],
)
def test_a_regular_expression_that_takes_for_ever_on_some_texts_is_refused(problems, pattern):
    ((line, key, message),) = problems(ONE_RULE % f"regex: '{pattern}'")

    assert (line, key) == (3, "rules[0].when.regex")
    assert message.startswith(SLOW)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bTODO\b",
        r"\s+$",
        r".*foo.*bar",
        r"a.*b.*c.*d",
        r"^\s*def \w+\(.*\):",
        r"(?i)error code \d{3,5}",
        r"[\w.+-]+@[\w-]+\.[\w.]+",
        r"https?://\S+",
        r"(?:SELECT|INSERT|UPDATE)\s.+\sFROM",
        r"\d{4}-\d{2}-\d{2}",
        r"\b(?:foo|bar)+\b",
        r"```[a-z]*\n.*?```",
        r"(?s)```.*```",
        r"^\[JIRA-\d+\]",
        r"¿.+\?",
        r"(\w+) \1",
        r"^(?:\w+ ){3,10}\w+$",
        r"\w+\s+\w+\s+\w+:",
        r"^\s*\S+\s*=\s*\S+\s*$",
        r"\p{Lu}{3,}",
        "|".join(f"word{n}" for n in range(120)),
    ],
)
def test_an_ordinary_regular_expression_is_not(write, pattern):
    begun = time.thread_time()

    assert read_policy(write(ONE_RULE % f"regex: '{pattern}'"), MODELS).rules
    assert time.thread_time() - begun < 2


# --- time ---------------------------------------------------------------------------------------


def test_a_policy_with_fifty_rules_is_read_in_less_than_a_second(write):
    words = [f"word{n}" for n in range(100)]
    text = "rules:\n" + "".join(
        f"  - {{name: r{n}, when: {{keywords: {words}, regex: 'x{n}\\d+'}}, prefer: [small]}}\n"
        for n in range(50)
    )
    path = write(text)
    begun = time.thread_time()

    assert len(read_policy(path, MODELS).rules) == 50
    assert time.thread_time() - begun < 2


def test_a_thousand_keywords_are_looked_for_in_a_long_text_in_milliseconds(write):
    words = [f"palabra{n}" for n in range(990)] + [f"dos palabras {n}" for n in range(10)]
    path = write(f"rules: [{{name: r, when: {{keywords: {words}}}, prefer: [small]}}]")
    (rule,) = read_policy(path, MODELS).rules
    text = "¿Qué es esta palabra, y qué son dos palabras? " * 2_000  # 92,000 characters
    begun = time.thread_time()

    assert not rule.applies(task(), Facts(text=text))
    assert time.thread_time() - begun < 0.5
    assert rule.applies(task(), Facts(text=f"{text} Dos  palabras 7"))


def test_keywords_of_a_long_text_are_looked_for_at_both_ends_in_bounded_time():
    marks = "\u0300\u0316" * 500_000
    rule = RuleSettings(name="r", when=ConditionSettings(keywords=["refund"]), prefer=["small"])
    (made,) = make_policy("p", PolicySettings(rules=[rule]), Path("x.yaml"), MODELS).rules

    began = time.process_time()
    found = [
        made.applies(None, Facts(text=text))
        for text in (f"refund {marks}", f"{marks} refund", f"{marks} refund {marks}")
    ]

    assert found == [True, True, False]
    assert time.process_time() - began < 1  # minutes without a bound


def test_a_regular_expression_is_searched_once_for_the_same_facts():
    rule = RuleSettings(name="r", when=ConditionSettings(regex="a+b"), prefer=["small"])
    (made,) = make_policy("p", PolicySettings(rules=[rule]), Path("x.yaml"), MODELS).rules
    facts = Facts(text="aab")

    assert made.applies(None, facts)
    (pattern,) = facts.found
    facts.found[pattern] = False
    assert not made.applies(None, facts)
