"""Learn from feedback: train a candidate, compare it, and put it in use only if it is better.

Better means two things, on prompts that it was not trained on (`Comparison.objections`): it is told
right more often on feedback that was held back, by more than luck, and it has not become worse on
the regression set.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
from msgspec import Struct
from numpy.typing import NDArray

from config import is_auto
from router.classifier import TASKS, Classifier
from router.describe import SURE
from router.features import fold
from router.ledger import Entry, Feedback
from router.training.data import Row
from router.training.evaluate import accuracy, f1
from router.training.train import train

SOURCE = "feedback"
"""The source of rows that are feedback."""

ROWS_MIN = 20
"""Prompts with usable feedback below which nothing can be told."""

HELD_BACK = 4
"""One in so many prompts is held back."""

LUCK_MAX = 0.05
"""How likely a coin may be to do as well as the candidate, where it differs from the other."""

WORSE_MAX = 0.01
"""What may be lost on the regression set: of 360 prompts four, which is less than its noise."""


class TooFew(Exception):
    """There is not enough feedback to learn from; the message says how much, and what to do."""


class Lessons(Struct, frozen=True, kw_only=True):
    """What feedback teaches.

    Attributes
    ----------
    rows
        What can be trained on.
    held_back
        What is only judged with; no prompt of it is among `rows`.
    without_text
        How many there would be more, had the text been kept.
    """

    rows: list[Row]
    held_back: list[Row]
    without_text: int


def lessons(said: Iterable[tuple[Entry, Feedback | None]], regression: Sequence[Row]) -> Lessons:
    """Return the prompts whose task is known from feedback.

    It is known when somebody named it; and when they were content with what the classifier was sure
    of and a model was chosen by: a thumb for an answer that somebody asked of one model by its name
    says nothing of the task. Of a prompt that came more than once the last word counts.

    Parameters
    ----------
    said
        As `router.ledger.read` yields it.
    regression
        Prompts that are never trained on.
    """
    latest: dict[str, tuple[float, Row]] = {}
    without_text = 0
    for entry, feedback in said:
        task = _true_task(entry, feedback) if feedback else None
        if feedback is None or task is None:
            continue
        if not entry.text or not entry.text.strip():
            without_text += entry.text is None
            continue
        row = Row(entry.text, task, SOURCE, entry.task.language or "")
        prompt = fold(entry.text)
        if prompt not in latest or latest[prompt][0] <= feedback.at:
            latest[prompt] = (feedback.at, row)
    prompts = sorted(latest)
    never = {fold(row.text) for row in regression}
    return Lessons(
        rows=[latest[each][1] for each in prompts if not _is_held_back(each) and each not in never],
        held_back=[latest[each][1] for each in prompts if _is_held_back(each)],
        without_text=without_text,
    )


def _true_task(entry: Entry, feedback: Feedback) -> str | None:
    if feedback.task is not None:
        return feedback.task if feedback.task in TASKS else None
    confirmed = feedback.thumbs == "up" and is_auto(entry.asked) and entry.task.label in TASKS
    return entry.task.label if confirmed else None


def _is_held_back(prompt: str) -> bool:
    """Tell by the prompt alone, so that it is on the same side whenever and however often it comes.

    By the decision's id, one prompt could be trained on and judged with.
    """
    return hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[0] % HELD_BACK == 0


class Comparison(Struct, frozen=True, kw_only=True):
    """How often two classifiers tell a prompt's task right, both as they would be served.

    A prompt that a classifier is not sure of counts as wrong: it is routed as `general`.

    Attributes
    ----------
    held_back
        How many prompts were held back.
    right
        How many of them each tells right.
    gained, lost
        How many only the candidate tells right, and only the one in use.
    accuracy, f1
        Each one's accuracy and F1 of code on the regression set.
    floors
        Of both, below which the candidate is worse: measured from the better one of the classifier
        in use and the shipped one, so that many small losses do not add up.
    """

    held_back: int
    right: tuple[int, int]
    gained: int
    lost: int
    accuracy: tuple[float, float]
    f1: tuple[float, float]
    floors: tuple[float, float]

    @property
    def luck(self) -> float:
        """How likely a coin would do as well where the two differ (one-sided exact sign test)."""
        n = self.gained + self.lost
        ways = sum(math.comb(n, wins) for wins in range(self.gained, n + 1))
        return float(ways / 2**n)

    def objections(self) -> list[str]:
        """Return why the candidate is not better; nothing: it is."""
        found = []
        if self.luck > LUCK_MAX:
            found.append(
                f"on held-back feedback it gains {self.gained} and loses {self.lost}, which may be "
                f"luck ({self.luck:.0%}; at most {LUCK_MAX:.0%} is better)"
            )
        for name, (_, value), floor in (
            ("accuracy", self.accuracy, self.floors[0]),
            ("F1 of code", self.f1, self.floors[1]),
        ):
            if value < floor:
                found.append(
                    f"its {name} on the regression set is {value:.3f}, below the {floor:.3f} that "
                    "is needed"
                )
        return found

    def table(self) -> str:
        """Return the numbers for a terminal."""
        rows = [
            ("", "in use", "candidate"),
            (f"held-back feedback, right of {self.held_back}", *map(str, self.right)),
            ("regression set, accuracy", *(f"{value:.3f}" for value in self.accuracy)),
            ("regression set, F1 of code", *(f"{value:.3f}" for value in self.f1)),
        ]
        width = max(len(row[0]) for row in rows)
        return "".join(f"{name:<{width}}  {one:>9}  {two:>9}\n" for name, one, two in rows)


def compare(
    in_use: Classifier,
    candidate: Classifier,
    shipped: Classifier,
    held_back: Sequence[Row],
    regression: Sequence[Row],
) -> Comparison:
    """Return how two classifiers do on the same prompts."""
    truth, old = _truth(held_back), _told(in_use, held_back)
    new = _told(candidate, held_back)
    right_old, right_new = old == truth, new == truth
    known = _truth(regression)
    told = [_told(each, regression) for each in (in_use, candidate, shipped)]
    accuracies = [accuracy(known, each) for each in told]
    f1s = [f1(known, each) for each in told]
    return Comparison(
        held_back=len(held_back),
        right=(int(right_old.sum()), int(right_new.sum())),
        gained=int((right_new & ~right_old).sum()),
        lost=int((right_old & ~right_new).sum()),
        accuracy=(accuracies[0], accuracies[1]),
        f1=(f1s[0], f1s[1]),
        floors=(
            max(accuracies[0], accuracies[2]) - WORSE_MAX,
            max(f1s[0], f1s[2]) - WORSE_MAX,
        ),
    )


def _truth(rows: Sequence[Row]) -> NDArray[numpy.int64]:
    return numpy.array([TASKS.index(row.task) for row in rows], dtype=numpy.int64)


def _told(classifier: Classifier, rows: Sequence[Row]) -> NDArray[numpy.int64]:
    """Return the number of the task that each prompt is told to be; -1 for `general`."""
    found = [list(classifier.probabilities(row.text).values()) for row in rows]
    likely = numpy.array(found).reshape(len(rows), len(TASKS))
    return numpy.where(likely.max(axis=1) >= SURE, likely.argmax(axis=1), -1)


def learn(
    said: Iterable[tuple[Entry, Feedback | None]],
    in_use: Classifier,
    shipped: Classifier,
    prompts: Sequence[Row],
    regression: Sequence[Row],
    seed: int = 0,
) -> tuple[Classifier, Comparison]:
    """Train a candidate on `prompts` and feedback, and compare it with the classifier in use.

    The same arguments give the same candidate.

    Raises
    ------
    TooFew
        There is not enough feedback to learn from.
    """
    learned = lessons(said, regression)
    count = len(learned.rows) + len(learned.held_back)
    if count < ROWS_MIN or not learned.held_back:
        message = (
            f"there is feedback on {count} prompts to learn from, and at least {ROWS_MIN} are "
            "needed: a task that was named, or a thumb up for one that was recognised"
        )
        if learned.without_text:
            message += (
                f". Of {learned.without_text} more the text was not kept: set ledger.keep_text, "
                "which holds for later requests"
            )
        raise TooFew(message)
    candidate = train([*prompts, *learned.rows], seed)
    return candidate, compare(in_use, candidate, shipped, learned.held_back, regression)


def previous(path: Path) -> Path:
    """Return where the classifier is kept that was at `path` before the one that is."""
    return path.with_name(f"{path.name}.previous")


def promote(candidate: Classifier, path: Path) -> None:
    """Put `candidate` at `path`, and keep what was there; at every moment a whole one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        copy = path.with_name(f"{path.name}.copy")
        shutil.copyfile(path, copy)
        os.replace(copy, previous(path))
    else:  # the shipped one was before
        previous(path).unlink(missing_ok=True)
    candidate.save(path)


def rollback(path: Path) -> bool:
    """Put back what was at `path` before, or nothing, if the shipped one was; False: neither is."""
    if previous(path).exists():
        previous(path).replace(path)
        return True
    if path.exists():
        path.unlink()
        return True
    return False
