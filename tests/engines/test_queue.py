"""Who waits is served in turn, and who leaves costs nothing."""

from engines.queue import Queue
from engines.words import Ticket


def test_who_left_unserved_has_not_used_the_turn_of_its_group():
    queue = Queue()
    kept = Ticket("m", group="a")
    queue.add(kept)
    for _ in range(5):
        gone = Ticket("m", group="b")
        queue.add(gone)
        queue.remove(gone)
    late, later = Ticket("m", group="b"), Ticket("m", group="a")
    queue.add(late)
    queue.add(later)

    assert [queue.take() for _ in range(3)] == [kept, late, later]


def test_groups_that_left_are_forgotten():
    queue = Queue()
    for number in range(10_000):
        ticket = Ticket("m", group=str(number))
        queue.add(ticket)
        queue.remove(ticket)

    assert len(queue) == 0
    assert len(queue._next_tags) < 10
