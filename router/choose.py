"""From a request to a model: everything the decision needs, put together at one moment."""

import time
from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from config import AUTO, is_auto
from engines.pool import Pool
from engines.words import Snapshot
from policies import (
    Assessment,
    Candidate,
    Decision,
    Facts,
    Policy,
    Task,
    Undecidable,
    assess,
    decide,
    unable,
)
from router.catalogue import Catalogue, Listed
from router.classifier import Classifier
from router.conversations import Conversations, Place, Session
from router.describe import describe, subject
from router.errors import ApiError
from router.forecast import Forecast
from router.policies import DEFAULT, Policies
from router.words import Request

POLICY_HEADER = "x-axion-policy"
"""Names a policy for `auto`, for clients whose model cannot be `auto:NAME`."""

SESSION_HEADER = "x-session-id"
"""Names the conversation, for clients that do not send the whole of it."""

_SESSION_KEYS = ("session_id", "conversation_id", "thread_id", "chat_id")  # of `metadata`


class Choice(Struct, kw_only=True):
    """A decision, and what it was made of.

    Attributes
    ----------
    asked
        What the client asked for, aliases resolved: `auto`, `auto:NAME` or a model.
    text
        What the user asks.
    policies
        All that were in use, by name.
    session
        Whose conversation it is, and what they call it.
    place
        Where the conversation is, or None.
    describe_us, decide_us
        What the two steps took, in microseconds.
    """

    request: Request
    asked: str
    task: Task
    text: str
    facts: Facts
    policy: Policy
    policies: Mapping[str, Policy]
    candidates: list[Candidate]
    decision: Decision
    session: Session
    place: Place | None
    describe_us: float
    decide_us: float

    @property
    def is_free(self) -> bool:
        """Whether the service may choose another model."""
        return is_auto(self.asked)

    @property
    def deadline_s(self) -> float | None:
        """When the answer is of no use any more, in seconds from the start of the request."""
        rules = {rule.settings.name: rule for rule in self.policy.rules}
        return self.policy.deadline(self.facts, rules.get(self.decision.rule or ""))

    def candidate(self, model: str) -> Candidate:
        """Return a model as the decision saw it."""
        return next(each for each in self.candidates if each.model == model)

    def assessment(self, model: str) -> Assessment:
        """Return what the decision thought of a model."""
        return next(each for each in self.decision.candidates if each.model == model)


class Chooser:
    """Makes choices. Loads nothing, and remembers nothing of those it makes.

    Parameters
    ----------
    forecast
        How fast the models are.
    conversations
        Where conversations are.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        classifier: Classifier,
        pool: Pool,
        policies: Policies,
        forecast: Forecast,
        conversations: Conversations,
    ) -> None:
        self._catalogue = catalogue
        self._classifier = classifier
        self._pool = pool
        self.policies = policies
        self._forecast = forecast
        self._conversations = conversations

    def resolve(self, name: str) -> str:
        """Return what a client's `model` stands for. Raises ApiError `model_not_found`."""
        return self._catalogue.resolve(name, self.policies.names)

    def choose(self, request: Request, headers: Mapping[str, str], policy: str = "") -> Choice:
        """Return the model for a request, and why.

        Parameters
        ----------
        headers
            Of the request, by lower-case name.
        policy
            Takes this one instead of what the request asks for.

        Raises
        ------
        ApiError
            There is no such model or policy, or none can answer.
        """
        asked = self.resolve(request.model)
        began = time.perf_counter()
        text = subject(request.turns)
        task = describe(request, text, self._classifier)
        described = time.perf_counter()
        session = _session(request, headers)
        place = self._conversations.find(session, request.turns)
        now = time.localtime()
        facts = Facts(
            text=text,
            user=request.user,
            headers=headers,
            metadata=request.metadata,
            minute=now.tm_hour * 60 + now.tm_min,
            deadline_s=request.deadline_ms / 1000 if request.deadline_ms else None,
        )
        named = asked.partition(":")[2]
        if asked == AUTO:  # a model that is named is not chosen by a policy
            named = headers.get(POLICY_HEADER, "")
        chosen = self._policy(policy or named)
        candidates = [self._candidate(each, place) for each in self._pool.snapshots()]
        try:
            if is_auto(asked):
                decision = decide(task, candidates, chosen, facts)
                via = f"alias {request.model}; " if request.model != asked else ""
                decision = structs.replace(decision, reason=via + decision.reason)
            else:
                decision = self._named(request, asked, task, candidates, chosen)
        except Undecidable as refusal:
            param = refusal.param
            if param == "messages" and request.endpoint == "completions":
                param = "prompt"
            raise ApiError(refusal.message, refusal.code, param=param) from None
        return Choice(
            request=request,
            asked=asked,
            task=task,
            text=text,
            facts=facts,
            policy=chosen,
            policies=self.policies.current,
            candidates=candidates,
            decision=decision,
            session=session,
            place=place,
            describe_us=1e6 * (described - began),
            decide_us=1e6 * (time.perf_counter() - described),
        )

    def again(
        self, choice: Choice, without: Sequence[str], spent_s: float, longer_than: int = 0
    ) -> str | None:
        """Return the next best model for a request that some could not answer, or None.

        Parameters
        ----------
        without
            The models that were tried.
        spent_s
            What the request has taken so far, in seconds.
        longer_than
            Only models with a longer context than this, in tokens; 0 is for failures, after which
            another that is known to have failed is of no use.
        """
        allowed = [
            each.model
            for each in choice.candidates
            if each.model not in without and each.max_model_len > longer_than
        ]
        decision = self._among(choice, allowed, spent_s, only_sound=not longer_than)
        return decision.model if decision else None

    def better(self, choice: Choice, than: str, tried: Sequence[str], spent_s: float) -> str | None:
        """Return the next best model whose answer is likely to be better, or None.

        None also where its answer is not expected before the deadline.

        Parameters
        ----------
        than
            The model that has answered.
        tried
            Models that could not answer.
        spent_s
            What the request has taken so far, in seconds.
        """
        fits = {each.model: each.fit for each in choice.decision.candidates}
        allowed = [name for name, fit in fits.items() if fit > fits[than] and name not in tried]
        decision = self._among(choice, allowed, spent_s, only_sound=True)
        if decision is None:
            return None
        chosen = next(each for each in decision.candidates if each.model == decision.model)
        left_s = _left_s(choice, spent_s)
        late = left_s is not None and chosen.predicted_seconds.total > left_s
        return None if late else decision.model

    def _among(
        self, choice: Choice, allowed: Sequence[str], spent_s: float, *, only_sound: bool
    ) -> Decision | None:
        """Decide again as things are now, without what the policy's rule left out."""
        facts = structs.replace(choice.facts, deadline_s=_left_s(choice, spent_s))
        left = [
            self._candidate(each, choice.place)
            for each in self._pool.snapshots()
            if each.model in allowed
            and each.model in choice.decision.ranking
            and not (only_sound and each.retry_in_s > 0)
        ]
        try:
            return decide(choice.task, left, choice.policy, facts) if left else None
        except Undecidable:
            return None

    def _policy(self, name: str) -> Policy:
        found = self.policies.get(name or DEFAULT)
        if found is None:
            raise ApiError(
                f"There is no such policy. There are: {', '.join(self.policies.names)}. Send one "
                f"of them in `{POLICY_HEADER}` or as `auto:NAME`, or leave it out.",
                "policy_not_found",
            )
        return found

    def _named(
        self,
        request: Request,
        asked: str,
        task: Task,
        candidates: list[Candidate],
        policy: Policy,
    ) -> Decision:
        """Return the decision for a model that the client names: it is never replaced."""
        named = next(each for each in candidates if each.model == asked)
        if refusal := unable(task, named):
            raise refusal
        via = "named by the client" if request.model == asked else f"alias {request.model}"
        return Decision(
            model=asked,
            reason=f"{via} -> {asked}",
            policy=policy.name,
            version=policy.version,
            ranking=(asked,),
            candidates=assess(task, candidates, policy),
        )

    def _candidate(self, status: Snapshot, place: Place | None) -> Candidate:
        return candidate(status, self._catalogue.known(status), self._forecast, place)


def _left_s(choice: Choice, spent_s: float) -> float | None:
    """Return how much of its time a request has left, or None where nobody waits for it."""
    return None if choice.deadline_s is None else max(choice.deadline_s - spent_s, 0.0)


def candidate(
    status: Snapshot, listed: Listed, forecast: Forecast, place: Place | None
) -> Candidate:
    """Return a model as the decision looks at it.

    Parameters
    ----------
    status
        How it is now.
    listed
        What it can do.
    place
        Where the conversation is, or None.
    """
    name, size = status.model, status.footprint_bytes
    here = place if place and place.model == name else None
    still_cached = here and here.load == status.loads and status.state == "ready"
    return Candidate(
        model=name,
        max_model_len=listed.max_model_len,
        vision=listed.vision,
        tools=listed.tools,
        state=status.state,
        retry_in_s=status.retry_in_s,
        held=status.held,
        load_s=status.load_in_s,
        queue_s=status.queue_s,
        prefill_tokens_per_s=forecast.prefill_tokens_per_s(name, size),
        decode_tokens_per_s=forecast.decode_tokens_per_s(name, status.running, size),
        cached_tokens=here.tokens if here and still_cached else 0,
        holds_conversation=here is not None,
        evicts=status.evicts,
        displacement_s=status.displacement_s,
    )


def api_key(headers: Mapping[str, str]) -> str:
    """Return the API key of a request, however it is sent, or ""."""
    return headers.get("authorization") or headers.get("x-api-key") or ""


def _session(request: Request, headers: Mapping[str, str]) -> Session:
    """Return whose conversation it is, and what they call it."""
    named = headers.get(SESSION_HEADER) or next(
        (request.metadata[key] for key in _SESSION_KEYS if request.metadata.get(key)), ""
    )
    return Session(owner=f"{api_key(headers)}\x00{request.user}", name=named)
