"""What became of each request: the latest in memory, and all in the ledger if there is one."""

import logging
import time
from collections import OrderedDict
from typing import Any

import msgspec
from msgspec import Struct, structs

from router.choose import Choice
from router.errors import new_id
from router.forecast import Forecast
from router.ledger import Entry, Ledger, Usage
from router.words import Endpoint

log = logging.getLogger("axion.request")

HEADER_MAX = 1_000
"""Longest value of a header, in characters: many proxies refuse heads of a few kilobytes."""

LATEST_MAX = 1_000
"""How many decisions are kept in memory."""


class Record(Struct, kw_only=True):
    """The biography of one request while it lives.

    Attributes
    ----------
    model, reason
        Those of the decision, and then of what became of it.
    choice
        None until it is made.
    parse_us
        What reading the body took, in microseconds.
    usage
        What the engine counted of the answer, where that is known.
    attempts
        How many times a model was asked.
    escalated_from, escalated_usage
        The model whose answer was not good enough, and what it took.
    """

    id: str
    endpoint: Endpoint
    began: float
    asked: str = "?"
    model: str = "-"
    reason: str = ""
    choice: Choice | None = None
    parse_us: float = 0.0
    usage: Usage | None = None
    attempts: int = 0
    escalated_from: str | None = None
    escalated_usage: Usage | None = None
    outcome: str = "running"

    def headers(self) -> dict[str, str]:
        """Return the headers that every answer carries, as far as the story has gone."""
        known = {
            "x-request-id": self.id,
            "x-axion-decision": self.id,
            "x-axion-model": self.model if self.model != "-" else "",
            "x-axion-reason": self.reason,
        }
        # An alias may have any character; a header may not.
        return {name: ascii(value)[1:-1][:HEADER_MAX] for name, value in known.items() if value}


class Journal:
    """Writes the stories of requests down when they are over.

    Parameters
    ----------
    forecast
        Learns how far its predictions were off.
    ledger
        Where decisions are kept, or None.
    """

    def __init__(self, forecast: Forecast, ledger: Ledger | None) -> None:
        self._forecast = forecast
        self._ledger = ledger
        self._running: dict[str, Record] = {}
        self._latest: OrderedDict[str, Entry] = OrderedDict()

    def open(self, endpoint: Endpoint) -> Record:
        """Begin the story of a request; whoever does must close it."""
        record = Record(id=new_id(), endpoint=endpoint, began=time.monotonic())
        self._running[record.id] = record
        return record

    def close(self, record: Record, outcome: str) -> None:
        """End the story. The first call counts."""
        if record.outcome != "running":
            return
        self._running.pop(record.id, None)
        record.outcome = outcome
        seconds = time.monotonic() - record.began
        log.info(
            "%s %s %s -> %s: %s in %.2f s (%s)",
            record.id,
            record.endpoint,
            record.asked,
            record.model,
            outcome,
            seconds,
            record.reason or "not decided",
        )
        if record.choice is None:
            return
        entry = entry_of(record, record.choice, seconds)
        self._latest[entry.id] = entry
        if len(self._latest) > LATEST_MAX:
            self._latest.popitem(last=False)
        if outcome == "ok" and record.attempts == 1:  # no time went to others
            predicted = record.choice.assessment(record.model).predicted_seconds.total
            self._forecast.took(record.model, predicted, seconds)
        if self._ledger is not None:
            text = record.choice.text if self._ledger.keeps_text else None
            self._ledger.record(structs.replace(entry, text=text))

    async def find(self, decision_id: str) -> Entry | None:
        """Return a decision, or None when none of that id is known.

        That of a request which still runs has the outcome `running`, and what is known so far.

        Raises
        ------
        LedgerFailed
        """
        record = self._running.get(decision_id)
        if record is not None and record.choice is not None:
            seconds = time.monotonic() - record.began
            return entry_of(record, record.choice, seconds)
        if entry := self._latest.get(decision_id):
            return entry
        return await self._ledger.decision(decision_id) if self._ledger else None


def entry_of(record: Record, choice: Choice, seconds: float) -> Entry:
    """Return what is kept of a request, but for its text, which can be megabytes."""
    decision = choice.decision
    loaded = decision.loads or (record.model if choice.candidate(record.model).load_s else None)
    return Entry(
        id=record.id,
        at=time.time(),
        endpoint=record.endpoint,
        asked=record.asked,
        model=record.model,
        policy=decision.policy,
        version=decision.version,
        task=choice.task,
        rule=decision.rule,
        reason=record.reason,
        candidates=decision.candidates,
        inputs=tuple(choice.candidates),
        loads=(loaded,) if loaded else (),
        evicts=choice.candidate(loaded).evicts if loaded else (),
        deadline_s=choice.facts.deadline_s,
        elapsed_us={
            "parse": round(record.parse_us),
            "describe": round(choice.describe_us),
            "decide": round(choice.decide_us),
        },
        outcome=record.outcome,
        seconds=round(seconds, 3),
        usage=record.usage,
        escalated_from=record.escalated_from,
        escalated_usage=record.escalated_usage,
    )


def explanation(entry: Entry, counterfactual: list[str]) -> dict[str, Any]:
    """Return a decision as the API shows it; a dry run has neither an id nor an outcome."""
    task: dict[str, Any] = msgspec.to_builtins(entry.task)
    said = {
        "decision_id": entry.id or None,
        "model": entry.model,
        "asked": entry.asked,
        "policy": {"name": entry.policy, "version": entry.version},
        "task": task,
        "candidates": msgspec.to_builtins(entry.candidates),
        "rule": entry.rule,
        "reason": entry.reason,
        "consequences": {"loads": list(entry.loads), "evicts": list(entry.evicts)},
        "counterfactual": counterfactual,
        "elapsed_us": entry.elapsed_us,
    }
    if entry.id:
        said["measured"] = {
            "outcome": entry.outcome,
            "seconds": entry.seconds,
            "tokens": msgspec.to_builtins(entry.usage),
            "escalated_from": entry.escalated_from,
            "at": entry.at,
        }
    return said
