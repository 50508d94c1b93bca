"""Who chooses: the decision with a policy, and simpler ways that it must beat.

The simpler ways go through the same decision, each as a rule that always applies or with a part of
what it sees hidden: so all of them agree on what a model cannot do, and differ only in taste.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, structs

from config import ConditionSettings, RuleSettings
from policies import Candidate, Decision, Policy, Task, decide
from policies.policy import Rule

Order = Callable[[Task, Sequence[Candidate]], list[str]]
"""Returns the models to try, best first."""


class Contestant(Struct, frozen=True):
    """A way to choose.

    Attributes
    ----------
    policy
        What it decides with, where it does not look only at the order.
    order
        The models that it prefers, or None where worth decides.
    sees_machine
        Whether it knows what is in memory, how busy that is, and what a load costs.
    """

    name: str
    policy: Policy
    order: Order | None = None
    sees_machine: bool = True

    def decide(self, task: Task, candidates: Sequence[Candidate]) -> Decision:
        """Return the decision. Raises Undecidable."""
        policy = self.policy
        if self.order is not None:
            policy = _by_order(policy, self.order(task, candidates))
        if not self.sees_machine:
            candidates = [_idle(each) for each in candidates]
        return decide(task, candidates, policy)


def baselines(
    policy: Policy, sizes: Mapping[str, float], static: Mapping[str, str]
) -> list[Contestant]:
    """Return the simpler ways.

    Parameters
    ----------
    policy
        What they share: the default, which is the small model; the fallbacks; and for the one
        that looks at the content only, all but the machine.
    sizes
        Of the models, in any unit.
    static
        The model of each task that has one of its own.
    """
    biggest = sorted(sizes, key=lambda name: -sizes[name])

    def by_task(task: Task, _: Sequence[Candidate]) -> list[str]:
        return [static.get(task.label, policy.default), policy.default]

    def warm_first(_: Task, candidates: Sequence[Candidate]) -> list[str]:
        ready = [each for each in candidates if each.state == "ready"]
        return [*(each.model for each in sorted(ready, key=_held)), policy.default]

    def least_loaded(_: Task, candidates: Sequence[Candidate]) -> list[str]:
        return [each.model for each in sorted(candidates, key=_held)]

    return [
        Contestant("always small", policy, lambda *_: [policy.default]),
        Contestant("always big", policy, lambda *_: biggest),
        Contestant("static by task", policy, by_task),
        Contestant("content only", policy, sees_machine=False),
        Contestant("warm first", policy, warm_first),
        Contestant("least loaded", policy, least_loaded),
    ]


def _held(candidate: Candidate) -> int:
    return candidate.held


def _by_order(policy: Policy, order: list[str]) -> Policy:
    settings = RuleSettings(name="order", when=ConditionSettings(), prefer=order)
    rule = Rule(settings, lambda *_: True)
    return structs.replace(policy, rules=(rule,), serve_while_loading=False)


def _idle(candidate: Candidate) -> Candidate:
    """Return the model as it would be in memory with nothing to do."""
    return structs.replace(
        candidate,
        state="ready",
        held=0,
        load_s=0.0,
        queue_s=0.0,
        cached_tokens=0,
        holds_conversation=False,
        evicts=(),
        displacement_s=0.0,
    )
