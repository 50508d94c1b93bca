"""How engines that compute at the same time share the processor's cores.

An engine computes with a team of threads that wait for each other many times a token. Two teams on
the same cores make each other wait: two engines with all cores each were measured at a fifth of the
speed of one alone (`docs/engines.md`). So engines that are busy at the same time get a part of the
cores each, and one that is busy alone gets all of them.
"""

import os
from collections.abc import Mapping
from functools import cache

from engines.cpu import features


@cache
def usable() -> int:
    """Return how many cores this process may keep busy: its affinity, and its cgroup's quota."""
    processor = features()
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, round(processor.quota or cores)))


def shares(wishes: Mapping[str, int | None], cores: int) -> dict[str, int]:
    """Return the threads of each busy engine.

    Parameters
    ----------
    wishes
        The busy engines and the most threads that each may have; None: as many as there are.
    cores
        How many there are to share.

    Returns
    -------
    At least one thread each, at most what was wished; what one leaves over goes to the next.
    """
    result: dict[str, int] = {}
    left, count = cores, len(wishes)
    # Those with the smallest wishes first, so that what they leave is there for the others.
    for name, most in sorted(wishes.items(), key=lambda item: item[1] or cores):
        result[name] = max(1, min(left // count, most or cores))
        left, count = left - result[name], count - 1
    return result
