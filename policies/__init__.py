"""Which model? Pure functions from a task and snapshots of the models to a decision.

No clock, no I/O, no await: the same input gives the same decision, always.
"""

from policies.decide import Undecidable, decide, unable
from policies.words import Candidate, Decision, Exclusion, Task

__all__ = ["Candidate", "Decision", "Exclusion", "Task", "Undecidable", "decide", "unable"]
