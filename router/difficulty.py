"""How much a request gains from a larger model."""

import math
from collections.abc import Mapping

# A linear model of eight numbers. Two kinds of evidence, weighed alike, went into them: how hard
# the authors of our own prompts said they are, and how much likelier two models of 49 and 51
# billion parameters were right than six of 7 to 9 billion, on 884 public prompts.
# `python -m tests.benchmarks.difficulty` fits and judges it; docs/classifier.md has the result.
_OF_TASK = {
    "code": 0.033,
    "math": 0.031,
    "reasoning": 0.249,
    "writing": -0.009,
    "qa": -0.154,
    "chat": -0.368,
    "extraction": -0.239,
}
_PER_LOG_CHAR = 0.127

CHARS_MAX = 2_000
"""More is material, which does not make a request harder."""


def difficulty(likely: Mapping[str, float], chars: int) -> float:
    """Return how hard a request is, 0 to 1.

    Parameters
    ----------
    likely
        How likely the request is each task; empty for one without words, which is easy.
    chars
        Length of what the user asks, in characters.
    """
    if not likely:
        return 0.0
    expected = sum(share * _OF_TASK[task] for task, share in likely.items())
    return min(max(expected + _PER_LOG_CHAR * math.log1p(min(chars, CHARS_MAX)), 0.0), 1.0)
