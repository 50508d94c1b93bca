"""Places in a file, and names that are close to others."""

import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Any

from msgspec import Meta

PlainName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="letters, digits, '.', '_' and '-', at most 64 characters",
    ),
]
"""What a model or a rule may be called."""

KeyPath = tuple[str | int, ...]
Finding = tuple[KeyPath, str]
"""A key, and what is wrong with its value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean `x`?)" for the closest of `known`, or "" when none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean `{close[0]}`?)" if close else ""


def unknown_model(key: KeyPath, name: Any, known: Collection[str]) -> Iterator[Finding]:
    """Yield that `name` is none of the `known` models, if so; no text is reported elsewhere."""
    if isinstance(name, str) and name and name not in known:
        hint = nearest(name, known) or f" (there are: {', '.join(sorted(known))})"
        yield key, f"there is no model called `{name}`{hint}"
