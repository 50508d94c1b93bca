"""Decisions explained: what a request would get, and what one got."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from config import ConditionSettings, is_auto
from engines.protocol import Endpoint
from policies import Facts, Undecidable, decide
from router.choose import Choice, Chooser
from router.conversations import Session
from router.counterfactual import counterfactual
from router.journal import Record, entry_of, explanation
from router.ledger import Entry
from router.parse import endpoint_of, parse
from router.policies import Policies
from router.words import Request

Check = Callable[[str, Endpoint, bytes], None]


def dry_run(
    body: bytes, headers: Mapping[str, str], chooser: Chooser, check: Check | None = None
) -> dict[str, Any]:
    """Return the decision for a request that is not made. Loads nothing, and remembers nothing.

    Parameters
    ----------
    headers
        By lower-case name.
    check
        Raises Refused if a model could not run a request.

    Raises
    ------
    ApiError, Refused
        What the request would get.
    """
    began = time.perf_counter()
    endpoint = endpoint_of(body)
    request = parse(endpoint, body)
    parsed = time.perf_counter()
    choice = chooser.choose(request, headers)
    if check is not None:
        check(choice.decision.model, endpoint, body)
    record = Record(
        id="",
        endpoint=endpoint,
        began=began,
        asked=choice.asked,
        model=choice.decision.model,
        reason=choice.decision.reason,
        choice=choice,
        parse_us=1e6 * (parsed - began),
    )
    return explanation(entry_of(record, choice, 0.0), counterfactual(choice))


def told(entry: Entry, policies: Policies) -> dict[str, Any]:
    """Return a decision that was made."""
    choice = _again(entry, policies)
    return explanation(entry, counterfactual(choice) if choice else [])


def _again(entry: Entry, policies: Policies) -> Choice | None:
    """Return the choice that led to `entry`, or None where it cannot be made again.

    Neither the text nor the headers of a request are kept, so a rule that looks at them may decide
    otherwise; so does a policy of which this version is gone.
    """
    policy = policies.find(entry.policy, entry.version)
    if policy is None or not is_auto(entry.asked):
        return None
    rules = [rule for each in (policy, *policies.current.values()) for rule in each.rules]
    if entry.deadline_s or any(_looks_at_facts(rule.settings.when) for rule in rules):
        return None
    facts = Facts()
    try:
        decision = decide(entry.task, entry.inputs, policy, facts)
    except Undecidable:
        return None
    if (decision.model, decision.rule) != (entry.model, entry.rule):
        return None
    return Choice(
        request=Request(endpoint="chat", model=entry.asked, stream=False, turns=()),
        asked=entry.asked,
        task=entry.task,
        text="",
        facts=facts,
        policy=policy,
        policies=policies.current,
        candidates=list(entry.inputs),
        decision=decision,
        session=Session(),
        place=None,
        describe_us=0.0,
        decide_us=0.0,
    )


def _looks_at_facts(when: ConditionSettings) -> bool:
    """Return whether a condition is about what is not kept of a request."""
    return any((when.keywords, when.regex, when.user, when.headers, when.metadata, when.hours))
