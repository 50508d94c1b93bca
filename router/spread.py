"""How values are spread, in bounded memory."""

import math
from collections import Counter

_WIDTH = math.log(1.01)  # of a class of values: quantiles are within 0.5 %
_LEAST = 1e-6


class Spread:
    """Counts values by classes of equal relative width (Masson, Rim and Lee, 2019: DDSketch)."""

    def __init__(self) -> None:
        self.count = 0
        self._classes: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Count a value; an infinite one is larger than all others."""
        self.count += 1
        at = math.inf if math.isinf(value) else math.ceil(math.log(max(value, _LEAST)) / _WIDTH)
        self._classes[at] += 1

    def quantile(self, share: float) -> float:
        """Return the value that this share of all is not above; 0 if there is none."""
        wanted, found = share * self.count, 0
        for at, count in sorted(self._classes.items()):
            found += count
            if found >= wanted and found:
                return _value(at)
        return 0.0

    def share_above(self, value: float) -> float:
        """Return how many of all are above a value."""
        above = sum(count for at, count in self._classes.items() if _value(at) > value)
        return above / max(self.count, 1)


def _value(at: float) -> float:
    return math.inf if math.isinf(at) else math.exp((at - 0.5) * _WIDTH)
