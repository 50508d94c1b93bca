"""The tests that an operator writes into a policy, tried before it is used."""

import itertools

import msgspec

from config import Problem, line_of
from config.names import KeyPath
from config.policy import PolicyTestSettings
from policies import Candidate, Facts, Policy, Undecidable, decide
from router.catalogue import Catalogue
from router.classifier import Classifier
from router.describe import describe, subject
from router.errors import ApiError
from router.forecast import PREFILL
from router.parse import parse
from router.words import Request, Turn

TOKENS_PER_S = 20.0
"""How fast models write, where a test does not say."""

FAILING_MAX = 10
"""How many failing tests are told of at a time: where each is takes a look at the whole file."""

LOAD_S = 10.0
"""How long a model that is not in memory takes to load."""


def failing(
    policy: Policy, catalogue: Catalogue, classifier: Classifier, at: KeyPath = ()
) -> list[Problem]:
    """Return a problem for each test of `policy` that fails, for the first `FAILING_MAX`.

    Parameters
    ----------
    at
        The key of the policy in its file, if it is not the whole of it.
    """
    file = policy.files[0]  # tests are not taken from what it extends
    wrong = (
        Problem(
            ".".join((*map(str, at), f"tests[{index}]")),
            problem,
            line_of(file, (*at, "tests", index)),
        )
        for index, test in enumerate(policy.tests)
        if (problem := _wrong(test, policy, catalogue, classifier))
    )
    return list(itertools.islice(wrong, FAILING_MAX))


def _wrong(
    test: PolicyTestSettings, policy: Policy, catalogue: Catalogue, classifier: Classifier
) -> str | None:
    """Return why a test fails, or None."""
    try:
        request = _request(test)
    except ApiError as error:
        return f"this is no request: {error.message}"
    text = subject(request.turns)
    task = describe(request, text, classifier)
    candidates = [_candidate(name, test, catalogue) for name in catalogue.names]
    facts = Facts(text=text, user=request.user, metadata=request.metadata, minute=12 * 60)
    expected = [test.expect] if isinstance(test.expect, str) else test.expect
    wanted = " or ".join(f"`{name}`" for name in expected)
    try:
        decision = decide(task, candidates, policy, facts)
    except Undecidable as refusal:
        return f"expected {wanted}, and nobody can answer: {refusal.message}"
    if decision.model in expected:
        return None
    return f"expected {wanted}, but the policy chooses `{decision.model}` ({decision.reason})"


def _request(test: PolicyTestSettings) -> Request:
    if test.request is not None:
        return parse("chat", msgspec.json.encode({"model": "auto", **test.request}))
    turns = (Turn("user", test.prompt or ""),)
    return Request(endpoint="chat", model="auto", stream=False, turns=turns)


def _candidate(name: str, test: PolicyTestSettings, catalogue: Catalogue) -> Candidate:
    listed = catalogue.listed(name)
    state = test.state.get(name, "ready")
    speed = test.tokens_per_s.get(name, TOKENS_PER_S)
    return Candidate(
        model=name,
        max_model_len=listed.max_model_len,
        vision=listed.vision,
        tools=listed.tools,
        state=state,
        retry_in_s=30.0 if state == "failed" else 0.0,
        load_s=LOAD_S if state in ("cold", "loading") else 0.0,
        queue_s=test.queue_s.get(name, 0.0),
        prefill_tokens_per_s=PREFILL * speed,
        decode_tokens_per_s=speed,
    )
