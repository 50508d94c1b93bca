"""From a request to a task: what kind of work it is, and how much."""

import math
import re
from collections.abc import Sequence

from policies import Task
from router import features, tokens
from router.classifier import Classifier, crop
from router.difficulty import difficulty
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

SURE = 0.5
"""Least probability of a task; below it, a request is `general`, and no rule for a task applies."""

_FOLLOW_UP_WORDS = 12  # a longer turn stands for itself
_EARLIER_TURNS = 4  # how far back a short one can refer,
_EARLIER_CHARS = 300  # and how much of each of those turns says what it is about

# How a turn begins, or what it says, that goes on with what was said before it.
_FOLLOW_UP = re.compile(
    r"^(?:and|but|now|then|also|ok(?:ay)?|same|why|yes|yep|no|sure|still|another|nice[,.]|"
    r"y|pero|ahora|luego|entonces|tambien|vale|lo mismo|por que|si|dale|venga|otr[oa]|todavia|"
    r"(?:the |option |la |el |opcion )?(?:[1-9]|first|second|third|last|primer[oa]|segund[oa]|"
    r"tercer[oa]|ultim[oa])(?: one)?(?: |[.,]|$))(?:\W|$)"
    r"|\b(?<!is )(?:it|them)\b"
    r"|\b(?:again|instead|shorter|faster|simpler|continue|go on|go ahead|commit|this time|otra vez|"
    r"de nuevo|en su lugar|esta vez|mas (?:cort[oa]|rapido|simple|sencill[oa]|bonit[oa]|larg[oa])|"
    r"sigue|continua|esto|eso)\b"
    r"|\b(?:fix|change|improve|refactor|explain|test|run) (?:that|this)\b"
    r"|\b(?:arregla|corrige|haz|explica|mejora|cambia|prueba|ejecuta|optimiza|traduce|convierte|"
    r"acorta)(?:me|nos)?l[oa]s?\b"
)


def describe(request: Request, text: str, classifier: Classifier) -> Task:
    """Return what `request` is, from its text alone. Never raises.

    Parameters
    ----------
    text
        What is asked for: the `subject` of its turns.
    """
    has_words = any(map(str.isalnum, crop(text)))
    likely = classifier.probabilities(text) if has_words else {}
    label = max(likely, key=likely.__getitem__, default="general")
    confidence = likely.get(label, 0.0)
    label = label if confidence >= SURE else "general"
    images = sum(turn.images for turn in request.turns)
    return Task(
        label=label,
        confidence=round(confidence, 2),
        difficulty=round(difficulty(likely, len(text)), 2),
        output="json" if request.json else features.requested_output(crop(text), label),
        language=features.language(text),
        prompt_tokens=_prompt_tokens(request, images),
        output_tokens=request.output_tokens,
        images=images,
        tools=request.tools,
        turns=sum(turn.role == "user" for turn in request.turns),
        tool_loop=any(turn.role in ("tool", "function") for turn in request.turns[-1:]),
        signals={task: round(share, 3) for task, share in likely.items() if share >= 0.05},
    )


def subject(turns: Sequence[Turn]) -> str:
    """Return the text that says what is asked for.

    It is the user's last turn. A short one that goes on with what was said before ("now fix it")
    has the turns that it goes on with before it. System prompts say nothing of the task: they are
    about every task of a program. Nor do results of tools, which are material, nor what
    programs wrap around a person's words.
    """
    latest_first = (turn.text for turn in reversed(turns) if turn.role == "user")
    parts = [features.own_words(next(latest_first, ""))]
    while len(parts) <= _EARLIER_TURNS and _is_follow_up(parts[0]):
        earlier = next(latest_first, None)
        if earlier is None:
            break
        parts.insert(0, features.own_words(earlier)[:_EARLIER_CHARS])
    return "\n".join(parts)


def _prompt_tokens(request: Request, images: int) -> int:
    # All turns are counted as one text, because that is what has a bound on its time.
    prompt = tokens.count("\n".join(turn.text for turn in request.turns))
    template = TURN_TOKENS * (len(request.turns) + 1) if request.endpoint == "chat" else 0
    tools = math.ceil(request.tools_chars / TOOL_CHARS_PER_TOKEN)
    return prompt + template + tools + images * IMAGE_TOKENS


def _is_follow_up(text: str) -> bool:
    """Return whether `text` only makes sense after what was said before it."""
    if len(text) > 20 * _FOLLOW_UP_WORDS:
        return False
    words = features.fold(text).lstrip("¿¡")
    return words.count(" ") < _FOLLOW_UP_WORDS and bool(_FOLLOW_UP.search(words))
