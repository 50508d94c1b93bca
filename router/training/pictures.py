"""The report's pictures, as SVG that can be read on a light and on a dark page.

They need matplotlib, which serving and the other reports do not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from router.classifier import TASKS
from router.training.evaluate import Judged, bins, confusion, share_interval

_INK = "#7d8590"
"""A grey with a contrast of 4 to 1 on white and on GitHub's dark background."""

_BLUE = "#2f81f7"
_LIGHT, _DARK = numpy.array([0.93, 0.96, 1.0]), numpy.array([0.05, 0.33, 0.78])

_STYLE = {
    "svg.hashsalt": "axion",  # the same numbers give the same file
    "svg.fonttype": "none",  # text stays text: small files, and the reader's own font
    "font.size": 10,
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Unavailable(Exception):
    """What draws is not installed."""


def write(judged: Judged, directory: Path) -> list[Path]:
    """Write `reliability.svg`, `confusion.svg` and `sources.svg`, and return where they are.

    Raises
    ------
    Unavailable
        matplotlib is not installed.
    """
    return drawn(directory, {_NAMES[draw]: partial(draw, judged) for draw in _NAMES})


def drawn(directory: Path, pictures: Mapping[str, Callable[[Any], None]]) -> list[Path]:
    """Write pictures in this style, and return where they are.

    Parameters
    ----------
    pictures
        What draws each on a figure, by the name of its file without `.svg`.

    Raises
    ------
    Unavailable
        matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise Unavailable(
            "pictures need matplotlib, which is not installed; `make setup` installs it, or "
            "`pip install matplotlib`"
        ) from None
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(_STYLE):
        for name, draw in pictures.items():
            figure = Figure(layout="constrained")
            draw(figure)
            path = directory / f"{name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
            paths.append(path)
    return paths


def reliability(judged: Judged, figure: Any) -> None:
    """Draw what share is right against what the classifier says, and how often it says so."""
    figure.set_size_inches(4.6, 4.6)
    shares, counts = figure.subplots(2, height_ratios=(4, 1), sharex=True)
    found = bins(judged.likely, judged.truth)
    said, right = [each.said for each in found], [each.right for each in found]
    bounds = [share_interval(round(each.right * each.rows), each.rows) for each in found]
    low = [each.right - low for each, (low, _) in zip(found, bounds, strict=True)]
    high = [high - each.right for each, (_, high) in zip(found, bounds, strict=True)]
    shares.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=(0, (4, 4)))
    shares.errorbar(
        said, right, yerr=(low, high), color=_BLUE, marker="o", capsize=3, linewidth=1.5
    )
    shares.set(ylabel="share that is right", ylim=(0, 1), xlim=(0, 1))
    counts.bar(
        [each.low + 0.05 for each in found], [each.rows for each in found], 0.08, color=_BLUE
    )
    counts.set(xlabel="probability of the likeliest task", ylabel="prompts")


def confusion_matrix(judged: Judged, figure: Any) -> None:
    """Draw how many prompts of each task were taken for each, coloured by the share of the row."""
    figure.set_size_inches(6, 4.8)
    axes = figure.subplots()
    counts = confusion(judged)
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = _LIGHT + shares[..., None] * (_DARK - _LIGHT)  # opaque: the same on every page
    axes.pcolormesh(range(len(TASKS)), range(len(TASKS)), colours, edgecolor="white", linewidth=2)
    for row, column in numpy.argwhere(counts):
        share = shares[row, column]
        axes.text(
            *(column, row, f"{counts[row, column]}\n{f'{share:.0%}' if share >= 0.01 else '<1%'}"),
            color="white" if share > 0.5 else "#24292f",
            fontsize=8.5,
            horizontalalignment="center",
            verticalalignment="center",
        )
    axes.set(xlabel="taken for", ylabel="is")
    axes.invert_yaxis()
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set_yticks(range(len(TASKS)), TASKS)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def sources(judged: Judged, figure: Any) -> None:
    """Draw the accuracy on each source with its 95 % interval, the best on top."""
    names = numpy.array([row.source for row in judged.rows])
    right = judged.truth == judged.found
    each = sorted(
        (float(right[names == name].mean()), name, int((names == name).sum()))
        for name in set(names.tolist())
    )
    figure.set_size_inches(6, 1 + 0.22 * len(each))
    axes = figure.subplots()
    for place, (share, _, count) in enumerate(each):
        axes.plot(share_interval(round(share * count), count), (place, place), color=_INK)
        axes.plot(share, place, "o", color=_BLUE, clip_on=False)
    axes.axvline(float(right.mean()), color=_INK, linewidth=1, linestyle=(0, (4, 4)), zorder=0)
    axes.set_yticks(range(len(each)), [f"{name} ({count})" for _, name, count in each])
    axes.set(xlim=(0, 1), ylim=(-0.7, len(each) - 0.3), xlabel="accuracy (dashed: of all prompts)")


_NAMES = {reliability: "reliability", confusion_matrix: "confusion", sources: "sources"}
