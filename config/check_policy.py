"""What is wrong with a policy beyond unknown keys and wrong types."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import regex

from config.names import Finding, KeyPath, nearest
from config.policy import ANY_MODEL, REGEX_S

_PROBE_CHARS = 3_000  # of texts on which a regular expression is tried


def policy_problems(data: Any, models: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong between the parts of a policy file, and with the names in it.

    Parts of the wrong shape are reported elsewhere, and skipped here.
    """
    if not isinstance(data, dict):
        return
    known = set(models)
    if isinstance(name := data.get("default"), str):
        yield from _unknown(("default",), name, known)
    fits = data.get("fit")
    for name in fits if isinstance(fits, dict) else ():
        yield from _unknown(("fit", str(name)), name, known | {ANY_MODEL})
    seen: set[str] = set()
    always: str | None = None
    rules = data.get("rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        here = ("rules", index)
        if not isinstance(rule, dict):
            continue
        name, when = rule.get("name"), rule.get("when")
        if name in seen:
            yield (*here, "name"), f"there is already a rule called `{name}`"
        if isinstance(name, str):
            seen.add(name)
        for action in ("prefer", "only", "exclude", "cap"):
            yield from _unknown_models(rule.get(action), (*here, action), known)
        if not any(rule.get(a) for a in ("prefer", "only", "exclude", "cap", "deadline_s")):
            message = "does nothing; give it `prefer`, `only`, `exclude`, `cap` or `deadline_s`"
            yield here, message
        if always is not None:
            yield here, f"can never apply: the rule `{always}` above it always does"
        elif when == {} and isinstance(name, str):
            always = name
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
            yield from _unknown((*here, str(name)), name, known)
    for index, name in enumerate(names if isinstance(names, list) else []):
        yield from _unknown((*here, index), name, known)


def _unknown(here: KeyPath, name: Any, known: set[str]) -> Iterator[Finding]:
    if isinstance(name, str) and name and name not in known:
        hint = nearest(name, known) or f" (there are: {', '.join(sorted(known))})"
        yield here, f"there is no model called `{name}`{hint}"


def _never(here: KeyPath, when: dict[str, Any]) -> Iterator[Finding]:
    """Yield why a condition can never hold, or may take for ever."""
    for key in ("difficulty", "prompt_tokens", "turns"):
        low, high = when.get(f"{key}_min"), when.get(f"{key}_max")
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            message = f"{low} is more than {key}_max {high}: this rule can never apply"
            yield (*here, f"{key}_min"), message
    hours = when.get("hours")
    if isinstance(hours, str) and hours[:5] == hours[6:]:
        yield (*here, "hours"), "begins when it ends: this rule can never apply"
    if when.get("task") == []:
        yield (*here, "task"), "is an empty list: this rule can never apply"
    pattern = when.get("regex")
    if isinstance(pattern, str) and pattern:
        yield from (((*here, "regex"), text) for text in _wrong_pattern(pattern))


def _wrong_pattern(pattern: str) -> Iterator[str]:
    """Yield what is wrong with a regular expression; it is tried on texts that take long."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        yield f"is no regular expression: {error}"
        return
    letters = dict.fromkeys([*pattern, "a", "0", " ", "\n"])
    units = [*letters, *map("".join, itertools.pairwise(letters))][:200]
    for unit in units:
        probe = (unit * _PROBE_CHARS)[:_PROBE_CHARS] + "\x00"
        try:
            compiled.search(probe, timeout=10 * REGEX_S)
        except TimeoutError:
            yield (
                "takes too long on some texts; avoid repetitions inside repetitions, as in (a+)+, "
                "or use `keywords`"
            )
            return
