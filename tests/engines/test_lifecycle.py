"""The life cycle on a fake clock: who leaves for whom, who is served next, what is promised."""

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from config import ModelSettings, PoolSettings
from engines.lifecycle import STARTS_AT_A_TIME, Lifecycle
from engines.memory import GIB
from engines.words import Grant, Locate, Refuse, Start, Stop, Ticket

LOAD_S = 4.0


class World:
    """A life cycle, a clock that the test turns, and the engines' side of the story.

    Engines do what they are told at once, unless their work is held back by `slow`.
    """

    def __init__(self, names="ab", budget_gib=1, footprint_gib=1, models=None, **pool):
        models = models or [ModelSettings(name=name, source="x") for name in names]
        self.now = 1000.0
        self.available = 1000 * GIB
        self.footprint = footprint_gib * GIB
        self.machine = Lifecycle(
            models,
            PoolSettings(**pool),
            budget_gib * GIB,
            lambda: self.now,
            lambda: self.available,
        )
        self.slow = set()  # kinds of effect that are not answered by themselves
        self.done = []  # effects but grants and refusals, as text
        self.granted, self.refused = [], {}

    def ask(self, model, **more):
        ticket = Ticket(model, **more)
        self.machine.ask(ticket)
        self.settle()
        return ticket

    def leave(self, ticket):
        self.machine.leave(ticket)
        self.settle()

    def run(self, model):
        """Ask and leave at once: one short request."""
        self.leave(self.ask(model))

    def wait(self, seconds):
        """Let time pass, with every alarm on the way."""
        end = self.now + seconds
        while self.machine.wake_at is not None and self.machine.wake_at <= end:
            self.now = max(self.now, self.machine.wake_at)
            self.settle()
        self.now = end
        self.settle()

    def settle(self):
        while effects := self.machine.advance():
            for effect in effects:
                self.answer(effect)

    def answer(self, effect):
        match effect:
            case Grant(ticket):
                self.granted.append(ticket)
            case Refuse(ticket, reason):
                self.refused[ticket] = reason
            case Locate(model):
                self.machine.located(model, self.footprint)
            case Start(model):
                self.done.append(f"start {model}")
                if "start" not in self.slow:
                    self.now += LOAD_S
                    self.machine.started(model)
            case Stop(model, why):
                self.done.append(f"stop {model}: {why}")
                if "stop" not in self.slow:
                    self.machine.stopped(model)

    def states(self):
        return {each.model: each.state for each in self.machine.snapshots()}


def test_an_idle_model_that_nobody_has_used_leaves_at_once():
    world = World()
    world.leave(world.ask("a", preload=True))
    world.machine._models["a"].served = 0

    world.ask("b")

    assert world.done == ["start a", "stop a: to make room for b", "start b"]


def test_a_model_that_was_just_used_stays_as_long_as_its_load_took():
    world = World()
    world.run("a")

    ticket = world.ask("b")
    assert world.states() == {"a": "ready", "b": "loading"}
    world.wait(LOAD_S - 0.1)
    assert ticket not in world.granted
    world.wait(0.1)

    assert ticket in world.granted
    assert world.done[1:] == ["stop a: to make room for b", "start b"]


def test_the_dwell_can_be_set():
    world = World(min_dwell_s=0)
    world.run("a")

    assert world.ask("b") in world.granted


def test_a_model_with_a_running_request_is_not_stopped_and_takes_new_ones_until_the_turn():
    world = World(yield_after_s=10)
    running = world.ask("a")
    waiting = world.ask("b")

    world.wait(9)
    assert world.ask("a") in world.granted  # it is still a's turn
    world.wait(1)
    late = world.ask("a")
    assert late not in world.granted  # now it is b's
    assert world.states()["a"] == "draining"
    assert "stop a" not in " ".join(world.done)

    for ticket in [running, *world.granted]:
        world.leave(ticket)
    assert waiting in world.granted


def test_two_models_that_do_not_fit_together_alternate_in_batches():
    """A request for each, every second, each takes two seconds: 300 s without an idle moment."""
    world = World(yield_after_s=10)
    live, ends = [], {}
    for _ in range(300):
        live += [world.ask(model) for model in "ab"]
        for ticket in list(live):
            if ticket in world.granted and world.now >= ends.setdefault(ticket, world.now + 2):
                world.leave(ticket)
                live.remove(ticket)
        world.wait(1)

    turns = [line for line in world.done if line.startswith("start")]
    assert turns[:4] == ["start a", "start b", "start a", "start b"]
    assert len(turns) * LOAD_S <= 0.5 * (world.now - 1000)  # not more loading than serving
    waits = [ticket.granted_at - ticket.asked_at for ticket in world.granted]
    assert max(waits) < 30
    assert len(world.granted) > 500


def test_the_turn_ends_when_whoever_waited_has_left():
    world = World(yield_after_s=0, min_dwell_s=0)
    world.ask("a")
    waiting = world.ask("b")
    assert world.states()["a"] == "draining"

    world.leave(waiting)

    assert world.states() == {"a": "ready", "b": "cold"}
    assert world.ask("a") in world.granted


def test_the_one_that_costs_least_to_bring_back_leaves():
    """Both are idle; b was used last, but a is wanted often."""
    world = World("abc", budget_gib=2, min_dwell_s=0)
    for _ in range(20):
        world.run("a")
    world.run("b")

    world.ask("c")

    assert world.states() == {"a": "ready", "b": "cold", "c": "ready"}


def test_an_idle_model_leaves_before_a_busy_one_even_if_it_is_dearer():
    world = World("abc", budget_gib=2, min_dwell_s=0, yield_after_s=0)
    for _ in range(20):
        world.run("b")
    world.ask("a")

    world.ask("c")

    assert world.states() == {"a": "ready", "b": "cold", "c": "ready"}


def test_no_more_leave_than_must():
    """One of two GiB is enough for c; the small one that was chosen first may stay."""
    models = [ModelSettings(name=name, source="x") for name in "abc"]
    world = World(models=models, budget_gib=3, min_dwell_s=0)
    sizes = {"a": 1, "b": 2, "c": 2}
    original = world.machine.located
    world.machine.located = lambda model, _: original(model, sizes[model] * GIB)
    world.run("a")
    world.wait(1)
    world.run("b")

    world.ask("c")

    assert world.states() == {"a": "ready", "b": "cold", "c": "ready"}


def test_a_preload_makes_nobody_leave():
    world = World(min_dwell_s=0)
    world.run("a")

    ticket = world.ask("b", preload=True)

    assert world.refused[ticket].code == "no_memory"
    assert world.states() == {"a": "ready", "b": "cold"}


def test_the_first_that_waits_for_memory_gets_it_and_a_smaller_one_does_not_slip_in():
    world = World("abc", budget_gib=2, yield_after_s=1000)
    sizes = {"a": 1, "b": 2, "c": 1}
    original = world.machine.located
    world.machine.located = lambda model, _: original(model, sizes[model] * GIB)
    running = world.ask("a")
    large = world.ask("b")
    small = world.ask("c")  # it would fit beside a, but then b would wait for both

    assert small not in world.granted

    world.wait(LOAD_S)
    world.leave(running)
    assert large in world.granted


def test_one_that_fits_beside_the_first_does_not_wait_for_it():
    world = World("abc", budget_gib=3, yield_after_s=1000)
    sizes = {"a": 2, "b": 2, "c": 1}
    original = world.machine.located
    world.machine.located = lambda model, _: original(model, sizes[model] * GIB)
    world.ask("a")
    world.ask("b")

    assert world.ask("c") in world.granted


def test_no_more_requests_run_at_a_time_than_max_num_seqs():
    world = World(models=[ModelSettings(name="a", source="x", max_num_seqs=2)])
    tickets = [world.ask("a") for _ in range(3)]

    assert world.granted == tickets[:2]
    world.leave(tickets[0])

    assert world.granted == tickets


def serve_one_by_one(world, tickets):
    """Return the order in which tickets are served on a model with one place."""
    order = []
    while len(order) < len(tickets):
        ticket = world.granted[len(order)]
        order.append(ticket)
        world.leave(ticket)
    return order


@pytest.fixture
def single():
    return World(models=[ModelSettings(name="a", source="x", max_num_seqs=1)])


def test_users_take_turns_however_much_one_of_them_sends(single):
    many = [single.ask("a", group="ana") for _ in range(4)]
    few = [single.ask("a", group="bea") for _ in range(2)]

    order = serve_one_by_one(single, many + few)

    assert [ticket.group for ticket in order] == ["ana", "bea", "ana", "bea", "ana", "ana"]


def test_a_newcomer_gets_no_credit_for_the_time_it_was_away(single):
    for _ in range(5):
        single.leave(single.ask("a", group="ana"))
    first = single.ask("a", group="ana")
    ana = [single.ask("a", group="ana") for _ in range(2)]
    bea = [single.ask("a", group="bea") for _ in range(3)]
    single.granted.clear()
    single.granted.append(first)

    order = serve_one_by_one(single, [first, *ana, *bea])

    assert [ticket.group for ticket in order] == ["ana", "bea", "ana", "bea", "ana", "bea"]


def test_interactive_goes_before_batch(single):
    first = single.ask("a", priority=10)
    batch = single.ask("a", priority=10)
    interactive = single.ask("a", priority=0)

    assert serve_one_by_one(single, [first, batch, interactive]) == [first, interactive, batch]


def test_a_second_load_waits_for_the_first_and_is_timed_from_its_own_start():
    world = World(budget_gib=2, load_wait_s=100)
    world.slow.add("start")
    world.ask("a")
    second = world.ask("b")
    assert world.done == ["start a"]
    assert world.machine.waits_for(second) == "waiting for another load before b"
    world.now += 30

    world.machine.started("a")
    world.settle()
    assert world.done == ["start a", "start b"]
    assert world.machine.waits_for(second) == "loading b"
    world.now += 3
    world.machine.started("b")
    world.settle()

    assert second in world.granted
    assert [each.load_s for each in world.machine.snapshots()] == [30, 3]


@pytest.mark.parametrize("event", ["failed", "cancelled"])
def test_a_load_that_ends_without_an_engine_lets_the_next_one_start(event):
    world = World(budget_gib=2)
    world.slow.add("start")
    world.ask("a")
    world.ask("b")

    getattr(world.machine, event)("a", *["no"] * (event == "failed"))
    world.settle()

    assert "start b" in world.done


def test_nobody_is_made_to_leave_for_a_load_that_only_waits_for_its_turn():
    world = World("abc", budget_gib=3, min_dwell_s=0)
    world.run("c")
    world.slow.add("start")
    world.ask("a")
    world.ask("b")

    assert world.states() == {"a": "loading", "b": "loading", "c": "ready"}
    assert world.done == ["start c", "start a"]


def test_the_memory_of_a_load_that_waits_for_its_turn_is_not_given_to_a_later_one():
    world = World("abc", budget_gib=2)
    world.slow.add("start")
    world.ask("a")
    world.ask("b")
    later = world.ask("c")

    assert world.machine.waits_for(later) == "waiting for memory for c"
    world.machine.started("a")
    world.settle()

    assert world.done[:2] == ["start a", "start b"]


def test_retry_after_is_the_sum_of_the_loads_that_come_first():
    """One of four seconds that has run for one, one of four, and its own, of an unknown size."""
    world = World("abc", budget_gib=3, load_wait_s=1000)
    for name in "ab":
        world.run(name)
        world.machine.unload(name)
        world.settle()
    world.slow.add("start")
    world.ask("a")
    world.ask("b")
    world.now += 1

    ticket = world.ask("c", deadline=world.now)
    assert world.refused[ticket].retry_after_s == pytest.approx(3 + 4 + 2)
    world.now += 100  # the first takes longer than last time: nobody knows how long
    ticket = world.ask("c", deadline=world.now)
    assert world.refused[ticket].retry_after_s == pytest.approx(0 + 4 + 2)


def test_a_full_queue_of_a_cold_model_counts_the_loads_of_others():
    world = World(budget_gib=2, queue_total_max=1)
    world.slow.add("start")
    world.ask("a")

    ticket = world.ask("b")

    assert world.refused[ticket].code == "queue_full"
    assert world.refused[ticket].retry_after_s == pytest.approx(3 + 2)


def test_a_preload_waits_as_long_as_its_load_takes_whatever_load_wait_s_and_the_queue():
    world = World("a", load_wait_s=1, queue_max=1)
    world.slow.add("start")
    request = world.ask("a")
    preload = world.ask("a", preload=True)

    world.wait(100)
    assert world.refused[request].code == "load_timeout"
    world.machine.started("a")
    world.settle()

    assert preload in world.granted


def test_a_preload_that_came_first_does_not_shorten_the_turn_of_a_busy_model():
    world = World(yield_after_s=10, min_dwell_s=0)
    world.slow.add("start")
    preload = world.ask("a", preload=True)
    world.machine.started("a")
    world.slow.clear()
    world.settle()
    world.leave(preload)
    world.ask("a")
    world.machine.ask(Ticket("b", preload=True))
    world.now += 9
    world.ask("b")

    world.wait(5)

    assert world.states()["a"] == "ready"


def test_a_failed_model_says_for_how_long_it_is_not_tried_again():
    world = World("a")
    world.slow.add("start")
    world.ask("a")
    world.machine.failed("a", "no")

    assert world.machine.snapshots()[0].retry_in_s == 1
    world.now += 0.75
    assert world.machine.snapshots()[0].retry_in_s == 0.25
    world.now += 0.75
    assert world.machine.snapshots()[0].retry_in_s == 0
    assert world.states() == {"a": "failed"}  # until somebody asks for it


def test_waiting_ends_at_the_deadline(single):
    single.ask("a")
    hurried = single.ask("a", deadline=single.now + 5)

    single.wait(4.9)
    assert hurried not in single.refused
    single.wait(0.1)

    assert single.refused[hurried].code == "deadline_exceeded"


def test_waiting_for_a_place_ends_after_load_wait_s():
    models = [ModelSettings(name="a", source="x", max_num_seqs=1)]
    world = World(models=models, load_wait_s=20)
    world.ask("a")
    waiting = world.ask("a")

    world.wait(20)

    assert world.refused[waiting].code == "queue_timeout"
    assert world.refused[waiting].message == "`a` had no free place within 20 s."


def test_a_wait_for_a_load_is_estimated_from_the_last_one():
    world = World("a", load_wait_s=1)
    world.run("a")
    world.machine.unload("a")
    world.settle()
    world.slow.add("start")

    ticket = world.ask("a")
    world.wait(1)

    assert world.refused[ticket].code == "load_timeout"
    assert world.refused[ticket].retry_after_s == pytest.approx(LOAD_S - 1)


def test_a_wait_for_a_place_is_estimated_from_the_first_requests_as_soon_as_they_are_over():
    models = [ModelSettings(name="a", source="x", max_num_seqs=2)]
    world = World(models=models, queue_max=5)
    first = world.ask("a")
    world.now += 4
    world.leave(first)
    held = [world.ask("a") for _ in range(5)]

    assert world.refused[world.ask("a")].retry_after_s == pytest.approx(4 * 3 / 2)
    world.now += 2
    world.leave(held[0])  # one of the three that wait runs in its place
    held.append(world.ask("a"))
    assert world.refused[world.ask("a")].retry_after_s == pytest.approx((4 + 2) / 2 * 3 / 2)


def test_all_models_together_hold_queue_total_max_requests():
    world = World(budget_gib=2, queue_total_max=2)
    world.ask("a")
    world.ask("b")

    refused = world.ask("a")

    assert world.refused[refused].code == "queue_full"
    assert "queue_total_max" in world.refused[refused].message


def test_one_that_leaves_the_queue_makes_room_for_another(single):
    single.machine._settings = PoolSettings(queue_max=2)
    single.ask("a")
    waiting = single.ask("a")
    single.leave(waiting)
    single.leave(waiting)  # idempotent

    assert single.ask("a") not in single.refused


def test_a_load_that_nobody_wants_any_more_is_given_up_before_it_takes_memory():
    world = World(yield_after_s=1000)
    world.ask("a")
    waiting = world.ask("b")

    world.leave(waiting)

    assert world.states() == {"a": "ready", "b": "cold"}
    assert world.machine.wake_at is None


def test_the_first_death_is_mended_at_once_and_the_following_with_growing_pauses():
    world = World("a")
    pauses = []
    for _ in range(4):
        ticket = world.ask("a")
        if ticket in world.refused:
            pauses.append(world.refused[ticket].retry_after_s)
            world.wait(pauses[-1])
            ticket = world.ask("a")
        world.machine.died("a", "its process ended")
        world.leave(ticket)
    assert world.done.count("stop a: its process ended") == 4
    assert pauses == [1, 2]

    world.wait(4)
    world.run("a")  # it answers: the next death is the first again
    world.machine.died("a", "its process ended")
    world.settle()
    assert world.ask("a") in world.granted


def test_a_model_that_died_is_not_loaded_before_what_is_left_of_it_is_gone():
    world = World("a")
    world.slow.add("stop")
    world.run("a")
    world.machine.died("a", "its process ended")
    world.settle()

    ticket = world.ask("a")
    assert ticket not in world.granted
    world.machine.stopped("a")
    world.settle()

    assert ticket in world.granted


def test_memory_that_others_on_the_machine_have_taken_is_not_promised():
    world = World(budget_gib=10)
    world.available = GIB

    ticket = world.ask("a")

    assert world.refused[ticket].code == "no_memory"


def test_an_unload_waits_for_running_requests_and_a_later_request_loads_anew():
    world = World("a")
    ticket = world.ask("a")
    world.machine.unload("a")
    world.settle()
    assert world.states() == {"a": "draining"}
    late = world.ask("a")

    world.leave(ticket)

    assert world.done == ["start a", "stop a: asked for", "start a"]
    assert late in world.granted


def test_a_start_that_was_cancelled_is_not_unloaded_the_next_time():
    world = World("a")
    world.slow.add("start")
    ticket = world.ask("a")
    world.machine.unload("a")
    world.leave(ticket)
    world.machine.cancelled("a")
    world.slow.clear()

    late = world.ask("a")

    assert late in world.granted
    assert not [each for each in world.done if each.startswith("stop")]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (lambda world: world.slow.add("start"), "loading a"),
        (lambda world: world.ask("b"), "waiting for memory for a"),
        (lambda world: [world.ask("a") for _ in range(10)], "queued for a, 2 ahead"),
    ],
)
def test_whoever_waits_can_be_told_for_what(before, said):
    world = World()
    before(world)

    ticket = world.ask("a")

    assert world.machine.waits_for(ticket) == said


class Stateful(RuleBasedStateMachine):
    """Anything may happen at any time."""

    tickets = Bundle("tickets")
    names = "abc"

    def __init__(self):
        super().__init__()
        models = [
            ModelSettings(name="a", source="x", max_num_seqs=2, idle_unload_s=30),
            ModelSettings(name="b", source="x", max_num_seqs=1),
            ModelSettings(name="c", source="x", pin=True),
        ]
        self.now = 0.0
        self.available = 100 * GIB
        self.machine = Lifecycle(
            models,
            PoolSettings(queue_max=4, queue_total_max=8, load_wait_s=60, yield_after_s=5),
            3 * GIB,
            lambda: self.now,
            lambda: self.available,
        )
        self.work = {}  # what each model's engine has been told and not yet answered
        self.alive = set()
        self.open, self.running = set(), set()

    def act(self):
        for effect in self.machine.advance():
            match effect:
                case Grant(ticket):
                    assert ticket in self.open
                    assert ticket.model in self.alive, "granted without an engine"
                    self.running.add(ticket)
                case Refuse(ticket, _):
                    assert ticket in self.open
                    assert ticket not in self.running, "refused while it ran"
                    self.open.discard(ticket)
                case Locate(name) | Start(name):
                    assert name not in self.work, "two things at a time"
                    assert name not in self.alive, "loaded while it was loaded"
                    self.work[name] = effect
                case Stop(name, why):
                    assert name not in self.work, "two things at a time"
                    assert "make room" not in why or name != "c", "a pinned model had to leave"
                    busy = [ticket for ticket in self.running if ticket.model == name]
                    assert not busy or self.machine._models[name].phase == "failed"
                    self.work[name] = effect

    @rule(
        target=tickets,
        name=st.sampled_from(names),
        group=st.sampled_from("xy"),
        priority=st.integers(-1, 1),
        deadline=st.none() | st.floats(0, 30),
        preload=st.booleans(),
    )
    def ask(self, name, group, priority, deadline, preload):
        ticket = Ticket(
            name,
            group=group,
            priority=priority,
            deadline=None if deadline is None else self.now + deadline,
            preload=preload,
        )
        self.open.add(ticket)
        self.machine.ask(ticket)
        self.act()
        return ticket

    @rule(ticket=tickets)
    def leave(self, ticket):
        self.open.discard(ticket)
        self.running.discard(ticket)
        self.machine.leave(ticket)
        self.act()

    @precondition(lambda self: self.work)
    @rule(data=st.data(), works=st.booleans(), gib=st.sampled_from([0.5, 1, 1.5, 2.5, 4]))
    def answer(self, data, works, gib):
        name = data.draw(st.sampled_from(sorted(self.work)))
        match self.work.pop(name):
            case Stop():
                self.alive.discard(name)
                self.machine.stopped(name)
            case _ if not works:
                self.machine.failed(name, "no")
            case Locate():
                self.machine.located(name, int(gib * GIB))
            case Start():
                self.alive.add(name)
                self.machine.started(name)
        self.act()

    @precondition(lambda self: self.alive - set(self.work))
    @rule(data=st.data())
    def die(self, data):
        name = data.draw(st.sampled_from(sorted(self.alive - set(self.work))))
        self.machine.died(name, "killed")
        self.act()

    @rule(name=st.sampled_from(names))
    def unload(self, name):
        self.machine.unload(name)
        self.act()

    @rule(seconds=st.floats(0, 40), gib=st.sampled_from([1, 2, 100]))
    def time_passes(self, seconds, gib):
        self.available = gib * GIB
        end = self.now + seconds
        while self.machine.wake_at is not None and self.machine.wake_at <= end:
            assert self.machine.wake_at > self.now or not self.act(), "an alarm that rings forever"
            self.now = max(self.now, self.machine.wake_at)
            before = self.machine.wake_at
            self.act()
            assert self.machine.wake_at != before, "an alarm that rings forever"
        self.now = end
        self.act()

    @invariant()
    def never_over_budget(self):
        reserved = sum(each.reserved_bytes for each in self.machine._models.values())
        assert reserved <= 3 * GIB

    @invariant()
    def bounds_hold(self):
        requests = [ticket.model for ticket in self.open if not ticket.preload]
        assert len(requests) <= 8
        assert all(requests.count(name) <= 4 for name in self.names)
        assert len([ticket for ticket in self.running if ticket.model == "b"]) <= 1

    @invariant()
    def nobody_is_counted_who_is_not_there(self):
        assert sum(each.held for each in self.machine.snapshots()) == len(self.open)

    @invariant()
    def engines_start_one_at_a_time(self):
        assert sum(isinstance(effect, Start) for effect in self.work.values()) <= STARTS_AT_A_TIME

    def teardown(self):
        """Everybody who still waits is served or refused, requests within `load_wait_s`."""
        while self.work:
            name, effect = self.work.popitem()
            if isinstance(effect, Stop):
                self.alive.discard(name)
                self.machine.stopped(name)
            else:
                self.machine.failed(name, "no")
            self.act()
        end = self.now + 61
        for _ in range(200):
            self.act()
            happened = bool(self.work or self.running)
            for name, effect in list(self.work.items()):
                del self.work[name]
                if isinstance(effect, Stop):
                    self.alive.discard(name)
                    self.machine.stopped(name)
                elif isinstance(effect, Locate):
                    self.machine.located(name, GIB)
                else:
                    self.alive.add(name)
                    self.machine.started(name)
            for ticket in list(self.running):
                self.running.discard(ticket)
                self.open.discard(ticket)
                self.machine.leave(ticket)
            wake = self.machine.wake_at
            if not happened:
                if wake is None or wake > end:
                    break
                self.now = max(self.now, wake)
        self.now = end
        self.act()
        waiting = self.open - self.running
        assert not waiting, f"forgotten: {waiting}"


TestStateful = Stateful.TestCase
TestStateful.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
