"""The plain form of a text, and its language."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.features import fold, language, own_words, requested_output


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("¿Qué hace useEffect?", "¿que hace useeffect?"),
        ("  A\n\tB  ", "a b"),
        ("ÑANDÚ", "nandu"),
        ("It’s", "it's"),
        ("", ""),
    ],
)
def test_case_accents_and_space_do_not_count(text, plain):
    assert fold(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "Hola",
        "Gracias",
        "¿Qué?",
        "Mañana",
        "Buenos días",
        "¿Cuál es la capital de Francia?",
        "Escribe una funcion en Python que invierta una cadena",
        "cual es la capital de francia",
        "Explica esto:\n```python\nprint(1)\n```",
        "El perro de mi vecino ladra",
        "haz un script en bash",
    ],
)
def test_spanish_is_es(text):
    assert language(text) == "es"


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        "Hi",
        "hey",
        "Thanks!",
        "What is the capital of France?",
        "Write a Python function that reverses a string",
        "how do I center a div",
        "Translate the word casa",
        "Is the word 'naïve' English?",
    ],
)
def test_english_is_en(text):
    assert language(text) == "en"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "12345",
        "🙂",
        "import os",
        "for i in range(10): print(i)",
        "x = foo.bar(the, of)",
        "Qual é a capital da França? Não sei.",
        "Quelle est la capitale de la France ?",
        "Was ist die Hauptstadt von Frankreich?",
        "Qual è la capitale della Francia?",
        "Какая столица Франции?",
        "法国的首都是哪里？",
    ],
)
def test_code_other_languages_and_nothing_are_no_language(text):
    assert language(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is 2 < 3?", "What is 2 < 3?"),
        ("Fix it\n<environment_details>\ncwd: /src\n</environment_details>", "Fix it"),
        (
            "<user_info>linux</user_info><user_query>\nUn poema\n</user_query><rules>x</rules>",
            "Un poema",
        ),
        ("<context>def f(): pass</context>\nWho wrote it?", "Who wrote it?"),
        ("<file path='a.py'>x</file> and <file path='b.py'>y</file>: merge", "and : merge"),
        ("<System-Reminder>Be brief.</System-Reminder>Hola", "Hola"),
        # What is not closed, or is a language of its own, stays.
        ("<context> is a tag", "<context> is a tag"),
        ("<context>a</contexts> b", "<context>a</contexts> b"),
        ("<div class='a'><p>Hi</p></div>", "<div class='a'><p>Hi</p></div>"),
        ("<task>Ship it</task>", "Ship it"),
        ("<regla_1>x</regla_1><mensaje_usuario>Un poema</mensaje_usuario>", "Un poema"),
        # Nothing else is there.
        ("<document>Hola</document>", "<document>Hola</document>"),
        (
            "<user_query></user_query><document>Hola</document> ?",
            "<user_query></user_query><document>Hola</document> ?",
        ),
    ],
)
def test_a_persons_own_words_are_those_outside_the_material(text, words):
    assert own_words(text) == words


@pytest.mark.parametrize("unit", ["<a_b>", "</a_b>", "<a_b></a_b>", "<context ", "<", "a"])
def test_own_words_take_linear_time(unit):
    text = unit * (10_000_000 // len(unit)) + "</"

    began = time.process_time()
    own_words(text)

    assert time.process_time() - began < 0.3  # 15 ms were measured


@given(st.text(alphabet="<>/ab_ \n\ud800"))
def test_own_words_are_part_of_the_text_or_all_of_it(text):
    assert set(own_words(text)) <= set(text) | {"\n"}


@pytest.mark.parametrize(
    ("text", "task", "output"),
    [
        ("Give me the capitals of Europe as JSON", "qa", "json"),
        ("Devuélveme los nombres en formato JSON", "extraction", "json"),
        ("What is JSON?", "qa", "text"),
        ("List the planets in a table", "qa", "table"),
        ("Hazme una tabla con los gastos", "extraction", "table"),
        ("Reserve a table for two", "chat", "text"),
        ("Write an essay on war", "writing", "essay"),
        ("Escribe un cuento de dragones", "writing", "essay"),
        ("Write a haiku", "writing", "text"),
        ("Write 800 words on tea", "writing", "essay"),
        ("Tell me the story of Rome", "qa", "text"),
        ("Create a table users in SQL, as JSON", "code", "code"),
        ("", "general", "text"),
    ],
)
def test_the_form_of_the_answer_is_what_is_asked_for(text, task, output):
    assert requested_output(text, task) == output
