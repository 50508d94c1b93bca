"""Which model? Pure functions from a task and snapshots of the models to a decision.

No clock, no I/O, no await: the same input gives the same decision, always. Policies are read and
checked before, by `policies.policy`.
"""

from policies.counterfactual import counterfactuals
from policies.decide import Undecidable, assess, decide, unable
from policies.policy import SHIPPED, Policy, make_policy, read_policy, shipped_policy
from policies.words import (
    Assessment,
    Candidate,
    Decision,
    Facts,
    Seconds,
    Task,
    without_accents,
)

__all__ = [
    "SHIPPED",
    "Assessment",
    "Candidate",
    "Decision",
    "Facts",
    "Policy",
    "Seconds",
    "Task",
    "Undecidable",
    "assess",
    "counterfactuals",
    "decide",
    "make_policy",
    "read_policy",
    "shipped_policy",
    "unable",
    "without_accents",
]
