"""Train the classifier: a minute on 2 cores. The same rows and seed give the same model."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import numpy
from msgspec import structs
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from router.classifier import SURFACE, TASKS, Classifier, grams, surface
from router.training.data import Row

STRENGTH = 30.0
"""scikit-learn's C. From 8 to 30 prompts from elsewhere are told about equally well."""

SURFACE_SCALE = 0.5
"""Less than 1, so that the look of a text counts less than its words."""

SEEN_MIN = 2
"""Grams in fewer rows say nothing about other rows."""

FOLDS = 5
"""How many parts are left out in turn to calibrate; whole sources stay together."""


class Trained:
    """A trained model, as scikit-learn has it and as it is served."""

    def __init__(self, rows: Sequence[Row], seed: int = 0) -> None:
        seen: dict[str, int] = {}
        all_grams = [grams(row.text) for row in rows]
        for found in all_grams:
            for gram in found:
                seen[gram] = seen.get(gram, 0) + 1
        self.vocabulary = sorted(gram for gram, count in seen.items() if count >= SEEN_MIN)
        self._rows = {gram: row for row, gram in enumerate(self.vocabulary)}
        self.model = LogisticRegression(
            C=STRENGTH, max_iter=300, class_weight="balanced", random_state=seed
        )
        # Sums differ with the number of threads, and then the model. Several gain nothing here, and
        # on busy cores they take a hundred times as long, because they wait for each other.
        with threadpool_limits(1):
            self.model.fit(
                self._matrix(all_grams, [row.text for row in rows]),
                [TASKS.index(row.task) for row in rows],
            )
        # What is evaluated and calibrated has the very weights that are served.
        self.model.coef_ = _single(self.model.coef_)
        self.model.intercept_ = _single(self.model.intercept_)

    def scores(self, texts: Sequence[str]) -> NDArray[numpy.float64]:
        """Return scikit-learn's own scores, of shape (len(texts), len(TASKS))."""
        found: NDArray[numpy.float64] = self.model.decision_function(
            self._matrix([grams(text) for text in texts], texts)
        )
        return found

    def _matrix(self, all_grams: Sequence[set[str]], texts: Sequence[str]) -> Any:
        places = [
            (row, self._rows[gram])
            for row, found in enumerate(all_grams)
            for gram in found
            if gram in self._rows
        ]
        rows, columns = zip(*places, strict=True) if places else ((), ())
        shape = (len(texts), len(self.vocabulary))
        words = normalize(sparse.csr_matrix((numpy.ones(len(rows)), (rows, columns)), shape=shape))
        looks = SURFACE_SCALE * numpy.array([surface(text) for text in texts])
        return sparse.hstack([words, sparse.csr_matrix(looks)]).tocsr()

    def compiled(self, temperature: float, card: dict[str, Any]) -> Classifier:
        """Return the model as it is served."""
        coefficients = self.model.coef_.T.astype(numpy.float32)
        words, looks = coefficients[: -len(SURFACE)], coefficients[-len(SURFACE) :]
        return Classifier(
            self.vocabulary,
            numpy.ascontiguousarray(words),
            numpy.ascontiguousarray(SURFACE_SCALE * looks).astype(numpy.float32),
            self.model.intercept_.astype(numpy.float32),
            temperature,
            card,
        )


def _single(values: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Return the values rounded to single precision, in double."""
    return values.astype(numpy.float32).astype(numpy.float64)


def train(rows: Sequence[Row], seed: int = 0) -> Classifier:
    """Return a calibrated classifier.

    Raises
    ------
    ValueError
        A task has no rows.
    """
    counts = {task: sum(row.task == task for row in rows) for task in TASKS}
    if missing := [task for task, count in counts.items() if not count]:
        raise ValueError(f"there are no rows of {', '.join(missing)}; every task needs some")
    scores, truth = left_out(_in_folds(rows), seed)
    languages = sorted({row.language for row in rows if row.language})
    card = {
        "version": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "rows": counts,
        "languages": {name: sum(row.language == name for row in rows) for name in languages},
        "sources": sorted({row.source for row in rows}),
        "accuracy_of_left_out_sources": round(float((scores.argmax(1) == truth).mean()), 3),
        "seed": seed,
    }
    return Trained(rows, seed).compiled(calibrate(scores, truth), card)


def _in_folds(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows with their sources joined into a few, for calibration needs no more."""
    sources = sorted({row.source for row in rows})
    if len(sources) <= FOLDS:
        return rows
    fold = {source: str(index % FOLDS) for index, source in enumerate(sources)}
    return [structs.replace(row, source=fold[row.source]) for row in rows]


def left_out(
    rows: Sequence[Row],
    seed: int = 0,
    more: Sequence[Row] = (),
    on_source: Callable[[str], None] = lambda source: None,
) -> tuple[NDArray[numpy.float64], NDArray[numpy.int64]]:
    """Return the scores of every row by a model that saw nothing of its source, and its task.

    Every model is also trained on the rows in `more`. `on_source` is called before each is trained.
    """
    sources = sorted({row.source for row in rows})
    if len(sources) == 1:  # nothing can be left out but random rows
        sources = [str(part) for part in range(FOLDS)]
        rows = [
            structs.replace(row, source=sources[index % FOLDS]) for index, row in enumerate(rows)
        ]
    scores = numpy.zeros((len(rows), len(TASKS)))
    for source in sources:
        on_source(source)
        others = [*more, *(row for row in rows if row.source != source)]
        here = [index for index, row in enumerate(rows) if row.source == source]
        model = Trained(others, seed)
        scores[numpy.ix_(here, model.model.classes_)] = model.scores([rows[i].text for i in here])
    return scores, numpy.array([TASKS.index(row.task) for row in rows])


def calibrate(scores: NDArray[numpy.float64], truth: NDArray[numpy.int64]) -> float:
    """Return the temperature by which probabilities become true shares (Guo et al., 2017)."""

    def loss(temperature: float) -> float:
        scaled = scores / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        logs = scaled - numpy.log(numpy.exp(scaled).sum(axis=1, keepdims=True))
        return -float(logs[numpy.arange(len(truth)), truth].mean())

    return float(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x)
