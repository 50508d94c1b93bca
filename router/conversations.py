"""Which model has a conversation, and how much of it in its cache."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct, structs

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


class Session(Struct, frozen=True):
    """Whose a conversation is, and what they call it; two people's are never one.

    Attributes
    ----------
    owner
        Anything that tells one client or user from another.
    name
        "" for a conversation that is known by how it begins.
    """

    owner: str = ""
    name: str = ""


class Conversations:
    """Where conversations are: by what the client calls them, else by how they begin.

    A chat app sends the whole conversation each time, so the next request begins as the last one
    did. Only hashes are kept, and they mean nothing outside this process.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[int, Place] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are kept."""
        return len(self._places)

    def find(self, session: Session, turns: Sequence[Turn]) -> Place | None:
        """Return where a conversation is, or None for one that was not here before.

        Looking is not remembered; whoever goes on with a conversation notes it.
        What it is called says which model has it; only how it begins says what that model has
        read of it, for the name may stay while the text changes.
        """
        begun = self._known(_keys(session.owner, turns)[-2::-1][:_TURNS_MAX])
        named = self._known([_key(session)]) if session.name else None
        if named is None or (begun is not None and begun.model == named.model):
            return begun
        return structs.replace(named, tokens=0)

    def note(self, session: Session, turns: Sequence[Turn], place: Place) -> None:
        """Remember where a conversation is now."""
        keys = [_keys(session.owner, turns)[-1]] + [_key(session)] * bool(session.name)
        for key in keys:
            self._places[key] = place
            self._places.move_to_end(key)
        while len(self._places) > CONVERSATIONS_MAX:
            self._places.popitem(last=False)

    def _known(self, keys: Sequence[int]) -> Place | None:
        """Return the place of the first key that has one."""
        for key in keys:
            if place := self._places.get(key):
                return place
        return None


def _key(session: Session) -> int:
    return hash((session.owner, session.name))


def _keys(owner: str, turns: Sequence[Turn]) -> list[int]:
    """Return a hash of each beginning of a conversation, shortest first."""
    return list(
        itertools.accumulate(
            turns,
            lambda key, turn: hash((key, turn.role, turn.text, turn.images)),
            initial=hash(owner),
        )
    )[1:]
