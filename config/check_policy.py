"""What is wrong with a policy beyond unknown keys and wrong types."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import regex

from config.names import Finding, KeyPath, unknown_model
from config.policy import ANY_MODEL, REGEX_S

# Of texts on which a regular expression is tried: so few that only one takes long whose time grows
# at least with the cube of the length. Others are slow on long texts, and their search is bounded.
_PROBE_CHARS = 600
_PROBE_S = 10 * REGEX_S
_PATTERN_CHARS = 1_000

_ACTIONS = ("prefer", "only", "exclude", "cap", "deadline_s")


def policy_problems(data: Any, models: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong between the parts of a policy file, and with the names in it.

    Parts of the wrong shape are reported elsewhere, and skipped here.
    """
    if not isinstance(data, dict):
        return
    known = set(models)
    if isinstance(name := data.get("default"), str):
        yield from unknown_model(("default",), name, known)
    fits = data.get("fit")
    for name in fits if isinstance(fits, dict) else ():
        yield from unknown_model(("fit", str(name)), name, known | {ANY_MODEL})
    seen: set[str] = set()
    always: str | None = None
    rules = data.get("rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        here = ("rules", index)
        if not isinstance(rule, dict):
            continue
        name, when = rule.get("name"), rule.get("when")
        if isinstance(name, str):
            if name in seen:
                yield (*here, "name"), f"there is already a rule called `{name}`"
            seen.add(name)
        for action in _ACTIONS[:-1]:
            yield from _unknown_models(rule.get(action), (*here, action), known)
        if all(rule.get(a) in (None, {}) for a in _ACTIONS):
            message = "does nothing; give it `prefer`, `only`, `exclude`, `cap` or `deadline_s`"
            yield here, message
        if always is not None:
            message = f"comes after the rule `{always}`, which always applies; move it above that"
            yield here, message
        elif isinstance(when, dict) and _always(when):
            always = str(name)
        if isinstance(when, dict):
            yield from _never((*here, "when"), when)
    tests = data.get("tests")
    for index, test in enumerate(tests if isinstance(tests, list) else []):
        if isinstance(test, dict):
            yield from _wrong_test(("tests", index), test, known)


def _wrong_test(here: KeyPath, test: dict[str, Any], known: set[str]) -> Iterator[Finding]:
    if ("prompt" in test) == ("request" in test):
        yield here, "expected one of `prompt` and `request`"
    for key in ("state", "queue_s", "tokens_per_s"):
        yield from _unknown_models(test.get(key), (*here, key), known)
    expect = test.get("expect")
    yield from _unknown_models(
        [expect] if isinstance(expect, str) else expect, (*here, "expect"), known
    )


def _unknown_models(names: Any, here: KeyPath, known: set[str]) -> Iterator[Finding]:
    if isinstance(names, dict):
        for name in names:
            yield from unknown_model((*here, str(name)), name, known)
    for index, name in enumerate(names if isinstance(names, list) else []):
        yield from unknown_model((*here, index), name, known)


def _always(when: dict[str, Any]) -> bool:
    """Return whether a condition holds for every request: each of its keys says nothing."""
    return all(
        value in (None, {}) or (value == 0 and str(key).endswith("_min"))
        for key, value in when.items()
    )


def _never(here: KeyPath, when: dict[str, Any]) -> Iterator[Finding]:
    """Yield why a condition can never hold, or may take for ever."""
    for key in ("difficulty", "prompt_tokens", "turns"):
        low, high = when.get(f"{key}_min"), when.get(f"{key}_max")
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            message = f"{low} is more than {key}_max {high}: this rule can never apply"
            yield (*here, f"{key}_min"), message
    hours = when.get("hours")
    if isinstance(hours, str) and hours[:5] == hours[6:]:
        message = "begins when it ends: this rule can never apply; leave it out for the whole day"
        yield (*here, "hours"), message
    for key in ("task", "user"):
        if when.get(key) == []:
            yield (*here, key), "is an empty list: this rule can never apply"
    pattern = when.get("regex")
    if isinstance(pattern, str) and 0 < len(pattern) <= _PATTERN_CHARS:
        yield from (((*here, "regex"), text) for text in _wrong_pattern(pattern))


def _wrong_pattern(pattern: str) -> Iterator[str]:
    """Yield what is wrong with a regular expression; it is tried on texts that take long."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        yield f"is no regular expression: {error}"
    except RecursionError:
        yield "has too many brackets inside brackets; expected a few dozen at most"
    else:
        if any(_is_slow(compiled, text) for text in _hard_texts(pattern)):
            yield (
                "takes too long on some texts; avoid repetitions inside repetitions, as in (a+)+, "
                "or use `keywords`"
            )


def _is_slow(compiled: "regex.Pattern[str]", text: str) -> bool:
    try:
        compiled.search(text, timeout=_PROBE_S)
    except TimeoutError:
        return True
    return False


def _hard_texts(pattern: str) -> Iterator[str]:
    """Yield texts that nearly match: many repetitions of one thing, and then another.

    A search ends at once where a text has not all the letters that the pattern needs, so half of
    the texts have them all at their end.
    """
    letters = list(dict.fromkeys([*pattern, "a", "0", " ", "\n"]))
    words = list(dict.fromkeys(re.findall(r"\w\w+", pattern)))
    units = [*letters, *words, *(f"{word} " for word in ("a", *words))]
    units += map("".join, itertools.pairwise(letters))
    needed = "".join(letter * 2 for letter in letters) + pattern
    for unit in units[:200]:
        repeated = (unit * _PROBE_CHARS)[:_PROBE_CHARS]
        yield f"{repeated}\x00"
        yield f"{repeated}\x00{needed}"
