"""Places in a file, and names that are close to others."""

import difflib
from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
Finding = tuple[KeyPath, str]
"""A key, and what is wrong with its value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean `x`?)" for the closest of `known`, or "" when none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean `{close[0]}`?)" if close else ""
