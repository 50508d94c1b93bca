"""Decides recorded requests again by another policy, and says what would change.

Each decision is made with what was recorded of it: the task, and the models as they were at that
moment. So this says what the policy thinks of the traffic, request by request. That other choices
would have left the machine in another state is what `router.simulation` is for.
"""

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from config import ConditionSettings, is_auto
from policies import Assessment, Decision, Facts, Policy, Undecidable, decide
from router.ledger import Entry
from router.spread import Spread

AFFECTED_MAX = 10
"""How many of the most affected requests are shown."""

_NOT_STORED = ("headers", "user", "metadata")
_OF_TEXT = ("keywords", "regex")
_BASIS = (
    "Seconds and fit are by the numbers of this policy, with every model as it was at that moment; "
    "what other choices would do to the machine, `axion simulate` says."
)


class Change(Struct, frozen=True, kw_only=True):
    """A request that another model would have answered.

    Attributes
    ----------
    old, new
        What the new policy thinks of the model that answered, and of the one that it would choose.
    weight
        How much changes, as fit: the difference in fit and the price of the difference in time.
    """

    id: str
    task: str
    old: Assessment
    new: Assessment
    reason: str
    weight: float


class Side(Struct):
    """What one way of choosing gives, by the new policy's own numbers.

    Attributes
    ----------
    total_s, fit
        Sums of predicted seconds and of fit.
    loads
        How many requests were or would be the reason for a load.
    """

    models: Counter[str] = field(default_factory=Counter)
    seconds: Spread = field(default_factory=Spread)
    total_s: float = 0.0
    fit: float = 0.0
    loads: int = 0

    def add(self, assessment: Assessment, loads: bool) -> None:
        """Count a request that this model answers."""
        self.models[assessment.model] += 1
        self.seconds.add(assessment.predicted_seconds.total)
        self.total_s += assessment.predicted_seconds.total
        self.fit += assessment.fit
        self.loads += loads


class Replay(Struct, kw_only=True):
    """What came out.

    Attributes
    ----------
    decided
        Requests that were decided again; only they are in the numbers.
    named, incomplete, refused
        Others: for a model that the client named; without what is needed; that no model can answer.
    without_text
        Decided ones whose text was not kept.
    measured
        Seconds that the answers really took.
    affected
        The most affected ones, most first.
    """

    policy: Policy
    decided: int = 0
    changed: int = 0
    named: int = 0
    incomplete: int = 0
    refused: int = 0
    without_text: int = 0
    old: Side = field(default_factory=Side)
    new: Side = field(default_factory=Side)
    measured: Spread = field(default_factory=Spread)
    affected: list[Change] = []


def replay(entries: Iterable[Entry], policy: Policy) -> Replay:
    """Return what would change with `policy`. Goes over the entries once, and keeps none."""
    found = Replay(policy=policy)
    changes = (change for entry in entries if (change := _again(entry, policy, found)))
    found.affected = heapq.nlargest(AFFECTED_MAX, changes, key=lambda change: change.weight)
    return found


def _again(entry: Entry, policy: Policy, found: Replay) -> Change | None:
    """Decide one request again and count it; return what changes, or None."""
    if not is_auto(entry.asked):
        found.named += 1
        return None
    before = next((each for each in entry.inputs if each.model == entry.model), None)
    if before is None:
        found.incomplete += 1
        return None
    try:
        decision = decide(entry.task, entry.inputs, policy, _facts(entry))
    except Undecidable:
        found.refused += 1
        return None
    found.decided += 1
    found.without_text += entry.text is None
    if entry.outcome == "ok":
        found.measured.add(entry.seconds)
    new = _chosen(decision)
    old = next(each for each in decision.candidates if each.model == before.model)
    found.old.add(old, bool(entry.loads))
    found.new.add(new, decision.loads is not None or new.predicted_seconds.load > 0)
    if old.model == new.model:
        return None
    found.changed += 1
    seconds = new.predicted_seconds.total - old.predicted_seconds.total
    return Change(
        id=entry.id,
        task=entry.task.label,
        old=old,
        new=new,
        reason=decision.reason,
        weight=abs(new.fit - old.fit) + policy.price_per_second * abs(seconds),
    )


def _chosen(decision: Decision) -> Assessment:
    return next(each for each in decision.candidates if each.model == decision.model)


def _facts(entry: Entry) -> Facts:
    """Return what is known of a request beside its task."""
    began = time.localtime(entry.at - entry.seconds)
    return Facts(text=entry.text or "", minute=began.tm_hour * 60 + began.tm_min)


def unseen(policy: Policy, found: Replay) -> Iterator[str]:
    """Yield what the policy asks for and the ledger does not have, a sentence for each rule."""
    for rule in policy.rules:
        name, when = rule.settings.name, rule.settings.when
        if keys := _asked(when, _NOT_STORED):
            yield (
                f"The rule `{name}` looks at {' and '.join(keys)}, which the ledger never has: it "
                "applied to none."
            )
        elif found.without_text and (keys := _asked(when, _OF_TEXT)):
            yield (
                f"The rule `{name}` looks at the text ({' and '.join(keys)}), which was not kept "
                f"of {found.without_text:,} of {found.decided:,} requests (ledger.keep_text): it "
                "applied to none of those."
            )


def _asked(when: ConditionSettings, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if getattr(when, key)]


def shown(found: Replay) -> str:
    """Return all of it for a terminal."""
    policy = found.policy
    left_out = [
        (found.named, "were for a model that the client named"),
        (found.incomplete, "had no model or no state of the machine recorded"),
        (found.refused, "can be answered by no model"),
    ]
    lines = [
        f"{found.decided:,} requests decided again by {policy.name} ({policy.version}); "
        f"{found.changed:,} would go to another model.",
        *(f"Left out: {count:,} that {why}." for count, why in left_out if count),
        *unseen(policy, found),
    ]
    if not found.decided:
        return "\n".join([*lines, "There is nothing to compare."]) + "\n"
    models = sorted({*found.old.models, *found.new.models})
    sides = (found.old, found.new)
    rows = [
        ("", "AS IT WAS", "BY THE POLICY"),
        *(
            (model, *(_share(side.models[model], found.decided) for side in sides))
            for model in models
        ),
        ("predicted, mean", *(f"{side.total_s / found.decided:.1f} s" for side in sides)),
        *(
            (f"predicted, {name}", *(f"{side.seconds.quantile(share):.1f} s" for side in sides))
            for name, share in (("p50", 0.5), ("p95", 0.95))
        ),
        ("mean fit", *(f"{side.fit / found.decided:.3f}" for side in sides)),
        ("with a load", *(f"{side.loads:,}" for side in sides)),
    ]
    lines += ["", *_columns(rows), "", _BASIS]
    if found.measured.count:
        p50, p95 = (found.measured.quantile(share) for share in (0.5, 0.95))
        lines.append(f"Measured then: p50 {p50:.1f} s, p95 {p95:.1f} s.")
    if found.affected:
        lines += ["", f"Most affected ({len(found.affected)} of {found.changed:,}):"]
    for change in found.affected:
        old, new = change.old, change.new
        lines += [
            f"  {change.id}  {change.task}  {old.model} -> {new.model}  "
            f"{old.predicted_seconds.total:.1f} s -> {new.predicted_seconds.total:.1f} s  "
            f"fit {old.fit:.2f} -> {new.fit:.2f}",
            f"    {change.reason}",
        ]
    return "\n".join(lines) + "\n"


def names(entries: Iterable[Entry]) -> list[str]:
    """Return the models that a ledger knows, in their order."""
    found: dict[str, None] = {}
    for entry in entries:
        found.update(dict.fromkeys(each.model for each in entry.inputs))
    return list(found)


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}".replace("%", " %")


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
