"""The decision: who can answer, and who of them should."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from config import ConditionSettings, RuleSettings
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

_DIGITS = 9


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
    3. A model that waits for a tool's result goes on, unless it has failed.
    4. Else the first rule that applies narrows the group, unless nothing would be left of it. So
       does a deadline; if nobody is expected to meet it, the quickest answers.
    5. In that group, the rule's first preferred model answers; else the most worthy, where worth
       is fit less the price of the time it takes (`assess`). A conversation stays where it is
       unless another is worth more by the policy's margin. The policy's default wins ties.
    6. With `serve_while_loading`, a model that is not in memory is loaded for later requests, and
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
    assessed = assess(task, candidates, policy)  # (1)
    worth = {each.model: each for each in assessed}
    capable = [each for each in candidates if worth[each.model].capable]
    if not capable:
        raise _refusal(task, candidates)
    doubts = {each.model: _doubts(task, each) for each in capable}  # (2)
    least = min(doubts.values())
    group = [each for each in capable if doubts[each.model] == least]
    although = f" although it {_in_words(least)}: nothing better is left" if any(least) else ""

    holders = [each for each in capable if each.holds_conversation and not each.retry_in_s]
    holder = holders[0].model if holders else None
    rule, notes = None, ""
    if holder and task.tool_loop:  # (3)
        group, although = holders[:1], ""
        ranking, why = [holder], "it waits for the result of its tool"
    else:
        out = {each.model: each.why_not or _in_words(doubts[each.model]) for each in assessed}
        group, rule, notes = _narrowed(task, facts, policy, group, worth, out)  # (4)
        ranking, why = _ranked(task, group, worth, policy, rule, holder)  # (5)
        if not (rule and rule.settings.prefer):
            best = min(capable, key=lambda each: _order(worth[each.model], policy)).model
            if any(doubts[best]) and best not in ranking:
                notes = f"; {best} skipped: it {_in_words(doubts[best])}{notes}"
    others = [
        each
        for each in capable
        if each.model not in ranking and not (rule and _left_out(each, rule.settings))
    ]
    others.sort(key=lambda each: (doubts[each.model], -worth[each.model].worth))

    model, loads = ranking[0], None
    reason = f"{why} -> {model}{although}{notes}"
    resident = {each.model for each in group if each.state == "ready"}
    if policy.serve_while_loading and model not in resident:  # (6)
        stand_in = next((name for name in ranking if name in resident), None)
        if stand_in is not None:
            reason += f"; {stand_in} answers while {model} loads"
            loads, model = model, stand_in
    return Decision(
        model=model,
        reason=reason,
        policy=policy.name,
        version=policy.version,
        rule=rule.settings.name if rule else None,
        loads=loads,
        ranking=(*ranking, *(each.model for each in others)),
        candidates=assessed,
    )


def assess(task: Task, candidates: Sequence[Candidate], policy: Policy) -> tuple[Assessment, ...]:
    """Return what an answer of each is worth: fit - price x seconds - displacement.

    Displacement is what others lose: those who want a model that must leave for this one, and those
    whose answers get slower, because all models share one processor (`_slowed_s`).
    """
    return tuple(_assess(task, each, candidates, policy) for each in candidates)


def _assess(
    task: Task, candidate: Candidate, candidates: Sequence[Candidate], policy: Policy
) -> Assessment:
    lack = _lack(task, candidate)
    fit = policy.fit(candidate.model, task)
    seconds = _predicted(task, candidate, policy)
    lost_s = candidate.displacement_s + _slowed_s(seconds, candidate, candidates)
    displacement = policy.price_per_second * lost_s
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


def _slowed_s(seconds: Seconds, candidate: Candidate, candidates: Sequence[Candidate]) -> float:
    """Return the seconds that the requests of other models lose while this one is computed.

    Models that are busy share the processor evenly, so beside k others each of their requests loses
    one part in k + 1 of that time (docs/simulation.md has what comes of it).
    """
    busy = held = 0
    for each in candidates:
        if each.held and each is not candidate:
            busy += 1
            held += each.held
    return (seconds.prefill + seconds.decode) * held / (busy + 1)


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


def _narrowed(
    task: Task,
    facts: Facts,
    policy: Policy,
    group: list[Candidate],
    worth: dict[str, Assessment],
    out: dict[str, str],
) -> tuple[list[Candidate], Rule | None, str]:
    """Return what rules and deadline leave of a group, the rule, and what to say of it.

    Parameters
    ----------
    out
        Why each model is not in the group, as a clause; those that leave it are added.
    """
    chosen, notes = None, ""
    skipped: dict[str, str] = {}
    for rule in policy.rules:
        if rule.applies(task, facts):
            why_out = {each.model: _left_out(each, rule.settings) for each in group}
            left = [each for each in group if not why_out[each.model]]
            prefer = rule.settings.prefer
            if any(prefer is None or each.model in prefer for each in left):
                group, chosen, out = left, rule, out | why_out
                break
            skipped |= {**_missed(prefer, left, out | why_out), **skipped}
            if prefer is None:
                notes += f"; rule {rule.settings.name} passed over: it leaves no model"
    deadline = policy.deadline(facts, chosen)
    if deadline is not None:
        seconds = {each.model: worth[each.model].predicted_seconds.total for each in group}
        in_time = [each for each in group if seconds[each.model] <= deadline]
        if not in_time:
            notes += f"; nobody is expected to answer within {deadline:g} s"
            quickest = min(seconds.values())
            in_time = [each for each in group if seconds[each.model] == quickest]
        group = in_time
        out = {name: f"is expected to take {each:.1f} s" for name, each in seconds.items()} | {
            name: why for name, why in out.items() if why
        }
    if chosen:
        skipped |= {**_missed(chosen.settings.prefer, group, out), **skipped}
    said = "".join(f"; {name} skipped: it {why}" for name, why in skipped.items())
    return group, chosen, said + notes


def _missed(
    prefer: Sequence[str] | None, left: Sequence[Candidate], out: dict[str, str]
) -> dict[str, str]:
    """Return the preferred models before the first that is left, each with why it is not."""
    able = {each.model for each in left}
    missed = itertools.takewhile(lambda name: name not in able, prefer or ())
    return {name: out.get(name, "is not there") for name in missed}


def _left_out(candidate: Candidate, rule: RuleSettings) -> str:
    """Return why a rule leaves `candidate` out, as a clause, or an empty string if it does not."""
    model = candidate.model
    if (rule.only is not None and model not in rule.only) or model in (rule.exclude or ()):
        return "is left out by the rule"
    cap = rule.cap.get(model)
    if cap is not None and candidate.held >= cap:
        return f"is capped at {_several(cap, 'request')}"
    return ""


def _order(assessment: Assessment, policy: Policy) -> tuple[float, bool]:
    """Return what sorts the most worthy first, and of those the default."""
    return -_rounded(assessment), assessment.model != policy.default


def _ranked(
    task: Task,
    group: list[Candidate],
    worth: dict[str, Assessment],
    policy: Policy,
    rule: Rule | None,
    holder: str | None,
) -> tuple[list[str], str]:
    """Return the models of the group, best first, and why the first one is."""
    order = sorted(
        (each.model for each in group),
        key=lambda name: _order(worth[name], policy),
    )

    def first(names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*names, *order]))

    because = f"rule {rule.settings.name}: {_because(task, rule.settings.when)}" if rule else ""
    preferred = [name for name in (rule and rule.settings.prefer) or () if name in order]
    if preferred:
        return first(preferred), because
    if holder in order and holder != order[0]:
        gain = _rounded(worth[order[0]]) - _rounded(worth[holder])
        if round(gain, _DIGITS) <= policy.switch_margin:
            return first([holder]), f"{because or _kind(task)}, the conversation stays"
    return order, f"{because or _kind(task)}, {_merit(worth, order, policy)}"


def _rounded(assessment: Assessment) -> float:
    """Return the worth as it is compared: sums in another order are no difference."""
    return round(assessment.worth, _DIGITS)


def _kind(task: Task) -> str:
    return f"{task.label} ({task.confidence:.0%} sure)" if task.label != "general" else "general"


def _merit(worth: dict[str, Assessment], order: list[str], policy: Policy) -> str:
    """Return why the first of `order` is the best of them."""
    best = worth[order[0]]
    if len(order) == 1:
        return "the only one left"
    next_best = worth[order[1]]
    if _rounded(best) == _rounded(next_best) and best.model == policy.default:
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


def _in_words(doubts: tuple[bool, bool]) -> str:
    failed, tight = doubts
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
