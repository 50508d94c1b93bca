"""How good a classifier is on labelled prompts, as tables in Markdown."""

import math
import statistics
import timeit
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from router.classifier import TASKS, Classifier
from router.describe import SURE
from router.training.baselines import Tell, baselines
from router.training.data import Row
from router.training.train import left_out

_ROUNDS = 1000  # of the bootstrap
_BINS = 10
_TAG_MIN = 10  # prompts; near misses of which there are fewer are one group
_TIMED_MAX = 300  # prompts that are timed

Labels = NDArray[numpy.int64]
Measure = Callable[[Labels, Labels], float]
"""From what is true and what was found, both as places in `TASKS`, to a number."""


class Judged(NamedTuple):
    """Rows, and what a classifier says of them.

    Attributes
    ----------
    truth
        The place in `TASKS` of each row's task.
    likely
        How likely each task is, of shape (len(rows), len(TASKS)).
    """

    rows: Sequence[Row]
    truth: Labels
    likely: NDArray[numpy.float64]

    @property
    def found(self) -> Labels:
        """The likeliest task of each row."""
        found: Labels = self.likely.argmax(axis=1)
        return found


class Group(NamedTuple):
    """Some of the rows, and what they have in common."""

    name: str
    here: NDArray[numpy.bool_]


class TooFew(Exception):
    """The rows cannot be judged in the way that was asked for; the message says why."""


def judge(classifier: Classifier, rows: Sequence[Row]) -> Judged:
    """Return what the classifier says of the rows."""
    likely = [list(classifier.probabilities(row.text).values()) for row in rows]
    return Judged(rows, _places(row.task for row in rows), numpy.array(likely))


def sections(judged: Judged) -> dict[str, str]:
    """Return the tables of the report by their headings; shares have 95 % intervals."""
    rows = judged.rows
    languages = _groups([(row.language or "other",) for row in rows])
    return {
        "Overall": _overview(judged),
        "By task": _by_task(judged),
        "By language": _by_group("language", languages, judged),
        "By near miss": _by_group("near miss", _near_misses(rows), judged),
        "By source": _by_group("source", _groups([(row.source,) for row in rows]), judged),
        "Confusion": _confusion(judged),
        "Reliability": _reliability(judged),
    }


def accuracy(truth: Labels, found: Labels) -> float:
    """Return the share of rows with the right task."""
    return float((truth == found).mean())


def f1(truth: Labels, found: Labels, task: str = "code") -> float:
    """Return the F1 of one task against all others; 0 where it never is."""
    one = TASKS.index(task)
    both = int(((truth == one) & (found == one)).sum())
    return 2 * both / max(int((truth == one).sum()) + int((found == one).sum()), 1)


def macro_f1(truth: Labels, found: Labels) -> float:
    """Return the mean F1 of the tasks that are there."""
    return float(numpy.mean([f1(truth, found, TASKS[task]) for task in numpy.unique(truth)]))


def interval(measure: Measure, truth: Labels, found: Labels) -> tuple[float, float]:
    """Return the 95 % interval of a measure, by bootstrap over the rows."""
    random = numpy.random.default_rng(0)
    draws = random.integers(0, len(truth), size=(_ROUNDS, len(truth)))
    values = [measure(truth[draw], found[draw]) for draw in draws]
    low, high = numpy.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def share_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927).

    The bootstrap would say of ten rows that are all right that there is nothing else to be had.
    """
    z = 1.96
    share, slack = right / count, z * z / count
    middle = share + slack / 2
    reach = z * math.sqrt(share * (1 - share) / count + slack / (4 * count))
    return (middle - reach) / (1 + slack), (middle + reach) / (1 + slack)


def calibration_error(likely: NDArray[numpy.float64], truth: Labels) -> float:
    """Return the expected calibration error, over ten bins of equal width."""
    return sum(abs(each.right - each.said) * each.rows for each in bins(likely, truth)) / len(truth)


class Bin(NamedTuple):
    """The rows of which about the same is said."""

    low: float
    """Least probability in the bin."""
    said: float
    """Mean probability of the likeliest task."""
    right: float
    """Share of which that is the task."""
    rows: int


def bins(likely: NDArray[numpy.float64], truth: Labels) -> list[Bin]:
    """Return the bins that have rows, ten of equal width over the likeliest task's probability."""
    said, right = likely.max(axis=1), likely.argmax(axis=1) == truth
    place = numpy.minimum((said * _BINS).astype(int), _BINS - 1)
    return [
        Bin(number / _BINS, float(said[here].mean()), float(right[here].mean()), int(here.sum()))
        for number in range(_BINS)
        if (here := place == number).any()
    ]


def confusion(judged: Judged) -> NDArray[numpy.int64]:
    """Return how many rows of each task (first axis) were taken for each task (second axis)."""
    counts = numpy.zeros((len(TASKS), len(TASKS)), dtype=numpy.int64)
    numpy.add.at(counts, (judged.truth, judged.found), 1)
    return counts


def comparison(classifier: Classifier, rows: Sequence[Row], prompts: Sequence[Row]) -> str:
    """Return a table of the classifier beside baselines that are trained on `prompts`."""

    def ours(text: str) -> str:
        likely = classifier.probabilities(text)
        return max(likely, key=likely.__getitem__)

    truth = _places(row.task for row in rows)
    spoken = numpy.array([row.language for row in rows])
    languages = [None, *(each for each in ("en", "es") if (truth[spoken == each] == 0).any())]
    code = [f"F1 of code{f', {each}' if each else ''}" for each in languages]
    lines = _head("classifier", "accuracy", "macro F1", *code, "time / ours")
    tells = {**baselines(prompts), "**this one**": ours}
    times = {name: _time(tell, rows) for name, tell in tells.items()}
    for name, tell in tells.items():
        found = _places(tell(row.text) for row in rows)
        parts = [
            numpy.ones(len(rows), bool) if each is None else spoken == each for each in languages
        ]
        cells = [
            _with_interval(accuracy, truth, found),
            _with_interval(macro_f1, truth, found),
            *(_with_interval(f1, truth[here], found[here]) for here in parts),
            f"{times[name] / times['**this one**']:.3g}",
        ]
        lines.append(_line(name, *cells))
    return "\n".join(lines)


def left_out_sources(
    judged: Judged, prompts: Sequence[Row], on_step: Callable[[str], None] = lambda step: None
) -> str:
    """Return a table of each source by models that saw the others.

    Parameters
    ----------
    prompts
        What the second of the two kinds of models is also trained on.
    on_step
        Called with what is about to be trained; one model takes some seconds.

    Raises
    ------
    TooFew
        Without some source there are rows of fewer than three tasks.
    """
    rows, truth = judged.rows, judged.truth
    sources = _groups([(row.source,) for row in rows])
    for source in sources:
        if len(set(truth[~source.here])) < 3:
            raise TooFew(
                f"without the source {source.name} fewer than three tasks are left to learn; "
                "leaving sources out needs prompts of more sources (`source_group`)"
            )
    found = {"**this one**, which saw none": judged.found}
    for name, more in (("the other sources", ()), ("the other sources and our prompts", prompts)):
        on_step(f"{len(sources)} models of {name}")
        scores, _ = left_out(rows, more=more, on_source=on_step)
        found[name] = scores.argmax(axis=1)
    lines = _head("source", "prompts", *found)
    for source in sources:
        cells = [_accuracy(truth[source.here], each[source.here]) for each in found.values()]
        lines.append(_line(source.name, source.here.sum(), *cells))
    for name, measure in (("accuracy", accuracy), ("macro F1", macro_f1), ("F1 of code", f1)):
        cells = [_with_interval(measure, truth, each) for each in found.values()]
        lines.append(_line(f"**all, {name}**", len(rows), *cells))
    return "\n".join(lines)


def _overview(judged: Judged) -> str:
    truth, found = judged.truth, judged.found
    sure = judged.likely.max(axis=1) >= SURE
    lines = _head("measure", "value (95 % interval)")
    for name, measure in (("accuracy", accuracy), ("macro F1", macro_f1), ("F1 of code", f1)):
        lines.append(_line(name, _with_interval(measure, truth, found)))
    share = _cell(float(sure.mean()), share_interval(int(sure.sum()), len(sure)))
    lines.append(_line("share of rows it is sure of", share))
    if sure.any():
        lines.append(_line("accuracy on those", _accuracy(truth[sure], found[sure])))
    error = calibration_error(judged.likely, truth)
    lines.append(_line("expected calibration error", f"{error:.3f}"))
    return "\n".join([f"{len(truth):,} prompts.", "", *lines])


def _by_task(judged: Judged) -> str:
    lines = _head("task", "prompts", "precision", "recall", "F1 (95 % interval)")
    counts = confusion(judged)
    for number, task in enumerate(TASKS):
        there, said, both = counts[number].sum(), counts[:, number].sum(), counts[number, number]
        if there:
            shares = (f"{both / max(said, 1):.3f}", f"{both / there:.3f}")
            score = _with_interval(partial(f1, task=task), judged.truth, judged.found)
            lines.append(_line(task, there, *shares, score))
    return "\n".join(lines)


def _by_group(title: str, groups: Sequence[Group], judged: Judged) -> str:
    lines = _head(title, "prompts", "accuracy (95 % interval)", "F1 of code")
    for name, here in groups:
        truth, found = judged.truth[here], judged.found[here]
        code = _with_interval(f1, truth, found) if (truth == 0).any() else ""
        lines.append(_line(name, here.sum(), _accuracy(truth, found), code))
    return "\n".join(lines)


def _groups(names: Sequence[Sequence[str]]) -> list[Group]:
    """Return a group for each name; a row is in the group of each of its names."""
    return [
        Group(name, numpy.array([name in each for each in names]))
        for name in sorted({name for each in names for name in each})
    ]


def _near_misses(rows: Sequence[Row]) -> list[Group]:
    """Return all near misses, the rows that are none, and each tag that enough rows have."""
    tags = Counter(tag for row in rows for tag in row.near_miss)
    names: list[tuple[str, ...]] = []
    for row in rows:
        own = {tag if tags[tag] >= _TAG_MIN else "rarer ones" for tag in row.near_miss}
        names.append(("all near misses", *own) if row.near_miss else ("no near miss",))
    order = {"all near misses": -2, "no near miss": -1, "rarer ones": 1}
    return sorted(_groups(names), key=lambda group: order.get(group.name, 0))


def _confusion(judged: Judged) -> str:
    lines = _head("is, below; taken for, right", *TASKS)
    for task, counts in zip(TASKS, confusion(judged), strict=True):
        if counts.any():
            lines.append(_line(task, *counts))
    return "\n".join(lines)


def _reliability(judged: Judged) -> str:
    lines = _head("says", "prompts", "mean it says", "right")
    for low, said, right, count in bins(judged.likely, judged.truth):
        lines.append(_line(f"{low:.1f} to {low + 0.1:.1f}", count, f"{said:.2f}", f"{right:.2f}"))
    return "\n".join(lines)


def _places(tasks: Iterable[str]) -> Labels:
    return numpy.array([TASKS.index(task) for task in tasks], dtype=numpy.int64)


def _time(tell: Tell, rows: Sequence[Row]) -> float:
    """Return the median time of one prompt, in seconds, the shortest of three of each."""
    return statistics.median(
        min(timeit.repeat(partial(tell, row.text), number=1, repeat=3))
        for row in rows[:: math.ceil(len(rows) / _TIMED_MAX)]
    )


def _accuracy(truth: Labels, found: Labels) -> str:
    right = int((truth == found).sum())
    return _cell(right / len(truth), share_interval(right, len(truth)))


def _with_interval(measure: Measure, truth: Labels, found: Labels) -> str:
    return _cell(measure(truth, found), interval(measure, truth, found))


def _cell(value: float, bounds: tuple[float, float]) -> str:
    return f"{value:.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
