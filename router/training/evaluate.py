"""How good a classifier is on labelled prompts, as a report in Markdown."""

from collections.abc import Callable, Sequence

import numpy
from numpy.typing import NDArray

from router.classifier import TASKS, Classifier
from router.describe import SURE
from router.training.data import Row

_ROUNDS = 1000  # of the bootstrap
_BINS = 10

Label = NDArray[numpy.int64]


def report(classifier: Classifier, rows: Sequence[Row]) -> str:
    """Return the report: shares with 95 % intervals, by task, language, near miss and source."""
    likely = numpy.array([list(classifier.probabilities(row.text).values()) for row in rows])
    truth = numpy.array([TASKS.index(row.task) for row in rows])
    found = likely.argmax(axis=1)
    sure = likely.max(axis=1) >= SURE
    parts = [
        _overview(truth, found, sure, likely),
        _by_task(truth, found),
        _by_group("language", [row.language or "other" for row in rows], truth, found),
        _by_group(
            "near miss",
            ["near miss" if row.near_miss else "no near miss" for row in rows],
            truth,
            found,
        ),
        _by_group("source", [row.source for row in rows], truth, found),
        _confusion(truth, found),
        _reliability(likely, truth),
    ]
    return "\n\n".join(parts) + "\n"


def accuracy(truth: Label, found: Label) -> float:
    """Return the share of rows with the right task."""
    return float((truth == found).mean())


def f1(truth: Label, found: Label, task: str = "code") -> float:
    """Return the F1 of one task against all others; 0 where it never is."""
    one = TASKS.index(task)
    both = int(((truth == one) & (found == one)).sum())
    return 2 * both / max(int((truth == one).sum()) + int((found == one).sum()), 1)


def macro_f1(truth: Label, found: Label) -> float:
    """Return the mean F1 of the tasks that are there."""
    return float(numpy.mean([f1(truth, found, TASKS[task]) for task in sorted(set(truth))]))


def interval(
    measure: Callable[[Label, Label], float], truth: Label, found: Label
) -> tuple[float, float]:
    """Return the 95 % interval of a measure, by bootstrap over the rows."""
    random = numpy.random.default_rng(0)
    draws = random.integers(0, len(truth), size=(_ROUNDS, len(truth)))
    values = [measure(truth[draw], found[draw]) for draw in draws]
    low, high = numpy.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def calibration_error(likely: NDArray[numpy.float64], truth: Label) -> float:
    """Return the expected calibration error, over ten bins of equal width."""
    return sum(abs(right - said) * share for _, right, said, share, _ in _bins(likely, truth))


def _overview(
    truth: Label, found: Label, sure: NDArray[numpy.bool_], likely: NDArray[numpy.float64]
) -> str:
    lines = ["| measure | value | 95 % interval |", "| --- | --- | --- |"]
    measures: dict[str, Callable[[Label, Label], float]] = {
        "accuracy": accuracy,
        "macro F1": macro_f1,
        "F1 of code": f1,
    }
    for name, measure in measures.items():
        low, high = interval(measure, truth, found)
        lines.append(f"| {name} | {measure(truth, found):.3f} | {low:.3f} to {high:.3f} |")
    commonest = numpy.bincount(truth).max() / len(truth)
    lines += [
        f"| share of rows it is sure of | {sure.mean():.3f} | |",
        f"| accuracy on those | {accuracy(truth[sure], found[sure]):.3f} | |",
        f"| expected calibration error | {calibration_error(likely, truth):.3f} | |",
        f"| accuracy of always the commonest task | {commonest:.3f} | |",
    ]
    return "\n".join([f"{len(truth)} prompts.", "", *lines])


def _by_task(truth: Label, found: Label) -> str:
    lines = ["| task | prompts | precision | recall | F1 |", "| --- | --- | --- | --- | --- |"]
    for number, task in enumerate(TASKS):
        there, said = truth == number, found == number
        if there.any():
            both = (there & said).sum()
            lines.append(
                f"| {task} | {there.sum()} | {both / max(said.sum(), 1):.3f} "
                f"| {both / there.sum():.3f} | {f1(truth, found, task):.3f} |"
            )
    return "\n".join(lines)


def _by_group(title: str, groups: Sequence[str], truth: Label, found: Label) -> str:
    names = numpy.array(groups)
    lines = [f"| {title} | prompts | accuracy | F1 of code |", "| --- | --- | --- | --- |"]
    for name in sorted(set(groups)):
        here = names == name
        code = f"{f1(truth[here], found[here]):.3f}" if (truth[here] == 0).any() else ""
        lines.append(
            f"| {name} | {here.sum()} | {accuracy(truth[here], found[here]):.3f} | {code} |"
        )
    return "\n".join(lines)


def _confusion(truth: Label, found: Label) -> str:
    head = "| is, below; taken for, right | " + " | ".join(TASKS) + " |"
    lines = [head, "| --- |" + " --- |" * len(TASKS)]
    for number, task in enumerate(TASKS):
        counts = numpy.bincount(found[truth == number], minlength=len(TASKS))
        if counts.any():
            lines.append(f"| {task} | " + " | ".join(str(count) for count in counts) + " |")
    return "\n".join(lines)


def _reliability(likely: NDArray[numpy.float64], truth: Label) -> str:
    lines = ["| says | prompts | mean it says | right |", "| --- | --- | --- | --- |"]
    for low, right, said, _, count in _bins(likely, truth):
        lines.append(f"| {low:.1f} to {low + 0.1:.1f} | {count} | {said:.2f} | {right:.2f} |")
    return "\n".join(lines)


def _bins(
    likely: NDArray[numpy.float64], truth: Label
) -> list[tuple[float, float, float, float, int]]:
    """Return lower bound, share that is right, mean that is said, share and number of each bin."""
    said, right = likely.max(axis=1), likely.argmax(axis=1) == truth
    place = numpy.minimum((said * _BINS).astype(int), _BINS - 1)
    return [
        (
            number / _BINS,
            float(right[place == number].mean()),
            float(said[place == number].mean()),
            float((place == number).mean()),
            int((place == number).sum()),
        )
        for number in range(_BINS)
        if (place == number).any()
    ]
