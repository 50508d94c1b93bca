"""One machine on a virtual clock: the life cycle and the decision are real, engines are arithmetic.

What an engine computes is counted in seconds of work, which is how long it takes alone. Busy
engines share the machine evenly, and the answers of one engine share it evenly, but for what
computing them together saves (`Scenario.batch_cost`). So all answers of one engine go on at one
pace, and however many there are, the next one to end is on the top of its heap.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import count

from msgspec import Struct

from config import ModelSettings, PoolSettings
from engines.lifecycle import Lifecycle
from engines.memory import GIB
from engines.words import Grant, Locate, Refuse, Start, Stop, Ticket
from policies import Policy, Undecidable
from router.catalogue import Listed
from router.choose import candidate
from router.conversations import Place
from router.dispatch import CLAUSES
from router.forecast import Forecast
from router.simulation.contestants import Contestant
from router.simulation.scenario import Hardware, Scenario
from router.simulation.trace import Arrival

_ENOUGH_BYTES = 2**60  # the budget is the bound, never the rest of the machine
_WARM_UP_TOKENS = 10_000
_SAME_S = 1e-6  # sums of seconds in another order are no difference


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a request; times are in seconds since it came.

    Attributes
    ----------
    model
        Which one answered, or None: it was refused.
    waited_s
        When its model began with it.
    first_s, whole_s
        When the first token and the whole answer were there.
    predicted_s
        How long the whole was expected to take.
    fit
        How good the answer is likely to be, by the judge's policy; 0 if there is none.
    """

    arrival: Arrival
    model: str | None = None
    waited_s: float = float("inf")
    first_s: float = float("inf")
    whole_s: float = float("inf")
    predicted_s: float = 0.0
    fit: float = 0.0


class _Run(Struct, eq=False):
    """A request on its way."""

    arrival: Arrival
    came_at: float
    model: str = ""
    predicted_s: float = 0.0
    tried: tuple[str, ...] = ()
    granted_at: float = 0.0
    first_at: float = 0.0
    unread: int = 0
    others: int = 0


class _Engine:
    """What one model computes."""

    def __init__(self, hardware: Hardware, batch_cost: float) -> None:
        self.hardware = hardware
        self.running = 0
        self._batch_cost = batch_cost
        self._worked = 0.0  # seconds of work that an answer has had that always ran
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()

    def after(self, work_s: float, then: Callable[[], None]) -> None:
        """Call `then` after so many seconds of work."""
        heappush(self._due, (self._worked + work_s, next(self._serial), then))

    def next_in(self, busy: int) -> float:
        """Return in how many seconds the next is due, with so many busy engines."""
        return (self._due[0][0] - self._worked) / self._pace(busy) if self._due else float("inf")

    def work(self, seconds: float, busy: int) -> None:
        """Let time pass."""
        if self.running:
            self._worked += seconds * self._pace(busy)

    def due(self) -> Iterator[Callable[[], None]]:
        """Yield what is due by now."""
        while self._due and self._due[0][0] <= self._worked + _SAME_S:
            yield heappop(self._due)[2]

    def _pace(self, busy: int) -> float:
        return 1 / (max(busy, 1) * (1 + self._batch_cost * (self.running - 1)))


class Machine:
    """A machine, and a service on it that chooses as a contestant does.

    Parameters
    ----------
    models
        In the order of the configuration.
    budget_gb
        What all loaded models together may take, in GiB.
    judge
        Whose fit table says how good answers are.

    Attributes
    ----------
    loads, unloads
        How often models were loaded, those for the start left out, and how often they left.
    """

    def __init__(
        self,
        models: list[ModelSettings],
        pool: PoolSettings,
        scenario: Scenario,
        budget_gb: float,
        contestant: Contestant,
        judge: Policy,
    ) -> None:
        self.loads = self.unloads = 0
        self._now = 0.0
        self._scenario = scenario
        self._contestant = contestant
        self._judge = judge
        self._listed = {model.name: _listed(model) for model in models}
        sizes = {name: int(each.size_gb * GIB) for name, each in scenario.hardware.items()}
        self._sizes = {model.name: sizes[model.name] for model in models}
        self._lifecycle = Lifecycle(
            models,
            pool,
            int(budget_gb * GIB),
            lambda: self._now,
            lambda: _ENOUGH_BYTES,
            self._sizes,
        )
        self._engines = {
            model.name: _Engine(scenario.hardware[model.name], scenario.batch_cost)
            for model in models
        }
        self._forecast = Forecast(models)
        if scenario.measured:
            _measure(self._forecast, scenario.hardware, self._sizes)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._runs: dict[Ticket, _Run] = {}
        self._background: dict[str, Ticket] = {}  # loads that no request waits for
        self._places: dict[int, Place] = {}
        self._ended: list[Outcome] = []
        self._preload(models)

    def run(self, trace: Iterable[Arrival]) -> Iterator[Outcome]:
        """Yield what becomes of each request of a trace, in the order in which they end."""
        origin = self._now
        coming = iter(trace)
        arrival = next(coming, None)
        while arrival is not None or self._runs:
            at = self._next_at()
            if arrival is not None and origin + arrival.at <= at:
                self._pass_until(max(origin + arrival.at, self._now))
                self._ask(_Run(arrival, self._now))
                arrival = next(coming, None)
            else:
                self._happen(at)
            self._settle()
            yield from self._ended
            self._ended.clear()

    def _preload(self, models: list[ModelSettings]) -> None:
        """Load what the configuration wants in memory, one after another."""
        for model in models:
            if model.preload:
                ticket = self._background[model.name] = Ticket(model.name, preload=True)
                self._lifecycle.ask(ticket)
                self._settle()
                while model.name in self._background:
                    self._happen(self._next_at())
                    self._settle()
        self.loads = 0

    # --- time ---

    @property
    def _busy(self) -> int:
        return sum(engine.running > 0 for engine in self._engines.values())

    def _next_at(self) -> float:
        busy = self._busy
        times = [self._now + each.next_in(busy) for each in self._engines.values()]
        times += [self._events[0][0]] if self._events else []
        wake_at = self._lifecycle.wake_at
        return max(min([*times, *([] if wake_at is None else [wake_at])]), self._now)

    def _pass_until(self, at: float) -> None:
        busy = self._busy
        for engine in self._engines.values():
            engine.work(at - self._now, busy)
        self._now = at

    def _happen(self, at: float) -> None:
        """Let time pass until something is due, and do it."""
        self._pass_until(at)
        for engine in self._engines.values():
            for then in engine.due():
                then()
        while self._events and self._events[0][0] <= self._now:
            heappop(self._events)[2]()

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        heappush(self._events, (self._now + seconds, next(self._serial), then))

    # --- the pool ---

    def _settle(self) -> None:
        """Do what the life cycle decides, until it has nothing more to say."""
        while effects := self._lifecycle.advance():
            for effect in effects:
                match effect:
                    case Locate(name):
                        self._lifecycle.located(name, self._sizes[name])
                    case Start(name):
                        self.loads += 1
                        size_gb = self._scenario.hardware[name].size_gb
                        seconds = self._scenario.load_s + size_gb / self._scenario.load_gb_per_s
                        self._later(seconds, lambda name=name: self._lifecycle.started(name))  # type: ignore[misc]
                    case Stop(name, _):
                        self.unloads += 1
                        self._lifecycle.stopped(name)
                    case Grant(ticket):
                        self._begin(ticket)
                    case Refuse(ticket, reason):
                        self._refused(ticket, reason.code)

    def _ask(self, run: _Run) -> None:
        """Decide who answers, and wait for it."""
        arrival, contestant = run.arrival, self._contestant
        place = self._places.get(arrival.conversation)
        candidates = [
            candidate(status, self._listed[status.model], self._forecast, place)
            for status in self._lifecycle.snapshots()
            if status.model not in run.tried
        ]
        try:
            decision = contestant.decide(arrival.task, candidates)
        except Undecidable:
            self._ended.append(Outcome(arrival=arrival))
            return
        run.model = decision.model
        assessed = next(each for each in decision.candidates if each.model == run.model)
        chosen = next(each for each in candidates if each.model == run.model)
        run.predicted_s = assessed.predicted_seconds.total
        run.unread = max(arrival.task.prompt_tokens - chosen.cached_tokens, 1)
        if decision.loads is not None and decision.loads not in self._background:
            ticket = self._background[decision.loads] = Ticket(decision.loads)
            self._lifecycle.ask(ticket)
        ticket = Ticket(run.model)
        self._runs[ticket] = run
        self._lifecycle.ask(ticket)

    def _refused(self, ticket: Ticket, code: str) -> None:
        run = self._runs.pop(ticket, None)
        if run is None:
            self._background.pop(ticket.model, None)
            return
        run.tried = (*run.tried, run.model)
        left = len(self._engines) - len(run.tried)
        may = code in CLAUSES and left and len(run.tried) <= self._contestant.policy.fallbacks
        if may:
            self._ask(run)
        else:
            self._ended.append(Outcome(arrival=run.arrival))

    def _begin(self, ticket: Ticket) -> None:
        if ticket not in self._runs:  # it was to be in memory, and is
            self._background.pop(ticket.model, None)
            self._lifecycle.leave(ticket)
            return
        run, engine = self._runs[ticket], self._engines[ticket.model]
        run.granted_at = self._now
        run.others = engine.running
        engine.running += 1
        self._note_place(run)
        speed = engine.hardware.tokens_per_s
        reading = run.unread / (speed * engine.hardware.prefill)

        def first() -> None:
            run.first_at = self._now
            self._forecast.read(run.model, run.unread, self._now - run.granted_at)

        engine.after(reading + 1 / speed, first)
        engine.after(reading + run.arrival.output_tokens / speed, lambda: self._end(ticket))

    def _note_place(self, run: _Run) -> None:
        arrival = run.arrival
        if arrival.is_last:
            self._places.pop(arrival.conversation, None)
            return
        loads = next(s.loads for s in self._lifecycle.snapshots() if s.model == run.model)
        self._places[arrival.conversation] = Place(run.model, arrival.task.prompt_tokens, loads)

    def _end(self, ticket: Ticket) -> None:
        run = self._runs.pop(ticket)
        self._engines[run.model].running -= 1
        self._lifecycle.leave(ticket)
        came_at, arrival = run.came_at, run.arrival
        tokens = arrival.output_tokens - 1
        self._forecast.wrote(run.model, run.others, tokens, self._now - run.first_at)
        self._ended.append(
            Outcome(
                arrival=arrival,
                model=run.model,
                waited_s=run.granted_at - came_at,
                first_s=run.first_at - came_at,
                whole_s=self._now - came_at,
                predicted_s=run.predicted_s,
                fit=self._judge.fit(run.model, arrival.task),
            )
        )


def _listed(model: ModelSettings) -> Listed:
    """Return what is known of a model without its files."""
    chosen = model.capabilities
    return Listed(
        settings=model,
        max_model_len=model.max_model_len or 4096,
        vision=bool(chosen.vision),
        tools=model.tool_parser is not None if chosen.tools is None else chosen.tools,
        is_here=True,
    )


def _measure(forecast: Forecast, hardware: Mapping[str, Hardware], models: Iterable[str]) -> None:
    """Tell what is known after a while of use."""
    for name in models:
        speed = hardware[name].tokens_per_s
        forecast.wrote(name, 0, _WARM_UP_TOKENS, _WARM_UP_TOKENS / speed)
        reading = _WARM_UP_TOKENS / (speed * hardware[name].prefill)
        forecast.read(name, _WARM_UP_TOKENS, reading)
