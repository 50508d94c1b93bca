"""What would have to be different for another model to be chosen, found by deciding again."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import structs

from policies.decide import NO_FACTS, Undecidable, decide
from policies.policy import Policy
from policies.words import Candidate, Decision, Facts, Task

SENTENCES_MAX = 3
"""How many sentences are given: nobody reads more."""

_MODELS_MAX = 4  # of which is asked what would be if they were in memory, or idle
_STEPS = (1, 2, 4, 8, 16, 32, 64)  # how far away from the facts a number is looked for


def counterfactuals(
    decision: Decision,
    task: Task,
    candidates: Sequence[Candidate],
    policy: Policy,
    facts: Facts = NO_FACTS,
    others: Mapping[str, Policy] = {},
    *,
    is_free: bool = True,
) -> list[str]:
    """Return at most `SENTENCES_MAX` sentences, each naming one change and who would win then.

    Every sentence is true of `decide`: its one change, and nothing else, gives that model. What
    is there to be switched comes first (a rule, memory, a queue), then what the request would have
    to be like, then other policies. Takes about a hundred decisions at most.

    Parameters
    ----------
    decision
        What `decide` made of the rest.
    others
        Other policies in use, by what a client calls them (`auto:fastest`).
    is_free
        False for a model that the client named: nothing but another policy would change that.
    """
    question = _Question(decision, task, candidates, policy, facts)
    answers = question.answers(others) if is_free else question.by_other_policies(others)
    return list(itertools.islice(answers, SENTENCES_MAX))


class _Question:
    """Who would win if something else were the case."""

    def __init__(
        self,
        decision: Decision,
        task: Task,
        candidates: Sequence[Candidate],
        policy: Policy,
        facts: Facts,
    ) -> None:
        self._decision = decision
        self._task = task
        self._candidates = candidates
        self._policy = policy
        self._facts = facts

    def answers(self, others: Mapping[str, Policy]) -> Iterator[str]:
        """Yield the sentences, lazily: most are never asked for."""
        yield from self._without_the_rule()
        yield from self._in_memory()
        yield from self._idle()
        yield from self._in_a_new_conversation()
        yield from self._of_another_length()
        yield from self._of_another_difficulty()
        yield from self._of_another_kind()
        yield from self.by_other_policies(others)

    def _winner(
        self,
        task: Task | None = None,
        candidates: Sequence[Candidate] | None = None,
        policy: Policy | None = None,
    ) -> str | None:
        """Return who else would win with these in place of what was; None: nobody else."""
        try:
            model = decide(
                task or self._task,
                self._candidates if candidates is None else candidates,
                policy or self._policy,
                self._facts,
            ).model
        except Undecidable:
            return None
        return None if model == self._decision.model else model

    def _without_the_rule(self) -> Iterator[str]:
        name = self._decision.rule
        if name is None:
            return
        rules = tuple(rule for rule in self._policy.rules if rule.settings.name != name)
        if winner := self._winner(policy=structs.replace(self._policy, rules=rules)):
            yield f"Without the rule `{name}`, `{winner}` would win."

    def _in_memory(self) -> Iterator[str]:
        def load(each: Candidate) -> Candidate:
            return structs.replace(
                each, state="ready", retry_in_s=0.0, load_s=0.0, evicts=(), displacement_s=0.0
            )

        away = [each for each in self._candidates if each.state != "ready"]
        yield from self._if_one_were(away, load, "in memory")

    def _idle(self) -> Iterator[str]:
        def empty(each: Candidate) -> Candidate:
            return structs.replace(each, held=0, queue_s=0.0)

        busy = [each for each in self._candidates if each.held or each.queue_s]
        yield from self._if_one_were(busy, empty, "idle")

    def _if_one_were(
        self, among: Iterable[Candidate], change: Callable[[Candidate], Candidate], how: str
    ) -> Iterator[str]:
        """Yield a sentence on the model nearest to winning that would win if it were `how`."""
        ranks = {name: rank for rank, name in enumerate(self._decision.ranking)}
        hopeful = [each for each in among if each.model in ranks]
        # What is slow to come has a low rank for that very reason, so its fit counts.
        fits = {each.model: each.fit for each in self._decision.candidates}
        by_fit = sorted(hopeful, key=lambda each: -fits[each.model])
        by_rank = sorted(hopeful, key=lambda each: ranks[each.model])
        mixed = itertools.chain.from_iterable(zip(by_rank, by_fit, strict=True))
        for one in list({each.model: each for each in mixed}.values())[:_MODELS_MAX]:
            changed = [change(each) if each is one else each for each in self._candidates]
            if self._winner(candidates=changed) == one.model:
                yield f"`{one.model}` would win if it were {how}."
                return

    def _in_a_new_conversation(self) -> Iterator[str]:
        if any(each.holds_conversation or each.cached_tokens for each in self._candidates):
            new = [
                structs.replace(each, holds_conversation=False, cached_tokens=0)
                for each in self._candidates
            ]
            if winner := self._winner(candidates=new):
                yield f"`{winner}` would win if no model had this conversation."

    def _of_another_length(self) -> Iterator[str]:
        now = self._task.prompt_tokens

        def winner(tokens: int) -> str | None:
            return self._winner(structs.replace(self._task, prompt_tokens=tokens))

        contexts = {each.max_model_len for each in self._candidates if each.max_model_len > now}
        more = {round(max(now, 1) * (1 + part)) for part in (0.25, *_STEPS)} | contexts
        found = [
            ("below", _turn(now, [now - now * step // 64 for step in _STEPS], winner)),
            ("above", _turn(now, sorted(more), winner)),
        ]
        turns = [(side, *turn) for side, turn in found if turn]
        # Half as many are as far away as twice as many.
        turns.sort(key=lambda turn: abs(math.log((turn[1] + 1) / (now + 1))))
        for side, edge, model in turns[:1]:
            yield f"`{model}` would win just {side} {edge:,} prompt tokens."

    def _of_another_difficulty(self) -> Iterator[str]:
        now = round(100 * self._task.difficulty)

        def winner(percent: int) -> str | None:
            return self._winner(structs.replace(self._task, difficulty=percent / 100))

        found = [
            ("below", _turn(now, [max(now - step, 0) for step in (*_STEPS, 100)], winner)),
            ("above", _turn(now, [min(now + step, 100) for step in (*_STEPS, 100)], winner)),
        ]
        turns = [(side, *turn) for side, turn in found if turn]
        turns.sort(key=lambda turn: abs(turn[1] - now))
        for side, edge, model in turns[:1]:
            yield f"`{model}` would win just {side} a difficulty of {edge}%."

    def _of_another_kind(self) -> Iterator[str]:
        likely = {
            label: share
            for label, share in self._task.signals.items()
            if label != self._task.label and isinstance(share, float)
        }
        for label, share in sorted(likely.items(), key=lambda item: -item[1]):
            percent = round(100 * share)
            other = structs.replace(self._task, label=label, confidence=percent / 100)
            if winner := self._winner(other):
                yield f"`{winner}` would win if it were taken for {label} ({percent}% likely)."
                return

    def by_other_policies(self, others: Mapping[str, Policy]) -> Iterator[str]:
        """Yield who would win by other policies."""
        for name, policy in others.items():
            if winner := self._winner(policy=policy):
                yield f"`{name}` would take `{winner}`."


def _turn(
    now: int, points: Iterable[int], winner: Callable[[int], str | None]
) -> tuple[int, str] | None:
    """Return the last number where nobody else wins, on the way from `now` over `points`.

    With it, who wins at the number after it; None if nobody does on the whole way.
    """
    same = now
    for point in points:
        if model := winner(point):
            other = point
            while abs(other - same) > 1:
                middle = (other + same) // 2
                if found := winner(middle):
                    other, model = middle, found
                else:
                    same = middle
            return same, model
        same = point
    return None
