"""The comparison as a picture."""

from pathlib import Path
from typing import Any

from router.simulation.compare import Cell, Comparison
from router.simulation.measures import Measures
from router.training.pictures import drawn

_INK, _BLUE = "#7d8590", "#2f81f7"
_NEVER_S = 2_000.0  # where those are drawn that have not answered a twentieth at all
_MARKS = "osD^vXP*hd"


def write(found: Comparison, directory: Path) -> list[Path]:
    """Write `simulation.svg`, and return where it is.

    Raises
    ------
    Unavailable
        matplotlib is not installed.
    """
    return drawn(directory, {"simulation": lambda figure: _draw(found, figure)})


def _draw(found: Comparison, figure: Any) -> None:
    """Draw mean fit against p95 for every cell; the upper left is best."""
    budgets = list(dict.fromkeys(cell.budget for cell in found.cells))
    loads = list(dict.fromkeys(cell.load for cell in found.cells))
    figure.set_size_inches(1 + 3 * len(loads), 1.2 + 2.6 * len(budgets))
    grid = figure.subplots(len(budgets), len(loads), sharex=True, sharey=True, squeeze=False)
    for row, budget in zip(grid, budgets, strict=True):
        for axes, load in zip(row, loads, strict=True):
            _cell(found, found.cells[Cell(budget, load)], axes)
            axes.set_title(f"memory: {budget}; load: {load}", fontsize=9)
    for axes in grid[-1]:
        axes.set(xlabel="p95 of the whole answer, s")
    for row in grid:
        row[0].set(ylabel="mean fit")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _cell(found: Comparison, measures: dict[str, Measures], axes: Any) -> None:
    places = {
        name: (min(each.whole.quantile(0.95), _NEVER_S), each.mean_fit)
        for name, each in measures.items()
    }
    curve = sorted(places[name] for name in found.policies)
    axes.plot(*zip(*curve, strict=True), color=_BLUE, linewidth=0.8, alpha=0.5)
    for mark, name in zip(_MARKS, found.simple, strict=False):
        axes.plot(*places[name], mark, color=_INK, label=name, markersize=5, linestyle="none")
    for number, name in enumerate(found.policies):
        first = number == 0
        axes.plot(
            *places[name],
            "o",
            color=_BLUE,
            markersize=7 if first else 3.5,
            markerfacecolor=_BLUE if first else "none",
            label=name if first else ("other policies" if number == 1 else None),
            linestyle="none",
        )
    axes.set_xscale("log")
    axes.axvline(_NEVER_S, color=_INK, linewidth=0.5, linestyle=(0, (2, 4)))
