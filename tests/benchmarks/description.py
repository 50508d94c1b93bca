"""Measure the way from a parsed request to its description, in one thread.

    python -m tests.benchmarks.description [FILE.jsonl ...]

FILE has one prompt a line, `text` or `messages`; without one the prompts that ship with the project
and those of its regression set are taken. The table on standard output is the one in
docs/classifier.md.

Each request is described five times, and the shortest time counts: it is what the work takes; the
others have what else ran on the machine. Times are also given as multiples of a reference that is
measured beside each, so that machines can be compared: one `re.findall(r"\\w+", page)` over a
fixed page of 10,000 characters, because what is measured is, like it, a walk over words by the
`re` module that makes a Python object of each.
"""

import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy

from router import classifier, describe, features, tokens
from router.training import data
from router.words import Request, Turn

_ROUNDS = 5
_TOKENS_MAX = 1_000  # of an ordinary prompt
_ROOT = Path(__file__).parents[2]
PROMPTS = (*sorted(data.PROMPTS.glob("*.jsonl")), data.REGRESSION)
"""What is measured when nothing is named."""

_SENTENCE = "The committee met on 14 March and, after a long debate, postponed the vote on it. "
_SENTENCE_TOKENS = tokens.count(_SENTENCE)
_PAGE = (_SENTENCE * 200)[:10_000]
_MEGABYTES = 10_000_000


def main(arguments: Sequence[str]) -> None:
    """Print the table, for the prompts in the files that are named."""
    sys.stdout.write(table([Path(name) for name in arguments] or PROMPTS) + "\n")


def table(paths: Sequence[Path]) -> str:
    """Return the times as Markdown, with the machine and its load."""
    prompts = [request for request in map(_request, _lines(paths)) if _is_ordinary(request)]
    _described(prompts[0])  # reads the weights and the vocabulary
    references = []
    parts = ("subject", "classifier", "language", "tokens")
    titles = (
        "request",
        "p50, ms",
        "p99, ms",
        "p50 / reference",
        *(f"{part}, ms" for part in parts),
    )
    lines = [_line(*titles), _line("---", *["---:"] * (len(titles) - 1))]
    ordinary = f"prompts of up to {_TOKENS_MAX:,} tokens ({len(prompts):,})"
    for name, requests in [(ordinary, prompts), *((name, [one]) for name, one in _special())]:
        # Beside each row, because the machine's speed changes with what else it does.
        references.append(_reference())
        times = [_shortest(partial(_described, request), _ROUNDS) for request in requests]
        middle = statistics.median(times)
        last = f"{1e3 * float(numpy.percentile(times, 99)):.2f}" if len(times) > 1 else ""
        shares = [
            f"{1e3 * statistics.median(each):.3f}"
            for each in zip(*map(_parts, requests), strict=True)
        ]
        lines.append(
            _line(name, f"{1e3 * middle:.2f}", last, f"{middle / references[-1]:.1f}", *shares)
        )
    load = f"{os.getloadavg()[0]:.1f}"
    lines += [
        "",
        f"Measured on {time.strftime('%Y-%m-%d')} on {_processor()}, {os.cpu_count()} cores, "
        f"with a load of {load}, Python {platform.python_version()}; the reference took "
        f"{1e3 * min(references):.3f} to {1e3 * max(references):.3f} ms.",
    ]
    return "\n".join(lines)


def _special() -> Iterator[tuple[str, Request]]:
    """Yield what is long, what repeats, and what has many turns."""
    for count in (8_000, 32_000, 128_000):
        yield f"{count:,} tokens of prose", _asked(_SENTENCE * (count // _SENTENCE_TOKENS))
    units = {"one letter": "a", "spaces": " ", "newlines": "\n", "an emoji": "🙂"}
    for name, unit in units.items():
        yield f"10 MB of {name}", _asked(unit * (_MEGABYTES // len(unit.encode())))
    code = (_ROOT / "router" / "classifier.py").read_text(encoding="utf-8")
    yield f"{tokens.count(code):,} tokens of code", _asked(code)
    turns = (Turn("user", "now shorten it, please"), Turn("assistant", _SENTENCE))
    yield "a thousand turns", _chat((*turns * 500, turns[0]))


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            yield from filter(str.strip, lines)


def _request(line: str) -> Request:
    fields = json.loads(line)
    if "text" in fields:
        return _asked(fields["text"])
    return _chat(tuple(data.turns(fields["messages"])))


def _asked(text: str) -> Request:
    return _chat((Turn("user", text),))


def _chat(turns: tuple[Turn, ...]) -> Request:
    return Request(endpoint="chat", model="auto", stream=False, turns=turns)


def _is_ordinary(request: Request) -> bool:
    return tokens.count("\n".join(turn.text for turn in request.turns)) <= _TOKENS_MAX


def _described(request: Request) -> None:
    describe.describe(request, describe.subject(request.turns), classifier.shipped())


def _parts(request: Request) -> tuple[float, ...]:
    """Return the times of the parts, in seconds; what they share is in each."""
    text = describe.subject(request.turns)
    whole = "\n".join(turn.text for turn in request.turns)
    steps: tuple[Callable[[], object], ...] = (
        lambda: describe.subject(request.turns),
        lambda: classifier.shipped().probabilities(text),
        lambda: features.language(text),
        lambda: tokens.count(whole),
    )
    return tuple(_shortest(step, _ROUNDS) for step in steps)


def _reference() -> float:
    """Return the time of the reference, in seconds."""
    return _shortest(lambda: re.findall(r"\w+", _PAGE), 20)


def _shortest(step: Callable[[], object], rounds: int) -> float:
    """Return the shortest time of a step, in seconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times)


def _processor() -> str:
    """Return the processor's name, as far as the system says it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else platform.machine()


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
