"""What would have to be different for another model to answer a request."""

from policies import counterfactuals
from router.choose import Choice
from router.policies import DEFAULT


def counterfactual(choice: Choice) -> list[str]:
    """Return at most three sentences, the nearest changes first; see `policies.counterfactual`.

    For a model that the client named, they say what `auto` would take.
    """
    own = choice.policy.version if choice.is_free else ""
    by_default_first = sorted(choice.policies.items(), key=lambda item: item[0] != DEFAULT)
    others = {
        "auto" if name == DEFAULT else f"auto:{name}": policy
        for name, policy in by_default_first
        if policy.version != own
    }
    return counterfactuals(
        choice.decision,
        choice.task,
        choice.candidates,
        choice.policy,
        choice.facts,
        others,
        is_free=choice.is_free,
    )
