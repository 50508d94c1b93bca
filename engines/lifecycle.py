"""Who is in memory and who is served next: a state machine without I/O and without a clock.

The life of a model: `cold -> loading -> ready -> draining -> cold`, and `failed` with a reason.
Events are told by methods that only note what happened; `advance` then returns everything that is
to be done about it, until nothing is left to do. What is done takes time and comes back as an
event. Nothing here awaits, so nothing can come between.

Promises (held by `tests/engines/test_lifecycle.py` over random sequences of events):

- reservations never exceed the budget;
- a model with a running request is never stopped, a pinned one never to make room;
- at most one load of a model is under way, and at most `STARTS_AT_A_TIME` engines are starting;
- whoever waits is served or refused: no ticket is forgotten, whatever fails.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from config import ModelSettings, PoolSettings
from engines.memory import GIB, RESERVE_BYTES
from engines.queue import Queue
from engines.words import (
    Effect,
    Grant,
    Locate,
    Refuse,
    Snapshot,
    Start,
    State,
    Stop,
    Ticket,
    Unavailable,
)

STARTS_AT_A_TIME = 1
"""How many engines start at a time; further loads wait here, where they are not yet timed.

A start reads weights and computes with all cores, so two at a time take as long as one after the
other; and vLLM reads the process environment while it starts an engine (`engines.vllm`).
"""

BACK_OFF_MAX_S = 60.0
"""Longest pause between two tries of a model that fails; the first is 1 s, each doubles."""

RATE_S = 300.0
"""Time over which a model's arrivals are forgotten (to 1/e)."""

SOON_S = 60.0
"""How far ahead an eviction looks: a model that is wanted later than this costs nothing now."""


LOOK_S = 1.0
"""How old a look at the machine's memory may be for an estimate: one takes 0.4 ms."""


class _Model:
    """One model's place in memory, and its queue."""

    def __init__(self, settings: ModelSettings, footprint_bytes: int) -> None:
        self.settings = settings
        self.name = settings.name
        self.phase: State = "cold"
        # While loading: it looks for its files, waits for memory, then for its turn, and starts.
        self.step: Literal["locating", "room", "turn", "starting"] = "locating"
        self.since = 0.0  # the phase began
        self.began = 0.0  # the last start began
        self.stopping = False  # the engine has been told to stop, and has not yet
        self.closing = ""  # why it takes no new requests and stops when the last is over
        self.makes_room_for: _Model | None = None  # the reason for closing, if this is it
        self.present = False  # an engine was started and has not been stopped
        self.waiting = Queue()
        self.running: set[Ticket] = set()
        self.footprint_bytes = footprint_bytes
        self.reserved_bytes = 0
        self.failure: str | None = None
        self.failures = 0  # in a row
        self.retry_at = 0.0
        self.served = 0  # since it is ready
        self.idle_since = 0.0
        self.load_s: float | None = None  # what the last load took
        self.loads = 0
        self.service_s = 5.0  # a running mean of what requests take,
        self.measured = 0  # over so many of them
        self.rate = 0.0  # arrivals per second, as of `rate_at`
        self.rate_at = 0.0

    def become(self, phase: State, now: float) -> None:
        self.phase, self.since = phase, now

    def fail(self, reason: str, now: float, pause_s: float) -> None:
        self.become("failed", now)
        self.failure = reason
        self.reopen()
        self.retry_at = now + pause_s
        self.failures += 1

    def close(self, why: str, room_for: "_Model | None" = None) -> None:
        self.closing, self.makes_room_for = why, room_for

    def reopen(self) -> None:
        self.closing, self.makes_room_for = "", None

    @property
    def held(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def wants_room(self) -> bool:
        return self.phase == "loading" and self.step in ("room", "turn")

    @property
    def is_starting(self) -> bool:
        return self.phase == "loading" and self.step == "starting"

    @property
    def state(self) -> State:
        return "draining" if self.phase == "ready" and self.closing else self.phase

    def reload_s(self) -> float:
        """Return what loading it again would take, as far as is known."""
        return 2 + self.footprint_bytes / GIB if self.load_s is None else self.load_s

    def still_loads_s(self, now: float) -> float:
        """Return how much longer its load is likely to take, once it is its turn."""
        return max(self.reload_s() - (now - self.began) * self.is_starting, 0.0)

    def arrivals_per_s(self, now: float) -> float:
        return self.rate * math.exp((self.rate_at - now) / RATE_S)

    def note_arrival(self, now: float) -> None:
        self.rate = self.arrivals_per_s(now) + 1 / RATE_S
        self.rate_at = now

    def queue_s(self) -> float:
        """Return how long one more request would wait for a free place, once it is in memory."""
        ahead = self.held + 1 - self.settings.max_num_seqs
        return self.service_s * math.ceil(ahead / self.settings.max_num_seqs) if ahead > 0 else 0.0

    def drain_s(self) -> float:
        """Return how long its running requests are likely to go on."""
        return self.service_s if self.running else 0.0

    def regret(self, now: float) -> float:
        """Return the seconds that evicting it now is expected to cost."""
        return self.reload_s() * (1 - math.exp(-self.arrivals_per_s(now) * SOON_S))


class Lifecycle:
    """All models that share this machine.

    Parameters
    ----------
    models
        In the order of the configuration.
    settings
        Waits and bounds.
    budget_bytes
        What all loaded engines together may take.
    clock
        Returns the time in seconds; only differences count.
    available_bytes
        Returns what the machine has available now.
    footprints
        What models are likely to take, as far as that is known before they are located.
    """

    def __init__(
        self,
        models: list[ModelSettings],
        settings: PoolSettings,
        budget_bytes: int,
        clock: Callable[[], float],
        available_bytes: Callable[[], int],
        footprints: Mapping[str, int] = {},
    ) -> None:
        self._models = {
            model.name: _Model(model, footprints.get(model.name, 0)) for model in models
        }
        self._settings = settings
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._available_bytes = available_bytes
        self._refused: list[Refuse] = []
        self._times: list[float] = []  # when something will be due
        self._shut = False
        self._looked_at, self._overshoot = -math.inf, 0  # memory, for estimates
        self.wake_at: float | None = None
        """When `advance` must be called though nothing happened; None: never."""

    def __repr__(self) -> str:
        models = self._models.values()
        return " | ".join(f"{each.name}: {each.state}, {each.held} held" for each in models)

    def snapshots(self) -> list[Snapshot]:
        """Return every model as it looks now. Touches nothing."""
        now = self._clock()
        return [self._snapshot(each, now) for each in self._models.values()]

    def _snapshot(self, each: _Model, now: float) -> Snapshot:
        leave = self._would_leave(each, now)
        drain_s = max((other.drain_s() for other in leave), default=0.0)
        is_here = each.phase == "ready" and not each.closing
        return Snapshot(
            model=each.name,
            state=each.state,
            waiting=len(each.waiting),
            running=len(each.running),
            footprint_bytes=each.footprint_bytes,
            failure=each.failure,
            retry_in_s=max(each.retry_at - now, 0.0) if each.phase == "failed" else 0.0,
            load_s=each.load_s,
            arrivals_per_min=60 * each.arrivals_per_s(now),
            loads=each.loads,
            load_in_s=0.0 if is_here else drain_s + self._load_in_s(each, now),
            queue_s=each.queue_s(),
            evicts=tuple(other.name for other in leave),
            displacement_s=sum(other.regret(now) for other in leave),
        )

    def waits_for(self, ticket: Ticket) -> str:
        """Return what a waiting ticket waits for, as a clause without the client's text."""
        model = self._models[ticket.model]
        if ticket in model.running:
            return f"{model.name} reads the prompt"
        if model.phase == "ready" and not model.closing:
            return f"queued for {model.name}, {model.waiting.ahead_of(ticket)} ahead"
        if model.phase != "loading":
            return f"waiting for {model.name} to be unloaded"
        if model.step == "room":
            return f"waiting for memory for {model.name}"
        if model.step == "turn":
            return f"waiting for another load before {model.name}"
        return f"loading {model.name}"

    # --- what happened ---

    def ask(self, ticket: Ticket) -> None:
        """Note that somebody wants to use a model."""
        now = self._clock()
        model = self._models[ticket.model]
        ticket.asked_at = now
        model.note_arrival(now)
        if refusal := self._closed_to(model, ticket):
            self._refused.append(Refuse(ticket, refusal))
        else:
            model.waiting.add(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Note that a request is over, or that its client has left the queue. Idempotent."""
        now = self._clock()
        model = self._models[ticket.model]
        if ticket in model.running:
            model.running.remove(ticket)
            model.idle_since = now
            if model.phase == "ready" and ticket.granted_at is not None:
                model.failures = 0  # it answers
                model.measured += 1
                weight = max(0.2, 1 / model.measured)  # a plain mean at first
                model.service_s += weight * (now - ticket.granted_at - model.service_s)
        elif ticket in model.waiting:
            model.waiting.remove(ticket)

    def located(self, name: str, footprint_bytes: int) -> None:
        """Note that the model's files are there, and what it will take when loaded."""
        model = self._models[name]
        model.footprint_bytes = footprint_bytes
        model.step = "room"

    def started(self, name: str) -> None:
        """Note that the engine runs."""
        now = self._clock()
        model = self._models[name]
        model.load_s = now - model.began
        model.loads += 1
        model.become("ready", now)
        model.idle_since = now
        model.served = 0
        model.failure = None
        model.present = True

    def cancelled(self, name: str) -> None:
        """Note that a load was ended from outside."""
        model = self._models[name]
        model.reserved_bytes = 0
        model.become("cold", self._clock())
        model.reopen()

    def failed(self, name: str, reason: str) -> None:
        """Note that the files could not be had, or that the engine did not start."""
        model = self._models[name]
        model.reserved_bytes = 0
        model.fail(reason, self._clock(), min(2.0**model.failures, BACK_OFF_MAX_S))
        self._refuse_waiting(model, self._load_failed(model))

    def died(self, name: str, reason: str) -> None:
        """Note that a running engine broke.

        Its requests leave by themselves, and the next one loads it anew.
        """
        model = self._models[name]
        if model.phase == "ready":
            # Once may be bad luck, so the first restart does not wait.
            pause_s = min(2.0 ** (model.failures - 1), BACK_OFF_MAX_S) if model.failures else 0.0
            model.fail(reason, self._clock(), pause_s)

    def stopped(self, name: str) -> None:
        """Note that the engine is gone and its memory is free."""
        model = self._models[name]
        model.stopping = model.present = False
        model.reserved_bytes = 0
        if model.phase != "failed":
            model.become("cold", self._clock())

    def unload(self, name: str) -> None:
        """Let the model leave memory once its start and its running requests are over.

        Those who wait load it anew.
        """
        model = self._models[name]
        if model.phase == "ready" or model.is_starting:
            model.close("asked for")

    def shut(self) -> None:
        """Refuse everything that waits and everything that comes."""
        self._shut = True
        for model in self._models.values():
            self._refuse_waiting(model, _shutting_down())

    # --- what to do about it ---

    def advance(self) -> list[Effect]:
        """Return what is to be done now, in this order, and set `wake_at`."""
        now = self._clock()
        self._times = []
        effects: list[Effect] = []
        for model in self._models.values():
            self._expire(model, now)
            effects += self._retry_or_load(model, now)
        effects += self._make_room(now)
        for model in self._models.values():
            effects += self._serve(model, now)
        effects += self._refused
        self._refused = []
        self.wake_at = min(self._times, default=None)
        return effects

    def _expire(self, model: _Model, now: float) -> None:
        """Refuse those who have waited long enough."""
        for ticket in list(model.waiting):
            if ticket.deadline is not None and ticket.deadline <= now:
                reason = Unavailable(
                    f"`{model.name}` could not begin before the request's deadline.",
                    "deadline_exceeded",
                    self._wait_s(model, now),
                )
            elif ticket.preload:
                continue
            elif ticket.asked_at + self._settings.load_wait_s <= now:
                reason = self._waited_too_long(model, now)
            else:
                self._times.append(ticket.asked_at + self._settings.load_wait_s)
                if ticket.deadline is not None:
                    self._times.append(ticket.deadline)
                continue
            model.waiting.remove(ticket)
            self._refused.append(Refuse(ticket, reason))

    def _retry_or_load(self, model: _Model, now: float) -> Iterator[Effect]:
        if model.phase == "failed":
            if model.present and not model.stopping:  # it died; what is left of it goes
                model.stopping = True
                yield Stop(model.name, model.failure or "it failed")
            if model.waiting and now < model.retry_at:
                self._refuse_waiting(model, self._load_failed(model))
        if model.wants_room and not model.waiting:  # nobody wants it any more
            model.become("cold", now)
        resting = model.phase in ("cold", "failed") and not model.stopping
        if resting and model.waiting:
            model.become("loading", now)
            model.step = "locating"
            yield Locate(model.name)

    def _make_room(self, now: float) -> Iterator[Effect]:
        """Start those who fit, one by one, first come first; let others leave for the first.

        Idle ones leave at once, busy ones in turn.
        """
        queue = [each for each in self._models.values() if each.wants_room]
        for each in self._models.values():
            if each.makes_room_for is not None and not each.makes_room_for.wants_room:
                each.reopen()  # whoever wanted its place has left
        starting = sum(each.is_starting for each in self._models.values())
        ahead = will_leave = 0
        for model in sorted(queue, key=lambda each: each.since):
            if model.footprint_bytes > self._budget_bytes:
                self._give_up(model, self._never_fits(model), now)
                continue
            missing = self._missing_bytes(model.footprint_bytes)
            leaving = sum(each.reserved_bytes for each in self._leaving())
            fits = missing <= 0 and missing + ahead - leaving - will_leave <= 0
            model.step = "turn" if fits else "room"
            if fits and starting < STARTS_AT_A_TIME:
                starting += 1
                model.reserved_bytes = model.footprint_bytes
                model.step, model.began = "starting", now
                yield Start(model.name)
            elif not fits and ahead == 0:  # only the first may make others leave
                will_leave = self._evict(model, missing, leaving, now)
            if model.wants_room:  # its memory is promised, though not yet reserved
                ahead += model.footprint_bytes

    def _evict(self, model: _Model, missing: int, leaving: int, now: float) -> int:
        """Tell those to leave whose memory `model` needs, or give up when nobody can.

        Returns how many bytes will be freed by those who cannot leave yet.
        """
        victims: list[_Model] = []
        later = 0
        if missing > leaving:
            chosen = self._victims(model, missing - leaving, now)
            if chosen is None:
                if not leaving and not any(each.is_starting for each in self._models.values()):
                    self._give_up(model, self._no_memory(model, missing), now)
                return 0
            victims = chosen
        asked = (ticket.asked_at for ticket in model.waiting if not ticket.preload)
        first_asked_at = min(asked, default=now)
        for victim in victims:
            stays_until = self._dwells_until(victim)
            if victim.held:
                stays_until = max(stays_until, first_asked_at + self._settings.yield_after_s)
            if now < stays_until:
                self._times.append(stays_until)
                later += victim.reserved_bytes
            else:
                victim.close(f"to make room for {model.name}", model)
        return later

    def _victims(self, model: _Model, missing: int, now: float) -> list[_Model] | None:
        """Return the models whose leaving frees enough and costs least; None when none can."""
        if all(ticket.preload for ticket in model.waiting):
            return None
        return self._cheapest(missing, now)

    def _cheapest(self, missing: int, now: float) -> list[_Model] | None:
        chosen: list[_Model] = []
        able = [each for each in self._models.values() if each.phase == "ready"]
        able = [each for each in able if not each.closing and not each.settings.pin]
        # Idle ones first, then by the expected cost of bringing them back.
        able.sort(key=lambda each: (each.held > 0, each.regret(now), each.idle_since))
        freed = 0
        for each in able:
            if freed < missing:
                chosen.append(each)
                freed += each.reserved_bytes
        if freed < missing:
            return None
        for each in reversed(chosen[:-1]):  # one that the last has made unnecessary may stay
            if freed - each.reserved_bytes >= missing:
                chosen.remove(each)
                freed -= each.reserved_bytes
        return chosen

    def _dwells_until(self, model: _Model) -> float:
        """Return until when a model that was wanted stays, so that it serves more than one."""
        if not model.served and not model.waiting:
            return model.since
        chosen = self._settings.min_dwell_s
        return model.since + (model.reload_s() if chosen is None else chosen)

    def _serve(self, model: _Model, now: float) -> Iterator[Effect]:
        if model.phase != "ready":
            return
        while model.waiting and not model.closing:
            if len(model.running) >= model.settings.max_num_seqs:
                break
            ticket = model.waiting.take()
            ticket.granted_at = now
            model.running.add(ticket)
            model.served += 1
            yield Grant(ticket)
        if model.held == 0 and self._is_idle_for_long(model, now):
            model.close(f"idle for {model.settings.idle_unload_s:g} s")
        if model.closing and not model.running:
            model.become("draining", now)
            model.stopping = True
            yield Stop(model.name, model.closing)
            model.reopen()

    def _is_idle_for_long(self, model: _Model, now: float) -> bool:
        seconds = model.settings.idle_unload_s
        if seconds is None or model.settings.pin:
            return False
        if now < model.idle_since + seconds:
            self._times.append(model.idle_since + seconds)
            return False
        return True

    # --- memory ---

    def _leaving(self) -> list[_Model]:
        return [each for each in self._models.values() if each.stopping or each.closing]

    def _missing_bytes(self, need: int) -> int:
        """Return how many bytes must be freed before `need` fits; 0 or less when it fits."""
        models = self._models.values()
        promised = sum(each.reserved_bytes for each in models)
        # What is starting has not taken its memory yet, so the machine still shows it as available.
        coming = sum(each.reserved_bytes for each in models if each.is_starting)
        short = coming + RESERVE_BYTES - self._available_bytes()
        return need + max(promised - self._budget_bytes, short)

    # --- refusals ---

    def _closed_to(self, model: _Model, ticket: Ticket) -> Unavailable | None:
        """Return why a new ticket cannot even wait."""
        if self._shut:
            return _shutting_down()
        if ticket.preload:
            return None
        if model.held >= self._settings.queue_max:
            what = f"`{model.name}` already has {model.held} requests, as many as queue_max allows."
        elif sum(each.held for each in self._models.values()) >= self._settings.queue_total_max:
            what = "The service already has as many requests as queue_total_max allows."
        else:
            return None
        return Unavailable(what, "queue_full", self._wait_s(model, self._clock()))

    def _refuse_waiting(self, model: _Model, reason: Unavailable) -> None:
        for ticket in list(model.waiting):
            model.waiting.remove(ticket)
            self._refused.append(Refuse(ticket, reason))

    def _give_up(self, model: _Model, reason: Unavailable, now: float) -> None:
        """End a load that has not begun; nothing is wrong with the model itself."""
        model.become("cold", now)
        self._refuse_waiting(model, reason)

    def _wait_s(self, model: _Model, now: float) -> float:
        """Return the seconds after which a request for `model` is likely to be served."""
        if model.phase == "ready":
            return model.service_s * max(len(model.waiting), 1) / model.settings.max_num_seqs
        return self._load_in_s(model, now)

    def _load_in_s(self, model: _Model, now: float) -> float:
        """Return the seconds until a model that is not in memory is likely to be."""
        # Loads are begun in the order of asking, one after another, and this may be the last.
        since = model.since if model.phase == "loading" else now
        loads = [each for each in self._models.values() if each.phase == "loading"]
        ahead = [each for each in loads if each.is_starting or each.since <= since]
        return sum(each.still_loads_s(now) for each in {model, *ahead})

    def _would_leave(self, model: _Model, now: float) -> list[_Model]:
        """Return who would have to leave if `model` were asked for now; [] if nobody, or all must.

        What cannot be had at all is refused when it is asked for; this is an estimate.
        """
        if model.phase == "ready" or model.is_starting or not model.footprint_bytes:
            return []
        if now - self._looked_at > LOOK_S:
            self._looked_at, self._overshoot = now, self._missing_bytes(0)
        leaving = sum(each.reserved_bytes for each in self._leaving())
        missing = model.footprint_bytes + self._overshoot - leaving
        return (self._cheapest(missing, now) or []) if missing > 0 else []

    def _waited_too_long(self, model: _Model, now: float) -> Unavailable:
        seconds = self._settings.load_wait_s
        if model.phase == "ready":
            what = f"`{model.name}` had no free place within {seconds:g} s."
            return Unavailable(what, "queue_timeout", self._wait_s(model, now))
        what = f"`{model.name}` is still loading after {seconds:g} s."
        return Unavailable(what, "load_timeout", self._wait_s(model, now))

    def _load_failed(self, model: _Model) -> Unavailable:
        message = f"`{model.name}` could not be loaded: {model.failure}."
        return Unavailable(message, "load_failed", model.retry_at - self._clock())

    def _never_fits(self, model: _Model) -> Unavailable:
        return Unavailable(
            f"`{model.name}` takes {model.footprint_bytes / GIB:.2f} GiB; the memory budget is "
            f"{self._budget_bytes / GIB:.2f} GiB. Raise pool.memory_budget_gb or lower "
            "kv_cache_gb.",
            "no_memory",
            60,
        )

    def _no_memory(self, model: _Model, missing: int) -> Unavailable:
        return Unavailable(
            f"There is no memory for `{model.name}`: {missing / GIB:.2f} GiB are missing and no "
            "other model may be unloaded.",
            "no_memory",
            30,
        )


def _shutting_down() -> Unavailable:
    return Unavailable("The service is shutting down.", "shutting_down", 5)
