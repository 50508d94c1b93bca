"""What comes out of a simulation, in a few numbers, whatever its length."""

from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from router.simulation.machine import Machine, Outcome
from router.spread import Spread

_LEAST_S = 1e-6


class Measures(Struct, kw_only=True):
    """What one contestant made of one trace.

    Attributes
    ----------
    requests, refused
        How many there were, and how many of them got no answer.
    first, whole
        Seconds to the first token and to the whole answer; infinite without one.
    fit
        Sum over all requests; one without an answer has 0.
    longest_wait
        Until a model began with a request, in seconds.
    error
        Sum of |predicted / measured - 1| over the answers.
    models
        How many answers each model gave.
    """

    requests: int = 0
    refused: int = 0
    first: Spread = field(default_factory=Spread)
    whole: Spread = field(default_factory=Spread)
    fit: float = 0.0
    longest_wait: float = 0.0
    error: float = 0.0
    models: Counter[str] = field(default_factory=Counter)
    loads: int = 0
    unloads: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count a request."""
        self.requests += 1
        self.first.add(outcome.first_s)
        self.whole.add(outcome.whole_s)
        self.fit += outcome.fit
        if outcome.model is None:
            self.refused += 1
            return
        self.models[outcome.model] += 1
        self.longest_wait = max(self.longest_wait, outcome.waited_s)
        self.error += abs(outcome.predicted_s / max(outcome.whole_s, _LEAST_S) - 1)

    @property
    def mean_fit(self) -> float:
        """Mean fit of all requests."""
        return self.fit / max(self.requests, 1)

    @property
    def starved(self) -> float:
        """Share of the requests that took more than ten times the median, or for ever."""
        return self.whole.share_above(10 * self.whole.quantile(0.5))

    def shares(self, models: Iterable[str]) -> Mapping[str, float]:
        """Return the share of the answers that each model gave."""
        answers = max(sum(self.models.values()), 1)
        return {model: self.models[model] / answers for model in models}


def measured(machine: Machine, outcomes: Iterable[Outcome]) -> Measures:
    """Return the measures of a whole run."""
    found = Measures()
    for outcome in outcomes:
        found.add(outcome)
    found.loads, found.unloads = machine.loads, machine.unloads
    return found
