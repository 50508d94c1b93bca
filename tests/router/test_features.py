"""The plain form of a text, and its language."""

import pytest

from router.features import fold, language


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
