"""The decision: who can answer, and who of them should."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from config import ConditionSettings
from policies.policy import Policy, Rule
from policies.words import Assessment, Candidate, Decision, Facts, Seconds, Task

MORE, FEWER = 0.4, 0.2
"""How far a model's own count of the prompt may be above and below `Task.prompt_tokens`.

The estimate is made with one vocabulary for all models; `docs/routing.md` has the measured ratios.
"""

ANSWER_TOKENS = 512
"""Room for the answer that makes a context surely enough.

A client's `max_tokens` is an upper bound, which chat apps set far above what they get, so it counts
where it is less. In a small context a quarter is enough.
"""

FAR_MORE = 8
"""How many times a named model's context an estimate must be to refuse without counting exactly."""


NO_FACTS = Facts()


class _Skill(NamedTuple):
    has: str
    lacks: str
    param: str


_IMAGES = _Skill("reads images", "reads no images", "messages")
_TOOLS = _Skill("calls tools", "calls no tools", "tools")


class Undecidable(Exception):
    """Nothing can answer the request as it is; the client gets this as a 400.

    Attributes
    ----------
    message
        What was asked and what the models offer. Never contains the client's text.
    param
        The field at fault (`messages` or `tools`), or None when it takes both.
    code
        `context_length_exceeded` or `no_capable_model`.
    """

    def __init__(self, message: str, *, param: str | None, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def decide(
    task: Task, candidates: Sequence[Candidate], policy: Policy, facts: Facts = NO_FACTS
) -> Decision:
    """Return the model that answers `task`, and why.

    1. What a model cannot do is never traded: it is out.
    2. Of the others, those that failed and are not tried again yet come last, and before them
       those whose context may not be enough. Only the best such group counts; if all have failed,
       the client sees the failure of the one that it would have had.
    3. The first rule that applies narrows the group, unless nothing would be left of it. So does
       a deadline, if any model is expected to meet it.
    4. In that group, the model that waits for a tool's result goes on; else the rule's first
       preferred model answers; else the most worthy, where worth is fit less the price of the
       time it takes (`assess`). A conversation stays where it is unless another is worth more by
       the policy's margin. The policy's default wins ties.
    5. With `serve_while_loading`, a model that is not in memory is loaded for later requests, and
       the next best one that is in memory answers this one, if there is one.

    Parameters
    ----------
    task
        What the request is.
    candidates
        The models as they are now, in the order of the configuration, which breaks ties.
    policy
        What the operator chose.
    facts
        What else rules may look at.

    Raises
    ------
    Undecidable
        No candidate is capable.
    """
    assessed = tuple(assess(task, each, policy) for each in candidates)  # (1)
    capable = [each for each, found in zip(candidates, assessed, strict=True) if found.capable]
    if not capable:
        raise _refusal(task, candidates)
    doubts = {each.model: _doubts(task, each) for each in capable}  # (2)
    least = min(doubts.values())
    group = [each for each in capable if doubts[each.model] == least]
    worth = {each.model: each for each in assessed}

    notes = ""
    if any(least):
        notes = f" although it {_in_words(least)}: nothing better is left"
    chosen, skipped = None, ""
    for rule in policy.rules:  # (3)
        if rule.applies(task, facts):
            left, missed = _narrowed(group, rule)
            for name in missed:
                known = worth.get(name)
                reason = (known and known.why_not) or _in_words(doubts.get(name)) or "is not there"
                skipped += f"; {name} skipped: it {reason}"
            if left:
                group, chosen = left, rule
                break
    of_rule = chosen.settings.deadline_s if chosen else None
    limits = (policy.deadline_s, facts.deadline_s, of_rule)
    deadline = min((each for each in limits if each is not None), default=None)
    late = ""
    if deadline is not None:
        in_time = [e for e in group if worth[e.model].predicted_seconds.total <= deadline]
        late = "" if in_time else f"; nobody is expected to answer within {deadline:g} s"
        quickest = min(group, key=lambda e: worth[e.model].predicted_seconds.total)
        group = in_time or [quickest]

    ranking, why = _ranked(task, group, worth, policy, chosen)  # (4)
    model = ranking[0]
    reason = f"{why} -> {model}{notes}{skipped}{late}"
    loads = None
    resident = {each.model for each in group if each.state == "ready"}
    if policy.serve_while_loading and model not in resident:  # (5)
        stand_in = next((each for each in ranking if each in resident), None)
        if stand_in is not None:
            reason += f"; {stand_in} answers while {model} loads"
            loads, model = model, stand_in
    return Decision(
        model=model,
        reason=reason,
        policy=policy.name,
        version=policy.version,
        rule=chosen.settings.name if chosen else None,
        loads=loads,
        ranking=(*ranking, *(e.model for e in capable if e.model not in ranking)),
        candidates=assessed,
    )


def assess(task: Task, candidate: Candidate, policy: Policy) -> Assessment:
    """Return what an answer of `candidate` is worth: fit - price x seconds - displacement."""
    lack = _lack(task, candidate)
    fit = policy.fit(candidate.model, task)
    seconds = _predicted(task, candidate, policy)
    displacement = policy.price_per_second * candidate.displacement_s
    return Assessment(
        model=candidate.model,
        capable=not lack,
        why_not=lack or None,
        fit=fit,
        predicted_seconds=seconds,
        displacement=displacement,
        worth=fit - policy.price_per_second * seconds.total - displacement,
        state=candidate.state,
    )


def _predicted(task: Task, candidate: Candidate, policy: Policy) -> Seconds:
    unread = max(task.prompt_tokens - candidate.cached_tokens, 0)
    expected = policy.output_tokens.get(task.label, ANSWER_TOKENS)
    answer = min(expected, task.output_tokens or expected)
    prefill = unread / candidate.prefill_tokens_per_s
    decode = answer / candidate.decode_tokens_per_s
    return Seconds(
        load=candidate.load_s,
        queue=candidate.queue_s,
        prefill=prefill,
        decode=decode,
        total=candidate.load_s + candidate.queue_s + prefill + decode,
    )


def _narrowed(group: list[Candidate], rule: Rule) -> tuple[list[Candidate], list[str]]:
    """Return what a rule leaves of a group, and the models it prefers that are not in it."""
    settings = rule.settings
    left = [
        each
        for each in group
        if (settings.only is None or each.model in settings.only)
        and each.model not in (settings.exclude or ())
        and each.held < settings.cap.get(each.model, float("inf"))
    ]
    if settings.prefer is None:
        return left, []
    able = {each.model for each in left}
    missed = list(itertools.takewhile(lambda name: name not in able, settings.prefer))
    return (left if len(missed) < len(settings.prefer) else []), missed


def _ranked(
    task: Task,
    group: list[Candidate],
    worth: dict[str, Assessment],
    policy: Policy,
    rule: Rule | None,
) -> tuple[list[str], str]:
    """Return the models of the group, best first, and why the first one is."""
    order = sorted(
        (each.model for each in group),
        key=lambda name: (-round(worth[name].worth, 9), name != policy.default),
    )
    holder = next((each.model for each in group if each.holds_conversation), None)

    def first(*names: str) -> list[str]:
        return list(dict.fromkeys([*names, *order]))

    if holder and task.tool_loop:
        return first(holder), "it waits for the result of its tool"
    because = f"rule {rule.settings.name}: {_because(task, rule.settings.when)}" if rule else ""
    if rule and rule.settings.prefer:
        able = set(order)
        return first(*(name for name in rule.settings.prefer if name in able)), because
    best, stays = order[0], ""
    if (
        holder
        and holder != best
        and worth[holder].worth + policy.switch_margin >= worth[best].worth
    ):
        order, stays = first(holder), "the conversation stays"
    parts = [because or _kind(task), stays or _merit(worth, order, policy)]
    return order, ", ".join(parts)


def _kind(task: Task) -> str:
    return f"{task.label} ({task.confidence:.0%} sure)" if task.label != "general" else "general"


def _merit(worth: dict[str, Assessment], order: list[str], policy: Policy) -> str:
    """Return why the first of `order` is the best of them."""
    best = worth[order[0]]
    if len(order) == 1:
        return "the only one left"
    next_best = worth[order[1]]
    if round(best.worth, 9) == round(next_best.worth, 9) and best.model == policy.default:
        return "the default"
    seconds = best.predicted_seconds.total
    return (
        f"fit {best.fit:.2f}, {seconds:.1f} s: worth {best.worth:.2f}, "
        f"next is {next_best.model} with {next_best.worth:.2f}"
    )


def unable(task: Task, candidate: Candidate) -> Undecidable | None:
    """Return the refusal if `candidate`, named by the client, cannot do `task`; else None.

    The engine counts the prompt with its own vocabulary, so a model that was asked for by name is
    not refused on an estimate, unless that is far off: such a prompt would occupy the service.
    """
    missing = [skill for skill in _needs(task) if not _has(candidate, skill)]
    if not missing:
        too_long = task.prompt_tokens > FAR_MORE * candidate.max_model_len
        return _too_long(task, candidate, "") if too_long else None
    lacks = " and ".join(skill.lacks for skill in missing)
    return _unskilled(task, missing, f"the model `{candidate.model}` {lacks}")


def _needs(task: Task) -> list[_Skill]:
    return [_IMAGES] * (task.images > 0) + [_TOOLS] * (task.tools > 0)


def _has(candidate: Candidate, skill: _Skill) -> bool:
    return candidate.vision if skill is _IMAGES else candidate.tools


def _lack(task: Task, candidate: Candidate) -> str:
    """Return why `candidate` cannot do `task`, as a clause, or an empty string if it can."""
    missing = [skill.lacks for skill in _needs(task) if not _has(candidate, skill)]
    if missing:
        return " and ".join(missing)
    if task.prompt_tokens * (1 - FEWER) >= candidate.max_model_len:
        return f"has a context of only {candidate.max_model_len} tokens"
    return ""


def _doubts(task: Task, candidate: Candidate) -> tuple[bool, bool]:
    """Return whether a capable candidate is broken now, and whether its context may be short."""
    context = candidate.max_model_len
    answer = min(task.output_tokens or ANSWER_TOKENS, ANSWER_TOKENS, context // 4)
    return candidate.retry_in_s > 0, task.prompt_tokens * (1 + MORE) + answer > context


def _in_words(doubts: tuple[bool, bool] | None) -> str:
    failed, tight = doubts or (False, False)
    words = ["has failed"] * failed + ["may have too short a context"] * tight
    return " and ".join(words)


def _because(task: Task, when: ConditionSettings) -> str:
    """Return the facts that made the condition hold; never text of the client's."""
    bounded = {
        "confidence": f"{task.confidence:.0%} sure",
        "difficulty": f"{task.difficulty:.0%} hard",
        "prompt_tokens": f"about {task.prompt_tokens} prompt tokens",
        "turns": _several(task.turns, "turn"),
    }
    facts = [_kind(task)] if when.task else []
    for key, text in bounded.items():
        if any(getattr(when, f"{key}_{end}", None) is not None for end in ("min", "max")):
            facts.append(text)
    if when.images is not None:
        facts.append(_several(task.images, "image"))
    if when.tools is not None:
        facts.append(_several(task.tools, "tool"))
    if when.language:
        facts.append(f"language {when.language}")
    if when.output:
        facts.append(f"{when.output} asked for")
    for key in ("keywords", "regex", "user", "headers", "metadata", "hours"):
        if getattr(when, key):
            facts.append(f"{key} match" if key != "hours" else f"between {when.hours}")
    return ", ".join(facts) or "always"


def _refusal(task: Task, candidates: Sequence[Candidate]) -> Undecidable:
    """Return what to tell the client when no candidate is capable."""
    needs = _needs(task)
    skilled = [each for each in candidates if all(_has(each, skill) for skill in needs)]
    if not skilled:
        # Name what nobody has; where each skill is there but never two in one model, name both.
        nobody = [skill for skill in needs if not any(_has(each, skill) for each in candidates)]
        missing = nobody or needs
        who = f"no model here {' and '.join(skill.has for skill in missing)}"
        return _unskilled(task, missing, who)
    largest = max(skilled, key=lambda candidate: candidate.max_model_len)
    return _too_long(task, largest, f" (`{largest.model}`, the largest model that could answer)")


def _too_long(task: Task, candidate: Candidate, who: str) -> Undecidable:
    return Undecidable(
        # Clients look for the words up to the number.
        f"This model's maximum context length is {candidate.max_model_len} tokens{who}. However, "
        f"the prompt is about {task.prompt_tokens} tokens. Shorten it.",
        param="messages",
        code="context_length_exceeded",
    )


def _unskilled(task: Task, missing: list[_Skill], problem: str) -> Undecidable:
    counts = {_IMAGES: _several(task.images, "image"), _TOOLS: _several(task.tools, "tool")}
    return Undecidable(
        f"The request has {' and '.join(counts[skill] for skill in missing)}, but {problem}. "
        "Leave them out, or use a model that can; GET /v1/models lists them.",
        param=missing[0].param if len(missing) == 1 else None,
        code="no_capable_model",
    )


def _several(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
