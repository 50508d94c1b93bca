"""What would have to be different for another model to be chosen."""

from router.choose import Choice


def counterfactual(choice: Choice) -> list[str]:
    """Return the nearest changes after which another model would be chosen, as sentences."""
    del choice
    return []
