"""The decision: who can answer, and who of them should."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from config import ConditionSettings, RoutingSettings
from policies.words import Candidate, Decision, Exclusion, Task

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


def decide(task: Task, candidates: Sequence[Candidate], routing: RoutingSettings) -> Decision:
    """Return the model that answers `task`, and why.

    1. What a model cannot do is never traded: it is out.
    2. Of the others, those that failed and are not tried again yet come last, and before them
       those whose context may not be enough. Only the best such group counts; if all have failed,
       the client sees the failure of the one that it would have had.
    3. In that group, the first rule that applies and prefers one of its models decides; else the
       default of the routing; else the smallest context, or the largest if none is surely enough.
    4. With `serve_while_loading`, a model that is not in memory is loaded for later requests, and
       the next of the same wishes that is in memory answers this one, if there is one.

    Parameters
    ----------
    task
        What the request is.
    candidates
        The models as they are now, in the order of the configuration, which breaks ties.
    routing
        What the operator chose.

    Raises
    ------
    Undecidable
        No candidate is capable.
    """
    lacks = {candidate.model: _lack(task, candidate) for candidate in candidates}  # (1)
    capable = [candidate for candidate in candidates if not lacks[candidate.model]]
    if not capable:
        raise _refusal(task, candidates)

    doubts = {candidate.model: _doubts(task, candidate) for candidate in capable}  # (2)
    least = min(doubts.values())
    group = [candidate for candidate in capable if doubts[candidate.model] == least]

    able = {candidate.model for candidate in group}  # (3)
    skipped: dict[str, None] = {}
    for model, rule, why in _wishes(task, routing):  # noqa: B007 - the last ones are used below
        if model in able:
            break
        skipped[model] = None
    else:
        pick, which = min, "smallest context that is enough"
        if least[1]:  # none surely is; the largest is the likeliest to be
            pick, which = max, "largest context"
        model, rule = pick(group, key=lambda candidate: candidate.max_model_len).model, None
        why = f"{which} -> {model}"

    if any(least):
        why += f" although it {_in_words(least)}: nothing better is left"
    for name in skipped:
        reason = lacks[name] or _in_words(doubts[name]) if name in lacks else "is not there"
        why += f"; {name} skipped: it {reason}"
    loads = None
    resident = {candidate.model for candidate in group if candidate.state == "ready"}
    if routing.serve_while_loading and model not in resident:  # (4)
        stand_in = next((each for each, _, _ in _wishes(task, routing) if each in resident), None)
        if stand_in is not None:
            why += f"; {stand_in} answers while {model} loads"
            loads, model = model, stand_in
    return Decision(
        model=model,
        reason=_printable(why),
        rule=rule,
        loads=loads,
        excluded=tuple(Exclusion(name, lack) for name, lack in lacks.items() if lack),
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


def _wishes(task: Task, routing: RoutingSettings) -> Iterator[tuple[str, str | None, str]]:
    """Yield the models the operator would take, best first, each with its rule and the reason.

    Every reason has the form `why -> model`.
    """
    why = "no rule applies: the default"
    for rule in routing.rules:
        if _applies(task, rule.when):
            why = "the default"
            for model in rule.prefer:
                yield model, rule.name, f"rule {rule.name}: {_because(task, rule.when)} -> {model}"
    yield routing.default, None, f"{why} -> {routing.default}"


def _applies(task: Task, when: ConditionSettings) -> bool:
    return (
        when.task in (None, task.label)
        and when.language in (None, task.language)
        and when.images in (None, task.images > 0)
        and when.tools in (None, task.tools > 0)
        and (when.prompt_tokens_min is None or task.prompt_tokens >= when.prompt_tokens_min)
        and (when.prompt_tokens_max is None or task.prompt_tokens <= when.prompt_tokens_max)
    )


def _because(task: Task, when: ConditionSettings) -> str:
    """Return the facts that made the condition hold."""
    facts = []
    if when.task:
        sure = f" ({task.confidence:.0%} sure)" if task.label != "general" else ""
        facts.append(task.label + sure)
    if when.prompt_tokens_min is not None or when.prompt_tokens_max is not None:
        facts.append(f"about {task.prompt_tokens} prompt tokens")
    if when.images is not None:
        facts.append(_several(task.images, "image"))
    if when.tools is not None:
        facts.append(_several(task.tools, "tool"))
    if when.language:
        facts.append(f"language {when.language}")
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


def _printable(text: str) -> str:
    """Return `text` fit for an HTTP header, whatever was put into a signal's name."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
