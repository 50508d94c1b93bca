"""What the classifier is compared with: the least that can be done, and what others do.

Each is a function from a text to its task.
"""

import math
import re
from collections.abc import Callable, Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline

from router.classifier import crop
from router.features import fold
from router.training.data import Row

Tell = Callable[[str], str]
"""From a text to one of `TASKS`."""


def baselines(rows: Sequence[Row]) -> dict[str, Tell]:
    """Return the baselines by name; those that are trained are trained on `rows`."""
    return {
        "always the commonest task": commonest(rows),
        "length of the text": length(rows),
        "lists of keywords, and length": keywords,
        "words and characters, TF-IDF": words_and_characters(rows),
    }


def commonest(rows: Sequence[Row]) -> Tell:
    """Return what says the task that most rows have."""
    tasks = [row.task for row in rows]
    most = max(sorted(set(tasks)), key=tasks.count)
    return lambda text: most


def length(rows: Sequence[Row]) -> Tell:
    """Return a logistic regression on the logarithm of the number of characters."""

    def looks(text: str) -> list[float]:
        return [math.log1p(len(text))]

    model = LogisticRegression(max_iter=1000)
    model.fit([looks(row.text) for row in rows], [row.task for row in rows])
    return lambda text: str(model.predict([looks(text)])[0])


def words_and_characters(rows: Sequence[Row]) -> Tell:
    """Return the usual text classifier: TF-IDF of words and characters, logistic regression.

    It reads as much of a long text as ours does.
    """
    model = Pipeline(
        [
            (
                "grams",
                FeatureUnion(
                    [
                        ("words", _tfidf("word", 1, 2)),
                        ("characters", _tfidf("char_wb", 2, 4)),
                    ]
                ),
            ),
            ("task", LogisticRegression(C=10, max_iter=300, class_weight="balanced")),
        ]
    )
    model.fit([crop(row.text) for row in rows], [row.task for row in rows])
    return lambda text: str(model.predict([crop(text)])[0])


def _tfidf(analyzer: str, least: int, most: int) -> TfidfVectorizer:
    return TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=(least, most),
        min_df=2,
        sublinear_tf=True,
        strip_accents="unicode",
    )


_WORDS = {
    "code": """function, class, def, async, await, import, const, return, api, database, sql,
        python, javascript, typescript, java, rust, golang, bash, html, css, regex, debug, bug,
        error, exception, stack trace, compile, algorithm, refactor, unit test, script, code,
        json, docker, git, query, funcion, clase, codigo, programa, depurar, fallo, excepcion,
        base de datos, algoritmo, consulta""",
    "math": """calculate, solve, equation, integral, derivative, probability, percent,
        percentage, sum, average, how many, how much, total, remainder, divide, multiply,
        fraction, area, volume, calcula, resuelve, ecuacion, derivada, probabilidad, porcentaje,
        suma, promedio, cuanto, cuantos, cuantas""",
    "reasoning": """step by step, think through, reason, logic, logical, puzzle, riddle, deduce,
        infer, conclude, premise, therefore, true or false, which of the following, prove, paso
        a paso, razona, logica, acertijo, premisa, cual de las siguientes, verdadero o falso""",
    "extraction": """extract, summarize, summary, list all, identify, classify, translate,
        keywords, according to the text, from the text, following text, following passage,
        extrae, resume, resumen, clasifica, identifica, traduce, segun el texto, del texto""",
    "writing": """write a, story, poem, essay, article, blog, email, letter, speech, draft,
        slogan, song, rewrite, creative, escribe un, escribe una, cuento, poema, ensayo,
        articulo, correo, carta, discurso, cancion, redacta, reescribe""",
    "qa": """what is, what are, who is, who was, when did, when was, where is, which, why,
        define, explain, difference between, capital of, que es, quien es, quien fue, cuando,
        donde, cual, por que, define, explica, diferencia entre""",
    "chat": """hello, hi, hey, thanks, thank you, good morning, how are you, set, remind me,
        hola, gracias, buenos dias, que tal, adios, recuerdame, pon""",
}
_WEIGHTS = {
    "code": 0.30,
    "math": 0.25,
    "reasoning": 0.25,
    "extraction": 0.25,
    "writing": 0.25,
    "qa": 0.10,
    "chat": 0.10,
}
_PATTERNS = {
    task: re.compile(rf"\b(?:{'|'.join(word.strip() for word in words.split(','))})\b")
    for task, words in _WORDS.items()
}
_ENOUGH = 2  # more hits than these say no more
_SHORT, _LONG = 60, 1_600  # characters: 15 and 400 tokens


def keywords(text: str) -> str:
    """Return the task of which most words are there, by lists with weights, and by length.

    In the manner of gateways that route by rules, as LiteLLM does (its complexity router,
    `litellm/router_strategy/complexity_router`: lists of keywords with weights, a dimension counts
    half at one hit and whole at two, short and long from 15 and 400 tokens). The lists are our own,
    because theirs tell how hard a request is and in English only, and were written before they were
    tried.
    """
    plain = fold(crop(text))
    hits = {task: len(pattern.findall(plain)) for task, pattern in _PATTERNS.items()}
    scores = {task: _WEIGHTS[task] * min(hits[task], _ENOUGH) for task in hits}
    best = max(scores, key=scores.__getitem__)
    if scores[best]:
        return best
    return "chat" if len(text) < _SHORT else "extraction" if len(text) > _LONG else "qa"
