"""From a request to a task: what kind of work it is, and how much."""

import math
import re
from collections.abc import Sequence

from policies import Task
from router import features, tokens
from router.words import Request, Turn

TURN_TOKENS = 5
"""What a chat template adds to each turn.

ChatML (Qwen, SmolLM2) and Gemma write five tokens around one (`<|im_start|>`, the role, a newline,
`<|im_end|>`, a newline), Mistral and Phi fewer; the opening of the answer counts as one more turn.
"""

IMAGE_TOKENS = 256
"""What one image takes in Gemma 3, whatever its size."""

TOOL_CHARS_PER_TOKEN = 4
"""Characters of the tools' JSON per token."""

_FOLLOW_UP_WORDS = 12  # a longer turn stands for itself
_EARLIER_TURNS = 4  # how far back a short one can refer
_CONTEXT_SHARE = 0.5  # what evidence is worth that the user did not write

# How a turn begins, or what it says, that goes on with what was said before it.
_FOLLOW_UP = re.compile(
    r"^(?:and|but|now|then|also|ok(?:ay)?|same|why|y|pero|ahora|luego|entonces|tambien|vale|"
    r"lo mismo|por que)\b"
    r"|\b(?<!is )(?:it|them)\b"
    r"|\b(?:again|instead|shorter|faster|simpler|continue|go on|commit|otra vez|de nuevo|"
    r"en su lugar|mas (?:corto|rapido|simple|sencillo)|sigue|continua|esto|eso)\b"
    r"|\b(?:fix|change|improve|refactor|explain|test|run) (?:that|this)\b"
    r"|\b(?:arregla|corrige|haz|explica|mejora|cambia|prueba|ejecuta|optimiza|traduce|convierte|"
    r"acorta)(?:me|nos)?l[oa]s?\b"
)


def describe(request: Request) -> Task:
    """Return what `request` is, from its text alone. Never raises."""
    evidence = _evidence(request.turns)
    score = sum(evidence.values())
    is_code = score > features.THRESHOLD - 1e-9  # 0.6 + 0.4 may be a little less than 1
    last = _last_user(request.turns)
    images = sum(turn.images for turn in request.turns)
    return Task(
        label="code" if is_code else "general",
        confidence=_confidence(score),
        language=features.language(request.turns[last].text) if last is not None else None,
        prompt_tokens=_prompt_tokens(request, images),
        output_tokens=request.output_tokens,
        images=images,
        tools=request.tools,
        signals=dict(evidence),
    )


def _confidence(score: float) -> float:
    """Return how sure a label is: a half at the threshold, more with distance."""
    return round(1 / (1 + math.exp(-3 * abs(score - features.THRESHOLD))), 2)


def _prompt_tokens(request: Request, images: int) -> int:
    # All turns are counted as one text, because that is what has a bound on its time.
    prompt = tokens.count("\n".join(turn.text for turn in request.turns))
    template = TURN_TOKENS * (len(request.turns) + 1) if request.endpoint == "chat" else 0
    tools = math.ceil(request.tools_chars / TOOL_CHARS_PER_TOKEN)
    return prompt + template + tools + images * IMAGE_TOKENS


def _evidence(turns: Sequence[Turn]) -> dict[str, float]:
    """Return the evidence for and against code in the user's last task.

    The last user turn decides. A short one that goes on with what was said before ("now fix it")
    inherits the evidence of the turns it goes on with. What is not the user's counts half: answers
    and results of tools. System prompts do not count: they are about every task of a program.
    """
    last = _last_user(turns)
    if last is None:
        return {}
    found = features.evidence(turns[last].text)
    if last + 1 < len(turns):
        _inherit(found, "since then", features.evidence(turns[-1].text), _CONTEXT_SHARE)
    if not _is_follow_up(turns[last].text):
        return found
    for turn in reversed(turns[max(0, last - _EARLIER_TURNS) : last]):
        if turn.role == "user":
            _inherit(found, "earlier", features.evidence(turn.text), 1.0)
            if not _is_follow_up(turn.text):
                break
        elif turn.role in ("assistant", "tool", "function"):
            _inherit(found, "earlier answer", features.evidence(turn.text), _CONTEXT_SHARE)
        if sum(found.values()) >= features.THRESHOLD:
            break  # enough
    return found


def _last_user(turns: Sequence[Turn]) -> int | None:
    return next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)


def _is_follow_up(text: str) -> bool:
    """Return whether `text` only makes sense after what was said before it."""
    if len(text) > 20 * _FOLLOW_UP_WORDS:
        return False
    words = features.fold(text).lstrip("¿¡")
    return words.count(" ") < _FOLLOW_UP_WORDS and bool(_FOLLOW_UP.search(words))


def _inherit(found: dict[str, float], whose: str, evidence: dict[str, float], share: float) -> None:
    for name, weight in evidence.items():
        found.setdefault(f"{whose}: {name}", weight * share)
