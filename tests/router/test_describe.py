"""From a conversation to a task: which turns count, and how many tokens they are.

What task a text is, is in test_classifier.py.
"""

import itertools
import time
from pathlib import Path

import pytest

import router.describe
from config import read
from policies import Candidate, decide, make_policy
from router import tokens
from router.classifier import shipped
from router.describe import IMAGE_TOKENS, TURN_TOKENS, describe, subject
from router.words import Request, Turn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")

CODE = "Write a Python function that reverses a string"
CODE_ANSWER = "def reverse(text):\n    return text[::-1]"
TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nTypeError: x'
FRANCE = "What is the capital of France?"


def described(*turns, endpoint="chat", **facts):
    """Return the task of a conversation, whose turns are (role, text) or (role, text, images)."""
    conversation = tuple(Turn(*turn) for turn in turns)
    request = Request(endpoint=endpoint, model="auto", stream=False, turns=conversation, **facts)
    return describe(request, subject(conversation), shipped())


def test_one_question_is_described():
    task = described(("user", "¿Cómo recorro un diccionario en Python?"), output_tokens=50)

    assert task.label == "code"
    assert task.confidence > 0.5
    assert task.language == "es"
    assert task.output_tokens == 50
    assert (task.images, task.tools) == (0, 0)
    assert task.signals["code"] == pytest.approx(task.confidence, abs=0.01)


@pytest.mark.parametrize(
    ("turns", "label"),
    [
        ([("user", CODE), ("assistant", CODE_ANSWER), ("user", FRANCE)], "qa"),
        ([("user", FRANCE), ("assistant", "Paris."), ("user", CODE)], "code"),
        ([("user", FRANCE), ("user", CODE)], "code"),
        ([("user", CODE), ("user", FRANCE)], "qa"),
        ([("user", CODE), ("assistant", "Here:")], "code"),  # the answer is to be continued
        ([("user", CODE), ("assistant", CODE_ANSWER), ("user", "Thanks!")], "chat"),
        ([("user", FRANCE), ("tool", f"{CODE_ANSWER}\n{TRACE}")], "qa"),  # it is material
    ],
)
def test_the_last_turn_of_the_user_decides(turns, label):
    assert described(*turns).label == label


def test_what_a_program_wraps_around_a_persons_words_does_not_count():
    wrapped = f"Hola\n<environment_details>\n{CODE}\n{TRACE}\n</environment_details>"

    assert described(("user", wrapped)).label == "chat"
    assert described(("user", wrapped)).signals == described(("user", "Hola")).signals


def test_the_shape_of_a_conversation_is_told():
    turns = [("system", "x"), ("user", CODE), ("assistant", ""), ("tool", TRACE)]

    loop = described(*turns)
    asked = described(*turns, ("user", FRANCE))

    assert (loop.turns, loop.tool_loop) == (1, True)
    assert (asked.turns, asked.tool_loop) == (2, False)


def test_the_form_of_the_answer_is_told():
    assert described(("user", CODE)).output == "code"
    assert described(("user", FRANCE)).output == "text"
    assert described(("user", FRANCE), json=True).output == "json"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_does_not_count(role):
    task = described((role, f"You only answer in Python.\n{CODE_ANSWER}"), ("user", "Hello"))

    assert task.label == "chat"
    assert task.signals == described(("user", "Hello")).signals


@pytest.mark.parametrize(
    "text",
    [
        "now fix it",
        "and in Rust?",
        "make it faster",
        "shorter please",
        "explain this",
        "why?",
        "Run it again",
        "continue",
        "ahora arréglalo",
        "¿y en Java?",
        "¿por qué?",
        "otra vez",
        "hazlo más corto",
    ],
)
def test_a_follow_up_is_about_what_it_goes_on_with(text):
    turns = (Turn("user", CODE), Turn("assistant", CODE_ANSWER), Turn("user", text))

    assert subject(turns) == f"{CODE}\n{text}"
    assert described(("user", CODE), ("assistant", CODE_ANSWER), ("user", text)).label == "code"


@pytest.mark.parametrize(
    "text",
    [
        "Thanks!",
        "Gracias",
        "Is it true that bats are blind?",
        "Who won the World Cup in 2010?",
        "and now for something completely different, tell me who won the World Cup in 2010",
        "now " + "that is a long story " * 20,
        "now " + "x" * 240,  # few words, but not a short text
    ],
)
def test_a_turn_that_stands_for_itself_is_read_alone(text):
    turns = (Turn("user", CODE), Turn("assistant", CODE_ANSWER), Turn("user", text))

    assert subject(turns) == text


def test_follow_ups_in_a_row_reach_back_to_the_task_they_are_about():
    later = ["now make it faster", "and shorter"]
    turns = [Turn("user", CODE), *(Turn("user", text) for text in later)]

    assert subject(turns) == "\n".join([CODE, *later])
    far = [Turn("user", CODE), *(Turn("user", "now fix it") for _ in range(9))]
    assert CODE not in subject(far)


def test_of_a_long_turn_a_follow_up_keeps_the_beginning():
    turns = (Turn("user", CODE + "x" * 5000), Turn("user", "now fix it"))

    assert len(subject(turns)) < 400


def test_a_follow_up_reaches_no_further_than_the_turn_it_goes_on_with():
    turns = (Turn("user", CODE), Turn("user", FRANCE), Turn("user", "and of Spain?"))

    assert subject(turns) == f"{FRANCE}\nand of Spain?"


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [("user", "")],
        [("user", "   \n")],
        [("user", CODE), ("assistant", CODE_ANSWER), ("user", "")],
        [("system", CODE)],
        [("assistant", CODE_ANSWER)],
    ],
)
def test_without_words_of_the_user_there_is_no_task(turns):
    task = described(*turns)

    assert (task.label, task.confidence, task.language, task.signals) == ("general", 0, None, {})


@pytest.mark.parametrize(
    ("turns", "language"),
    [
        ([("user", FRANCE)], "en"),
        ([("user", "¿Cuál es la capital de Francia?")], "es"),
        ([("system", "You answer in English."), ("user", "¿Y el río más largo?")], "es"),
        ([("user", "Hola, ¿qué tal?"), ("assistant", "Bien"), ("user", FRANCE)], "en"),
        ([("user", FRANCE), ("tool", "La capital de Francia es París.")], "en"),
        ([("user", "12345")], None),
    ],
)
def test_the_language_is_that_of_the_last_turn_of_the_user(turns, language):
    assert described(*turns).language == language


def test_a_task_that_is_not_likely_enough_is_none(monkeypatch):
    sure = described(("user", CODE))
    monkeypatch.setattr(router.describe, "SURE", 1.1)

    unsure = described(("user", CODE))

    assert (sure.label, unsure.label) == ("code", "general")
    assert sure.confidence == unsure.confidence > 0.5
    assert unsure.signals["code"] > 0.5


def test_the_prompt_is_every_turn_and_what_the_template_adds():
    system, question, answer = "You are kind.", "Hola", "Hola, ¿qué tal?"
    text = "\n".join((system, question, answer, question))

    task = described(
        ("system", system), ("user", question), ("assistant", answer), ("user", question)
    )

    # One more for the opening of the answer.
    assert task.prompt_tokens == tokens.count(text) + 5 * TURN_TOKENS


def test_a_completion_has_no_template():
    assert described(("user", FRANCE), endpoint="completions").prompt_tokens == 7


def test_tools_and_images_are_counted():
    bare = described(("user", FRANCE))
    tools = described(("user", FRANCE), tools=2, tools_chars=401)
    images = described(("user", FRANCE, 2), ("user", FRANCE, 1))
    twice = described(("user", FRANCE), ("user", FRANCE))

    assert tools.prompt_tokens - bare.prompt_tokens == 101  # 4 characters each, rounded up
    assert (tools.tools, tools.images) == (2, 0)
    assert images.prompt_tokens - twice.prompt_tokens == 3 * IMAGE_TOKENS
    assert (images.tools, images.images) == (0, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        (FRANCE, 7),
        ("¿Cuál es la capital de Francia?", 10),
        ("<|endoftext|>", 7),  # no special token: a client cannot write one
        ("a b " * (tokens.EXACT_CHARS // 4), tokens.EXACT_CHARS // 2 + 1),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_short_text_is_counted_exactly(text, expected):
    assert tokens.count(text) == expected


def real_text(*patterns):
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize(
    "text",
    [
        real_text("LICENSE", "README.md", "docs/*.md"),
        real_text("engines/*.py", "policies/*.py"),
        real_text("LICENSE", "engines/*.py"),  # prose first, code later
    ],
    ids=["prose", "code", "mixed"],
)
def test_a_long_text_is_estimated_closely(text):
    exact = len(tokens._encoding().encode_ordinary(text))
    assert len(text) > tokens.EXACT_CHARS

    assert tokens.count(text) == pytest.approx(exact, rel=0.1)


def test_one_character_more_than_is_counted_whole_makes_no_jump():
    text = real_text("LICENSE", "engines/*.py")
    whole = tokens.count(text[: tokens.EXACT_CHARS])
    sampled = tokens.count(text[: tokens.EXACT_CHARS + 1])

    assert sampled == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "hello there ", "🙂", "\ud800", "\x00", "(){}"])
def test_ten_megabytes_of_anything_are_counted_in_bounded_time(unit):
    tokens.warm()
    text = unit * (10_000_000 // len(unit))

    began = time.process_time()
    counted = tokens.count(text)

    # 25 ms at most were measured; the bound is for slow machines.
    assert time.process_time() - began < 1.0
    assert 0 < counted <= 4 * len(text)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud800" * 40_000, "\ud83d\ude42"])
def test_lone_surrogates_do_not_raise(text):
    assert tokens.count(text) > 0
    assert described(("user", text)).prompt_tokens > 0


def test_a_megabyte_of_spaces_does_not_overflow_the_stack():
    task = described(("user", " " * 1_000_000))

    assert task.prompt_tokens > 2 * TURN_TOKENS


def table_after(line):
    """Return the rows of the table that follows `line` in docs/routing.md."""
    lines = PAGE.split(f"\n{line}\n\n")[1].splitlines()
    table = itertools.takewhile(lambda row: row.startswith("|"), lines)
    return [tuple(row.strip("| ").split(" | ")) for row in table][2:]


def reason_in_the_quickstart(text, *, broken="", **facts):
    settings = read(ROOT / "config" / "quickstart.yaml")
    candidates = [
        Candidate(
            model=model.name,
            max_model_len=model.max_model_len,
            vision=False,
            tools=False,
            state="failed" if model.name == broken else "cold",
            retry_in_s=9 if model.name == broken else 0,
        )
        for model in settings.models
    ]
    names = [model.name for model in settings.models]
    policy = make_policy("default", settings.routing, ROOT / "config" / "quickstart.yaml", names)
    return decide(described(("user", text), **facts), candidates, policy).reason


@pytest.mark.parametrize("text", [row[0] for row in table_after("These go to the coder:")])
def test_what_the_documentation_calls_code_is_code(text):
    assert reason_in_the_quickstart(text).startswith("rule code: code (")


@pytest.mark.parametrize(
    ("text", "task"), table_after("These are near misses, and do not:"), ids=str
)
def test_what_the_documentation_calls_a_near_miss_is_not_code(text, task):
    assert described(("user", text)).label == task
    assert reason_in_the_quickstart(text) == "rule short: always -> phi4_fast"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("Hola", {}),
        ("Hola", {"output_tokens": 3000}),
        ("What does main.py do?", {}),
        ("What does main.py do?", {"broken": "qwen_coder"}),
        ("Summarise this. " + "The quick brown fox jumps over the lazy dog. " * 200, {}),
        (CODE + "\n" + "The quick brown fox jumps over the lazy dog. " * 450, {}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_reasons_in_the_documentation_are_real(text, facts):
    assert f"| `{reason_in_the_quickstart(text, **facts)}` |" in PAGE
