"""Which model has a conversation, and how much of it in its cache."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from router.words import Turn

CONVERSATIONS_MAX = 10_000
"""How many are remembered; the ones that were not heard of for longest are forgotten."""

_TURNS_MAX = 64  # how far back the beginning of a conversation is looked for


class Place(Struct, frozen=True):
    """Where a conversation is.

    Attributes
    ----------
    model
        The one that answered last.
    tokens
        How much of it that model has read, in tokens.
    load
        Which load of the model it was; with the next one the cache is empty.
    """

    model: str
    tokens: int
    load: int


class Conversations:
    """Where conversations are: by what the client calls them, else by how they begin.

    A chat app sends the whole conversation each time, so the next request begins as the last one
    did. Only hashes are kept, and they mean nothing outside this process.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[int, Place] = OrderedDict()

    def find(self, name: str, turns: Sequence[Turn]) -> Place | None:
        """Return where a conversation is, or None for one that was not here before.

        Parameters
        ----------
        name
            What the client calls it, or "".
        """
        keys = [hash(name)] if name else _keys(turns)[-2::-1][:_TURNS_MAX]
        for key in keys:
            if place := self._places.get(key):
                self._places.move_to_end(key)
                return place
        return None

    def note(self, name: str, turns: Sequence[Turn], place: Place) -> None:
        """Remember where a conversation is now."""
        key = hash(name) if name else _keys(turns)[-1]
        self._places[key] = place
        self._places.move_to_end(key)
        if len(self._places) > CONVERSATIONS_MAX:
            self._places.popitem(last=False)


def _keys(turns: Sequence[Turn]) -> list[int]:
    """Return a hash of each beginning of a conversation, shortest first."""
    return list(
        itertools.accumulate(turns, lambda key, turn: hash((key, turn.role, turn.text)), initial=0)
    )[1:]
