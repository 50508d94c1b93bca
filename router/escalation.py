"""Whether an answer is good enough, as far as that can be seen without another model."""

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from config.policy import EscalationSettings
from router.choose import Choice
from router.features import fold
from router.words import Endpoint

LOGPROB_FLOOR = -20.0
"""Of one token: an engine writes an impossible one as -9999, which would be all of a mean."""

_OPENING_CHARS = 200  # of an answer; a refusal begins with itself

# Verbs, because "I can't believe" and "no puedo más" are how stories begin, too.
_HELP_EN = (
    "help|assist|provide|do|answer|fulfil|fulfill|comply|generate|create|write|access|browse|see|"
    "view|give|discuss|continue|complete|process|perform|offer|share|engage|support|tell"
)
_HELP_ES = (
    "ayudar|asistir|proporcionar|hacer|responder|cumplir|generar|crear|escribir|acceder|navegar|"
    "ver|dar|hablar|continuar|completar|procesar|realizar|ofrecer|compartir|decir"
)
_REFUSAL = re.compile(
    r"(?:(?:i'm|i am) (?:\w+ )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)\W+(?:but )?"
    r"(?:as an? [\w -]{2,30}, )?"
    r"i(?: can(?:not|'t| not)|(?:'m| am) (?:not|unable)| won't| will not| (?:do not|don't) have)\b"
    rf"|i (?:can(?:not|'t| not)|won't|will not) (?:\w+ )?(?:{_HELP_EN})\b"
    r"|i(?:'m| am) (?:not able|unable) to\b"
    r"|as an (?:ai|artificial intelligence)\b|as a (?:large )?language model\b"
    r"|(?:lo siento|lo lamento|disculpa|perdona|perdon|lamentablemente|desafortunadamente|"
    r"me temo que)\W+(?:mucho\W+)?(?:pero )?"
    r"no (?:puedo|me es posible|soy capaz|tengo (?:acceso|la capacidad))\b"
    rf"|no (?:puedo|me es posible) (?:{_HELP_ES})(?:te|le|les|lo|la|los|las)?\b"
    r"|como (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje|asistente de ia)\b"
)
_FENCED = re.compile(r"```\w*[ \t]*\r?\n(.*?)```", re.DOTALL)


class _Token(Struct):
    logprob: float


class _Logprobs(Struct):
    content: list[_Token] | None = None
    token_logprobs: list[float | None] | None = None


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Raw] | None = None


class _Choice(Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Answer(Struct):
    choices: list[_Choice]


class _Completion(Struct):
    echo: Any = None  # the engine takes more for true than JSON's own


_answer = msgspec.json.Decoder(_Answer)
_completion = msgspec.json.Decoder(_Completion)
_fields = msgspec.json.Decoder(dict[str, Raw])


class Exam:
    """What the answer to one request must pass.

    Parameters
    ----------
    strict_json
        The answer must be JSON and nothing else.
    any_json
        The answer must be JSON, or have it in a block of code.
    """

    def __init__(
        self,
        settings: EscalationSettings,
        endpoint: Endpoint,
        *,
        strict_json: bool = False,
        any_json: bool = False,
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._strict_json = strict_json
        self._any_json = any_json
        self._adds_logprobs = False

    def question(self, body: bytes) -> bytes:
        """Return the request as the engine gets it: it also asks for what is looked at."""
        fields = _fields.decode(body)
        # What is not asked for is false or null: 0 asks for the probability of each token alone.
        asked = bytes(fields.get("logprobs", b"")) not in (b"", b"null", b"false")
        if self._settings.logprob_min is None or asked:
            return body
        self._adds_logprobs = True
        fields["logprobs"] = Raw(b"true" if self._endpoint == "chat" else b"0")
        return msgspec.json.encode(fields)

    def doubt(self, answer: bytes) -> str | None:
        """Return why none of the answers is good enough, as a few words, or None."""
        try:
            choices = _answer.decode(answer).choices
        except (msgspec.MsgspecError, UnicodeError):  # nothing that could be judged
            return None
        doubts = [self._doubt(choice) for choice in choices]
        return doubts[0] if doubts and all(doubts) else None

    def reply(self, answer: bytes) -> bytes:
        """Return the answer as the client gets it: without what only the service asked for."""
        if not self._adds_logprobs:
            return answer
        try:
            fields: dict[str, Any] = _fields.decode(answer)
            choices = msgspec.json.decode(fields["choices"], type=list[dict[str, Raw]])
        except (msgspec.MsgspecError, UnicodeError, KeyError):
            return answer
        fields["choices"] = [{**choice, "logprobs": None} for choice in choices]
        return msgspec.json.encode(fields)

    def _doubt(self, choice: _Choice) -> str | None:
        message = choice.message or _Message(content=choice.text)
        if message.tool_calls:
            return None  # calls are no text, and a tool says itself what is wrong with one
        text = message.content or ""
        if self._settings.refusal and (message.refusal or is_refusal(text)):
            return "a refusal"
        # One that was cut off is no better from another model.
        if self._settings.invalid_json and choice.finish_reason != "length":
            if self._strict_json and not _is_json(text):
                return "no valid JSON"
            if self._any_json and not _is_json(_in_fences(text)):
                return "no valid JSON"
        least, mean = self._settings.logprob_min, _mean(choice.logprobs)
        if least is not None and mean is not None and mean < least:
            return f"mean log-probability {mean:.2f}"
        return None


def exam_of(choice: Choice, body: bytes) -> Exam | None:
    """Return what the answer to a request must pass, or None where every answer is given.

    Only a whole answer can be judged before the client has it, and only of a model that `auto`
    chose can another be asked. A tool loop stays with its model, and what a completion repeats of
    its prompt (`echo`) is no answer.
    """
    settings, request = choice.policy.escalation, choice.request
    if settings is None or not choice.is_free or request.stream or choice.task.tool_loop:
        return None
    if settings.logprob_min is None and not settings.refusal and not settings.invalid_json:
        return None
    if request.endpoint == "completions" and _completion.decode(body).echo:
        return None
    return Exam(
        settings,
        request.endpoint,
        strict_json=request.json,
        any_json=choice.task.output == "json",
    )


def is_refusal(text: str) -> bool:
    """Return whether an answer begins as refusals do, in English or Spanish."""
    opening = fold(text[:_OPENING_CHARS]).lstrip("¡¿\"'*_ ")
    return _REFUSAL.match(opening) is not None


def _mean(logprobs: _Logprobs | None) -> float | None:
    """Return the mean log-probability of the tokens, or None where it is not known."""
    if logprobs is None:
        return None
    if logprobs.content is not None:
        values = [token.logprob for token in logprobs.content]
    else:
        values = [value for value in logprobs.token_logprobs or () if value is not None]
    return sum(max(value, LOGPROB_FLOOR) for value in values) / len(values) if values else None


def _in_fences(text: str) -> str:
    """Return the first block of code in `text`, or all of it where there is none."""
    block = _FENCED.search(text)
    return block[1] if block else text


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True
