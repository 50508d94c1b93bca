"""Fit the numbers of `router.difficulty`, and judge them by what models really answered.

    python -m tests.benchmarks.difficulty OUTCOMES.csv PROMPTS.jsonl

OUTCOMES has a row for each prompt: `dev_id`, `upstream_task` (the source), and for each model 1
where its answer was right and 0 where not. PROMPTS has the prompts under these ids.

Judged is a router that gives the hardest prompts to a large model and the others to a small one:
the area under its curve of quality against the large model's share (0.5 is drawing lots, 1 is
more than can be had), the mean of the pairs below; Ong et al., RouteLLM, 2024, call it APGR.
Each source is judged by numbers that were fitted without it.
"""

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray

from router.classifier import TASKS, shipped
from router.describe import subject
from router.difficulty import CHARS_MAX
from router.training import data

SMALL = (
    "codegemma-7b",
    "gemma-2-9b-it",
    "llama-3.1-8b-instruct",
    "llama3-chatqa-1.5-8b",
    "mistral-7b-instruct-v0.3",
    "qwen2.5-7b-instruct",
)
LARGE = ("llama-3.1-nemotron-51b-instruct", "llama-3.3-nemotron-super-49b-v1")

GAIN_MIN = 0.05
"""Pairs of which the larger model gains less on all prompts: there is nothing to route."""

LOW, HIGH = 5, 95
"""Percentiles of our own prompts' difficulty that become 0.1 and 0.9."""

_ROUNDS = 1000  # of the bootstrap

Floats = NDArray[numpy.float64]


def main(arguments: Sequence[str]) -> None:
    """Print the numbers, and the table of areas."""
    if len(arguments) != 2:
        sys.exit(__doc__)
    outcomes, prompts = map(Path, arguments)
    with outcomes.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = _texts(prompts)
    features = numpy.array([_features(texts[row["dev_id"]]) for row in rows])
    sources = numpy.array([row["upstream_task"] for row in rows])
    right = {model: numpy.array([float(row[model]) for row in rows]) for model in (*SMALL, *LARGE)}
    gain = sum(right[each] for each in LARGE) / 2 - sum(right[each] for each in SMALL) / len(SMALL)

    left_out = numpy.zeros(len(rows))
    for source in sorted(set(sources)):
        here = sources == source
        left_out[here] = features[here] @ _fit(features[~here], gain[~here], sources[~here])
    chars = numpy.array([len(texts[row["dev_id"]]) for row in rows], float)
    routers = {
        "drawing lots": numpy.random.default_rng(0).random(len(rows)),
        "length of the prompt": chars,
        "difficulty, of sources left out": left_out,
    }
    _print_areas(routers, right, sources)
    _print_numbers(_fit(features, gain, sources))


def _texts(path: Path) -> dict[str, str]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["id"]] = subject(data.turns(row["messages"]))
    return found


def _features(text: str, task: str | None = None) -> list[float]:
    """Return the shares of the tasks, or one for `task`, and the logarithm of the length."""
    likely = shipped().probabilities(text)
    shares = [float(each == task) for each in TASKS] if task else list(likely.values())
    return [*shares, math.log1p(min(len(text), CHARS_MAX))]


def _own() -> tuple[Floats, Floats]:
    """Return features and difficulty of our own prompts, as far as their authors gave one."""
    rows = [row for row in data.read([data.PROMPTS]) if row.difficulty is not None]
    return (
        numpy.array([_features(row.text, row.task) for row in rows]),
        numpy.array([row.difficulty for row in rows], float),
    )


def _fit(features: Floats, gain: Floats, sources: NDArray[numpy.str_]) -> Floats:
    """Return the eight numbers by least squares.

    Both kinds of evidence count alike, and so does each source of outcomes. The gain is put on the
    scale of what people say, by mean and deviation.
    """
    own, said = _own()
    names, counts = numpy.unique(sources, return_counts=True)
    of_source = dict(zip(names, counts, strict=True))
    share = numpy.array([1 / of_source[each] / len(names) for each in sources])
    mean = float((share * gain).sum())
    scaled = said.mean() + (gain - mean) * said.std() / gain.std()
    weights = numpy.sqrt(numpy.concatenate([numpy.full(len(said), 1 / len(said)), share]))
    numbers, *_ = numpy.linalg.lstsq(
        numpy.vstack([own, features]) * weights[:, None],
        numpy.concatenate([said, scaled]) * weights,
        rcond=None,
    )
    low, high = numpy.percentile(own @ numbers, [LOW, HIGH])
    stretched = numbers * 0.8 / (high - low)
    stretched[:-1] += 0.1 - low * 0.8 / (high - low)  # the shares add up to one
    return stretched


def _area(score: Floats, small: Floats, large: Floats) -> float:
    """Return the area under the curve of quality, from all small (0) to all large (1)."""
    order = numpy.lexsort((numpy.random.default_rng(0).random(len(score)), -score))
    gained = numpy.cumsum((large - small)[order]) / (large - small).sum()
    return float(gained.mean())


def _print_areas(
    routers: dict[str, Floats], right: dict[str, Floats], sources: NDArray[numpy.str_]
) -> None:
    pairs = [
        (small, large)
        for small in SMALL
        for large in LARGE
        if (right[large] - right[small]).mean() >= GAIN_MIN
    ]
    names = list(routers)
    lines = ["| small model, large model | gain | " + " | ".join(names) + " |"]
    lines.append("| --- |" + " --- |" * (len(names) + 1))
    for small, large in pairs:
        areas = " | ".join(f"{_area(routers[n], right[small], right[large]):.3f}" for n in names)
        gain = (right[large] - right[small]).mean()
        lines.append(f"| {small}, {large} | {gain:.2f} | {areas} |")

    def means(rows: NDArray[numpy.int64]) -> list[float]:
        return [
            float(
                numpy.mean([_area(score[rows], right[s][rows], right[b][rows]) for s, b in pairs])
            )
            for score in routers.values()
        ]

    whole = means(numpy.arange(len(sources)))
    lines.append(f"| mean of {len(pairs)} | | " + " | ".join(f"{m:.3f}" for m in whole) + " |")
    random = numpy.random.default_rng(0)
    draws = numpy.array(
        [means(random.integers(0, len(sources), len(sources))) for _ in range(_ROUNDS)]
    )
    low, high = numpy.percentile(draws[:, 2] - draws[:, 1], [2.5, 97.5])
    difference = f"{whole[2] - whole[1]:.3f} ({low:.3f} to {high:.3f})"
    within = {
        name: numpy.mean(
            [
                numpy.mean(
                    [
                        _area(score[here], right[s][here], right[b][here])
                        for s, b in pairs
                        if (right[b][here] - right[s][here]).mean() >= GAIN_MIN
                    ]
                    or [0.5]
                )
                for source in sorted(set(sources))
                for here in [sources == source]
            ]
        )
        for name, score in routers.items()
    }
    inside = " | ".join(f"{within[name]:.3f}" for name in names)
    lines.append(f"| the same inside each source, mean | | {inside} |")
    sys.stdout.write("\n".join(lines))
    sys.stdout.write(f"\n\nDifficulty less length, 95 % interval: {difference}.\n\n")


def _print_numbers(numbers: Floats) -> None:
    shares = ", ".join(f'"{t}": {n:.3f}' for t, n in zip(TASKS, numbers, strict=False))
    sys.stdout.write(f"OF_TASK = {{{shares}}}\nPER_LOG_CHAR = {numbers[-1]:.3f}\n")
    own, _ = _own()
    spread = numpy.percentile(own @ numbers, [0, 5, 25, 50, 75, 95, 100])
    sys.stdout.write(f"of our own prompts: {' '.join(f'{each:.2f}' for each in spread)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
