"""A policy ready to decide with: its files put together, checked, and compiled."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import regex
from msgspec import Struct, structs

from config import (
    ConditionSettings,
    ConfigError,
    PolicySettings,
    PolicyTestSettings,
    Problem,
    RuleSettings,
    line_of,
    nearest,
    policy_problems,
    read_as,
)
from config.policy import ANY_MODEL, REGEX_S, EscalationSettings, FitSettings
from policies.words import Facts, Task, fold

SHIPPED = {
    name: Path(__file__).with_name(f"{name}.yaml") for name in ("balanced", "fastest", "quality")
}
"""The policies that are there without a file of the operator's."""

FIT = 0.5
"""Of a model of which the policy says nothing."""

_REGEX_CHARS = 4_000

Applies = Callable[[Task, Facts], bool]


class Rule(Struct, frozen=True):
    """A rule, and how to see whether it applies."""

    settings: RuleSettings
    applies: Applies


class Policy(Struct, frozen=True, kw_only=True):
    """What decides; see `config.policy` for the meaning of each part.

    Attributes
    ----------
    version
        Changes whenever anything in it does.
    fits
        Fit of the easiest requests, slope and languages, by model and `*`.
    files
        Where it comes from.
    """

    name: str
    version: str
    default: str
    price_per_second: float
    switch_margin: float
    deadline_s: float | None
    serve_while_loading: bool
    fallbacks: int
    output_tokens: dict[str, int]
    fits: dict[str, FitSettings]
    rules: tuple[Rule, ...]
    escalation: EscalationSettings | None
    tests: tuple[PolicyTestSettings, ...]
    files: tuple[Path, ...]

    def deadline(self, facts: Facts, rule: Rule | None) -> float | None:
        """Return when an answer is of no use any more, in seconds, or None: nobody says so."""
        of_rule = rule.settings.deadline_s if rule else None
        given = (self.deadline_s, facts.deadline_s, of_rule)
        return min((each for each in given if each is not None), default=None)

    def fit(self, model: str, task: Task) -> float:
        """Return how likely an answer of `model` is a good one, 0 to 1."""
        row = self.fits.get(model) or self.fits.get(ANY_MODEL)
        if row is None:
            return FIT
        base = getattr(row, task.label)
        if base is None:
            base = FIT if row.other is None else row.other
        less = (row.slope or 0.0) * task.difficulty
        more = row.languages.get(task.language, 0.0) if task.language else 0.0
        return float(min(max(base - less + more, 0.0), 1.0))


def read_policy(path: Path, models: Sequence[str], name: str = "") -> Policy:
    """Return the policy in a file.

    Parameters
    ----------
    models
        The names of the models there are.
    name
        What it is called; left out, as the file is.

    Raises
    ------
    ConfigError
        With every problem of the first file that has any: this one, or one that it extends.
    """
    settings = read_as(path, PolicySettings, lambda data: policy_problems(data, models))
    return make_policy(name or path.stem, settings, path, models)


def shipped_policy(shipped: str, models: Sequence[str], name: str = "") -> Policy:
    """Return one of `SHIPPED`. What it says of models that are not there does not count.

    Parameters
    ----------
    name
        What it is called; left out, by its own name.
    """
    path = SHIPPED[shipped]
    return make_policy(name or shipped, _read_shipped(path), path, models)


@cache
def _read_shipped(path: Path) -> PolicySettings:
    """Return what a file of `SHIPPED` says: it is read by every policy, and changes with none."""
    return read_as(path, PolicySettings, lambda _: ())


def make_policy(
    name: str, settings: PolicySettings, path: Path, models: Sequence[str], section: str = ""
) -> Policy:
    """Return the policy made of `settings`, which are from the file `path`, and what they extend.

    Parameters
    ----------
    section
        The key of the file that has them, if they are not the whole of it.

    Raises
    ------
    ConfigError
        A file that is extended is broken, missing, or extends itself.
    """
    at = (section, "extends") if section else ("extends",)
    whole, files = _extended(settings, path, models, (path,), at)
    default = whole.default if whole.default and whole.default in models else models[0]
    whole = structs.replace(whole, default=default)
    return Policy(
        name=name,
        version=hashlib.sha256(msgspec.json.encode(whole, order="sorted")).hexdigest()[:12],
        default=default,
        price_per_second=whole.price_per_second or 0.0,
        switch_margin=whole.switch_margin or 0.0,
        deadline_s=whole.deadline_s,
        serve_while_loading=bool(whole.serve_while_loading),
        fallbacks=whole.fallbacks or 0,
        output_tokens={str(task): tokens for task, tokens in whole.output_tokens.items()},
        fits=whole.fit,
        rules=tuple(make_rule(rule) for rule in whole.rules),
        escalation=whole.escalation,
        tests=tuple(whole.tests),
        files=files,
    )


def _extended(
    settings: PolicySettings,
    path: Path,
    models: Sequence[str],
    chain: tuple[Path, ...],
    at: tuple[str, ...] = ("extends",),
) -> tuple[PolicySettings, tuple[Path, ...]]:
    """Return `settings` with what they extend filled in, and the files; `at` is where they do."""
    if path == SHIPPED["balanced"]:
        return settings, chain
    name = settings.extends or "balanced"
    where = SHIPPED.get(name, path.parent / name)
    if not os.path.isfile(where):  # False also for what cannot be a name
        message = (
            f"there is no shipped policy and no file called `{name}`"
            f"{nearest(name, SHIPPED)}; shipped are {', '.join(SHIPPED)}"
        )
        raise _not_extended(path, at, message)
    if where.resolve() in {each.resolve() for each in chain}:
        names = " extends ".join(f"`{each.name}`" for each in (*chain, where))
        message = f"goes in a circle: {names}; let the last one extend `balanced`"
        raise _not_extended(path, at, message)
    found = (
        _read_shipped(where)
        if where in SHIPPED.values()
        else read_as(where, PolicySettings, lambda data: policy_problems(data, models))
    )
    parent, files = _extended(found, where, models, (*chain, where))
    return _merged(settings, parent), files


def _not_extended(path: Path, at: tuple[str, ...], message: str) -> ConfigError:
    return ConfigError(path, [Problem(".".join(at), message, line_of(path, at))])


def _merged(child: PolicySettings, parent: PolicySettings) -> PolicySettings:
    """Return `child` with what it does not say taken from `parent`. Tests are the child's own."""
    missing = {
        field: getattr(parent, field)
        for field in child.__struct_fields__
        if getattr(child, field) is None
    }
    fits = {
        model: _merged_fit(child.fit.get(model), parent.fit.get(model))
        for model in {**parent.fit, **child.fit}
    }
    # One name stands for one rule, so a child replaces its parent's rule by its name.
    own = {rule.name for rule in child.rules}
    return structs.replace(
        child,
        **missing,
        output_tokens={**parent.output_tokens, **child.output_tokens},
        fit=fits,
        rules=[*child.rules, *(rule for rule in parent.rules if rule.name not in own)],
    )


def _merged_fit(child: FitSettings | None, parent: FitSettings | None) -> FitSettings:
    if child is None or parent is None:
        return child or parent or FitSettings()
    if child.other is not None:  # it speaks for every task that the child does not name
        parent = FitSettings(slope=parent.slope, languages=parent.languages)
    missing = {
        field: getattr(parent, field)
        for field in child.__struct_fields__
        if getattr(child, field) is None
    }
    languages = {**parent.languages, **child.languages}
    return structs.replace(child, **missing, languages=languages)


# --- conditions ---------------------------------------------------------------------------------


def make_rule(settings: RuleSettings) -> Rule:
    """Return a rule that is ready to decide with."""
    first, *others = [*_parts(settings.when)] or [lambda task, facts: True]
    return Rule(settings, functools.reduce(_both, others, first))


def _both(one: Applies, other: Applies) -> Applies:
    # Twice as fast as `all` over a list of them, which is felt with fifty rules.
    return lambda task, facts: one(task, facts) and other(task, facts)


def _parts(when: ConditionSettings) -> Iterator[Applies]:
    if when.task is not None:
        tasks = frozenset([when.task] if isinstance(when.task, str) else when.task)
        yield lambda task, _: task.label in tasks
    for key, least, most in (
        ("confidence", when.confidence_min, None),
        ("difficulty", when.difficulty_min, when.difficulty_max),
        ("prompt_tokens", when.prompt_tokens_min, when.prompt_tokens_max),
        ("turns", when.turns_min, when.turns_max),
    ):
        if least is not None or most is not None:
            yield _between(key, least, most)
    for key in ("language", "output"):
        if (wanted := getattr(when, key)) is not None:
            yield _equal(key, wanted)
    if when.images is not None:
        yield lambda task, _: (task.images > 0) is when.images
    if when.tools is not None:
        yield lambda task, _: (task.tools > 0) is when.tools
    if when.keywords is not None:
        yield _keywords(when.keywords)
    if when.regex is not None:
        yield _searched(regex.compile(when.regex))
    if when.user is not None:
        users = frozenset([when.user] if isinstance(when.user, str) else when.user)
        yield lambda _, facts: facts.user in users
    if when.headers:
        headers = {name.lower(): value for name, value in when.headers.items()}
        yield lambda _, facts: _has(facts.headers, headers)
    if when.metadata:
        yield lambda _, facts: _has(facts.metadata, when.metadata)
    if when.hours is not None:
        begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in when.hours.split("-"))
        if begin <= end:
            yield lambda _, facts: begin <= facts.minute < end
        else:  # over midnight
            yield lambda _, facts: facts.minute >= begin or facts.minute < end


def _between(key: str, least: float | None, most: float | None) -> Applies:
    low = float("-inf") if least is None else least
    high = float("inf") if most is None else most
    return lambda task, _: low <= getattr(task, key) <= high


def _equal(key: str, wanted: str) -> Applies:
    return lambda task, _: getattr(task, key) == wanted


def _keywords(keywords: Iterable[str]) -> Applies:
    """Return what says whether any of `keywords` is in the text, as whole words."""
    folded = {" ".join(fold(keyword).split()) for keyword in keywords} - {""}
    words = frozenset(each for each in folded if re.fullmatch(r"\w+", each))
    phrases = []
    for each in sorted(folded - words):
        spaced = r"\s+".join(map(re.escape, each.split()))
        parts = frozenset(re.findall(r"\w+", each))
        phrases.append((parts, re.compile(rf"(?<!\w){spaced}(?!\w)")))
    return lambda _, facts: (
        not words.isdisjoint(facts.folded_words)
        or any(
            parts <= facts.folded_words and phrase.search(facts.folded) for parts, phrase in phrases
        )
    )


def _searched(pattern: "regex.Pattern[str]") -> Applies:
    def applies(_: Task, facts: Facts) -> bool:
        if pattern not in facts.found:  # the same facts are decided with many times
            try:
                seen = pattern.search(facts.text[:_REGEX_CHARS], timeout=REGEX_S) is not None
            except TimeoutError:
                seen = False
            facts.found[pattern] = seen
        return facts.found[pattern]

    return applies


def _has(given: Any, wanted: dict[str, str]) -> bool:
    return all(name in given and value in ("*", given[name]) for name, value in wanted.items())
