"""The order in which requests for one model are served."""

from collections.abc import Iterator
from itertools import count

from engines.words import Ticket


class Queue:
    """Tickets that wait: by priority, then groups in turn, then by the order of asking.

    Groups take turns by start-time fair queueing: each ticket gets a start tag behind the last one
    of its group, but never behind the tag that was served last, so that a group has no credit for
    the time it was away (Goyal, Vin and Cheng, 1996, with every request of the same length).
    """

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []
        self._served_tag = 0.0
        self._next_tags: dict[str, float] = {}  # by group
        self._serial = count()

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Let the ticket wait behind those of its group and beside those of others."""
        tag = max(self._served_tag, self._next_tags.get(ticket.group, 0.0))
        self._next_tags[ticket.group] = tag + 1
        ticket.rank = (ticket.priority, tag, next(self._serial))
        self._tickets.append(ticket)

    def take(self) -> Ticket:
        """Return the next ticket, which waits no longer. There must be one."""
        ticket = min(self._tickets, key=lambda each: each.rank)
        self._tickets.remove(ticket)
        self._served_tag = max(self._served_tag, ticket.rank[1])
        self._forget_groups()
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Let the ticket leave without being served. It must be there."""
        self._tickets.remove(ticket)
        if self._next_tags.get(ticket.group) == ticket.rank[1] + 1:  # its turn was not used
            self._next_tags[ticket.group] = ticket.rank[1]
        self._forget_groups()

    def _forget_groups(self) -> None:
        """Keep no groups but those that are ahead of others, as soon as there are many."""
        if len(self._next_tags) > 2 * len(self._tickets):
            self._next_tags = {
                group: tag for group, tag in self._next_tags.items() if tag > self._served_tag
            }

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many are served before it, if nobody comes or leaves."""
        return sum(other.rank < ticket.rank for other in self._tickets)
