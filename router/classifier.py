"""Which task a text is: a linear model over its words, compiled to look-ups.

The model is trained by `axion train` (`router/training`); serving needs its weights and NumPy, and
no training code. `docs/classifier.md` says what it was trained on and how good it is.
"""

import hashlib
import itertools
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from router.features import fold

WEIGHTS = Path(__file__).with_name("classifier.npz")
"""What ships with the package: arrays and text only, nothing that is executed when it is read."""

TASKS = ("code", "math", "reasoning", "writing", "qa", "chat", "extraction")

_HEAD_CHARS, _TAIL_CHARS = 1_000, 500
"""What is read of a long text: requests are at its beginning and end, the rest is material."""

_PIECE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_CODE_LINE = re.compile(
    r"(?m)^[ \t]*(?:def \w+ ?\(|class \w+[(:{ ]|function \w* ?\(|import [\w.{*]+|"
    r"from [\w.]+ import |#include|#!/|func \w*\(?|fn \w+|fun \w+|"
    r"(?:public|private|protected|static) [\w<]|(?:const|let|var|val) \w+ ?[:=]|package \w|"
    r"using [A-Z]\w|namespace |//|/\*|>>> |[$] \w|"
    r"(?:SELECT|INSERT|UPDATE|CREATE|ALTER|DELETE) [A-Z*\w]|FROM \w+|```\w|Traceback |"
    r"at [\w.$]+\(|[+-]{3} [ab]/|@@ |<(?:!DOCTYPE|html|div|script|[a-z]+ \w+=)|\}|return |"
    r"if \(|for \(|while \()"
)
_OPTION = re.compile(r"(?m)^[ \t]*\(?[A-Ea-e1-5][).]\s")

SURFACE = (
    "length",
    "ends with a question mark",
    "has a question mark",
    "digits",
    "line breaks",
    "punctuation of code",
    "lines that begin like code",
    "options to choose from",
    "is long",
)
"""The features that are not words, in the order of `surface`."""


def crop(text: str) -> str:
    """Return head and tail of a long text, so that the time is bounded."""
    if len(text) <= _HEAD_CHARS + _TAIL_CHARS:
        return text
    return f"{text[:_HEAD_CHARS]}\n{text[-_TAIL_CHARS:]}"


def grams(text: str) -> set[str]:
    """Return the words of `text`, parts of them, pairs, and how it begins and ends.

    Accents and case do not count, and every number is the same word. Parts of words let a word that
    was never seen count as one that is like it, which Spanish with its many endings needs most.
    """
    pieces = ["0" if piece.isdigit() else piece for piece in _PIECE.findall(fold(crop(text)))]
    found = set(pieces)
    for piece in tuple(found):
        if len(piece) > 4:
            found.add(f"{piece[:4]}-")
            if len(piece) > 5:
                found.add(f"{piece[:6]}-")
                found.add(f"-{piece[-3:]}")
    found.update(f"{one} {two}" for one, two in itertools.pairwise(pieces))
    if pieces:
        found.update(("^" + pieces[0], "^" + " ".join(pieces[:2]), "^" + " ".join(pieces[:3])))
        found.add("$" + pieces[-1])
    return found


def surface(text: str) -> list[float]:
    """Return what a text looks like, each feature between 0 and about 1; see `SURFACE`."""
    seen = crop(text)
    share = 1 / max(len(seen), 1)
    return [
        math.log1p(len(text)) / 8,
        float(seen.rstrip().endswith("?")),
        float("?" in seen),
        min(8 * share * sum(map(str.isdigit, seen)), 1.0),
        min(20 * share * seen.count("\n"), 1.0),
        min(8 * share * sum(map(seen.count, "{}[]();=<>_")), 1.0),
        min(len(_CODE_LINE.findall(seen)), 3) / 2,
        float(len(_OPTION.findall(seen)) >= 2),
        float(len(text) > 600),
    ]


class Classifier:
    """The model, ready to score.

    Parameters
    ----------
    vocabulary
        Every known gram.
    weights
        float32 of shape (len(vocabulary), len(TASKS)).
    surface_weights
        float32 of shape (len(SURFACE), len(TASKS)).
    bias
        float32 of shape (len(TASKS),).
    temperature
        What scores are divided by, so that probabilities are true shares.
    card
        What it was trained on, when, and how good it was.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        weights: NDArray[numpy.float32],
        surface_weights: NDArray[numpy.float32],
        bias: NDArray[numpy.float32],
        temperature: float,
        card: dict[str, Any],
    ) -> None:
        self._rows = {gram: row for row, gram in enumerate(vocabulary)}
        self._weights = weights
        self._surface_weights = surface_weights
        self._bias = bias
        self.temperature = temperature
        self.card = card

    def __repr__(self) -> str:
        return f"<Classifier {len(self._rows)} grams, {self.card.get('version')}>"

    def scores(self, text: str) -> NDArray[numpy.float64]:
        """Return the score of each of `TASKS`, before the temperature."""
        rows = [row for gram in grams(text) if (row := self._rows.get(gram)) is not None]
        looks = numpy.asarray(surface(text), dtype=numpy.float64)
        known = self._weights[rows].sum(axis=0, dtype=numpy.float64) / math.sqrt(max(len(rows), 1))
        found: NDArray[numpy.float64] = looks @ self._surface_weights + self._bias + known
        return found

    def probabilities(self, text: str) -> dict[str, float]:
        """Return how likely `text` is each of `TASKS`; they add up to 1. Never raises."""
        scores = self.scores(text) / self.temperature
        powers = numpy.exp(scores - scores.max())
        return dict(zip(TASKS, (powers / powers.sum()).tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write the model, whole or not at all; `load` reads it."""
        text = "\n".join(self._rows).encode()
        card = {**self.card, "sha256": _digest(text, self._weights)}
        unfinished = path.with_name(f"{path.name}.part")
        with unfinished.open("wb") as file:  # of a bare path NumPy would make another name
            numpy.savez_compressed(
                file,
                vocabulary=numpy.frombuffer(text, numpy.uint8),
                weights=self._weights,
                surface_weights=self._surface_weights,
                bias=self._bias,
                temperature=numpy.float64(self.temperature),
                card=numpy.frombuffer(json.dumps(card).encode(), numpy.uint8),
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


def _digest(vocabulary: bytes, weights: NDArray[numpy.float32]) -> str:
    return hashlib.sha256(vocabulary + weights.tobytes()).hexdigest()


class DamagedWeights(Exception):
    """The file is not a classifier, or not the one that was written."""


def load(path: Path) -> Classifier:
    """Return the classifier in a file that `Classifier.save` wrote.

    Raises
    ------
    DamagedWeights
        The file cannot be read, or its checksum or its shapes are wrong.
    """
    try:
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as arrays:
            text = arrays["vocabulary"].tobytes()
            card = json.loads(arrays["card"].tobytes())
            vocabulary = text.decode().split("\n")
            weights, more, bias = arrays["weights"], arrays["surface_weights"], arrays["bias"]
            temperature = float(arrays["temperature"])
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DamagedWeights(f"{path} is not a classifier: {error}") from error
    expected = ((len(vocabulary), len(TASKS)), (len(SURFACE), len(TASKS)), (len(TASKS),))
    if (weights.shape, more.shape, bias.shape) != expected:
        raise DamagedWeights(f"{path} is for other features or tasks; train it again")
    if _digest(text, weights) != card.get("sha256"):
        raise DamagedWeights(f"{path} is damaged: its checksum is wrong")
    return Classifier(vocabulary, weights, more, bias, temperature, card)


@cache
def shipped() -> Classifier:
    """Return the classifier that ships with the package. The first call takes about 0.1 s."""
    return load(WEIGHTS)


def chosen_path(chosen: str, base: Path) -> Path:
    """Return where the file is that the configuration in `base` names in `classifier`."""
    return base / os.path.expanduser(chosen)


def in_use(chosen: str | None, base: Path) -> Classifier:
    """Return the classifier that a service uses.

    Parameters
    ----------
    chosen
        What `classifier` says.
    base
        Directory of the configuration.

    Raises
    ------
    DamagedWeights
        The file is there and is none that `axion train` wrote for this version.
    """
    if chosen is None or not (path := chosen_path(chosen, base)).exists():
        return shipped()
    return load(path)
