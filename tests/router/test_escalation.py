"""An answer that is not good enough is asked for again, once, of a better model."""

import json

import msgspec
import pytest

from config import PolicySettings, RuleSettings
from config.policy import ConditionSettings, EscalationSettings, FitSettings
from engines.protocol import Refused
from engines.words import Unavailable
from router.escalation import Exam, is_refusal
from tests.conftest import ROLES
from tests.scripted import Scripted, asked, user

FITS = {"phi4_fast": 0.6, "qwen_coder": 0.5, "mistral_balanced": 0.7, "gemma3_multimodal": 0.9}
PREFER_SMALL = RuleSettings(name="small", when=ConditionSettings(), prefer=["phi4_fast"])
ALL = EscalationSettings(logprob_min=-1.0, refusal=True, invalid_json=True)
UNSURE = {"phi4_fast": -1.9}


@pytest.fixture
async def serve(make_service):
    """Return a function that builds a service, which is closed at the end."""
    services = []

    def make(loader, escalation=ALL, rule=PREFER_SMALL, **changes):
        routing = PolicySettings(
            default="phi4_fast",
            price_per_second=changes.pop("price_per_second", 0.001),
            fit={
                name: FitSettings(other=fit, slope=0, languages={"es": 0})
                for name, fit in FITS.items()
            },
            rules=[rule],
            escalation=escalation,
            **changes,
        )
        services.append(make_service(loader, routing=routing))
        return services[-1]

    yield make
    for service in services:
        await service.pool.close()


def models(loader):
    return [model for model, _ in loader.seen]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_an_unsure_answer_is_replaced_by_the_next_better_model_s(serve, endpoint):
    loader = Scripted(logprob=UNSURE)
    service = serve(loader)

    record, reply = await asked(service, "hola", endpoint=endpoint)

    assert models(loader) == ["phi4_fast", "gemma3_multimodal"]
    assert reply["model"] == record.model == "gemma3_multimodal"
    assert record.reason.endswith(
        "-> phi4_fast; unsure (mean log-probability -1.90) -> gemma3_multimodal"
    )
    assert record.headers()["x-axion-model"] == "gemma3_multimodal"
    entry = await service.journal.find(record.id)
    assert (entry.model, entry.escalated_from) == ("gemma3_multimodal", "phi4_fast")
    assert entry.usage
    assert entry.escalated_usage


@pytest.mark.parametrize(("price", "model"), [(0, "gemma3_multimodal"), (0.1, "mistral_balanced")])
async def test_which_better_model_is_asked_is_decided_as_ever(serve, price, model):
    loader = Scripted(logprob=UNSURE)
    service = serve(loader, price_per_second=price)
    service.forecast._keys["gemma3_multimodal"] = "another source than echo"
    service.forecast.wrote("gemma3_multimodal", 0, 100, 100)

    await asked(service, "hola")

    assert models(loader) == ["phi4_fast", model]


async def test_a_sure_answer_is_given(serve):
    loader = Scripted()
    service = serve(loader)

    record, _ = await asked(service, "hola")

    assert models(loader) == ["phi4_fast"]
    assert "unsure" not in record.reason
    assert (await service.journal.find(record.id)).escalated_from is None


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("value", [-0.1, -1.9])
async def test_probabilities_that_only_the_service_asked_for_are_not_in_the_answer(
    serve, endpoint, value
):
    # Nobody is better, so the first answer is given in any case.
    loader = Scripted(logprob={"gemma3_multimodal": value})
    rule = RuleSettings(name="all", when=ConditionSettings(), only=["gemma3_multimodal"])

    _, reply = await asked(serve(loader, rule=rule), "hola", endpoint=endpoint, seed=2**53 - 1)

    sent = loader.seen[0][1]
    assert sent["logprobs"] == (True if endpoint == "chat" else 0)
    assert sent["seed"] == 2**53 - 1
    assert reply["choices"][0]["logprobs"] is None
    assert list(reply)[:4] == ["id", "object", "created", "model"]


@pytest.mark.parametrize(("endpoint", "asks"), [("chat", True), ("completions", 2)])
async def test_probabilities_that_the_client_asked_for_are(serve, endpoint, asks):
    loader = Scripted()

    _, reply = await asked(serve(loader), "hola", endpoint=endpoint, logprobs=asks)

    assert loader.seen[0][1]["logprobs"] == asks
    assert reply["choices"][0]["logprobs"]


async def test_the_second_model_is_asked_what_the_client_asked(serve):
    loader = Scripted(logprob=UNSURE)

    await asked(serve(loader), "hola")

    assert "logprobs" in loader.seen[0][1]
    assert "logprobs" not in loader.seen[1][1]


async def test_an_answer_is_asked_for_again_only_once(serve):
    loader = Scripted(logprob=dict.fromkeys(ROLES, -9.0))

    await asked(serve(loader, price_per_second=0.1), "hola")

    assert len(loader.seen) == 2


@pytest.mark.parametrize(
    "off",
    [None, EscalationSettings(), EscalationSettings(refusal=False, invalid_json=False)],
    ids=["left out", "empty", "false"],
)
async def test_without_escalation_the_request_reaches_the_engine_as_it_is(serve, off):
    loader = Scripted(logprob=UNSURE, phi4_fast="I can't help with that.")

    await asked(serve(loader, off), "hola")

    assert models(loader) == ["phi4_fast"]
    assert "logprobs" not in loader.seen[0][1]


@pytest.mark.parametrize(
    ("model", "content", "fields"),
    [
        ("phi4_fast", "hola", {}),
        ("auto", "hola", {"stream": True}),
        ("auto", [user("hola"), {"role": "tool", "tool_call_id": "1", "content": "x"}], {}),
        ("auto", "hola", {"endpoint": "completions", "echo": True}),
    ],
    ids=["named", "stream", "tool loop", "echo"],
)
async def test_what_cannot_be_judged_or_replaced_is_not(serve, model, content, fields):
    loader = Scripted(logprob=UNSURE)

    await asked(serve(loader), content, model, **fields)

    assert models(loader) == ["phi4_fast"]
    assert "logprobs" not in loader.seen[0][1]


@pytest.mark.parametrize("failure", ["dies", "does not load", Refused("No.", param=None)], ids=str)
async def test_when_the_second_model_fails_the_first_answer_is_given(serve, failure):
    loader = Scripted(logprob=UNSURE, gemma3_multimodal=failure)
    service = serve(loader)

    record, reply = await asked(service, "hola")

    assert reply["model"] == record.model == "phi4_fast"
    assert reply["choices"][0]["logprobs"] is None
    assert record.reason.endswith(": the first answer is given")
    entry = await service.journal.find(record.id)
    assert (entry.model, entry.escalated_from) == ("phi4_fast", None)
    assert service.forecast.error("phi4_fast") is None, "its time was not its own"


async def test_a_better_model_that_is_known_to_be_broken_is_not_asked(serve):
    better = ["gemma3_multimodal", "mistral_balanced"]
    loader = Scripted(logprob=UNSURE, **dict.fromkeys(better, "does not load"))
    service = serve(loader)
    for name in better:
        with pytest.raises(Unavailable):
            await service.pool.load(name)

    record, _ = await asked(service, "hola")

    assert record.reason.endswith(", but no better model can answer in time")


async def test_where_time_is_too_short_for_another_answer_the_first_is_given(serve):
    loader = Scripted(logprob=UNSURE)
    # Loaded, a better model takes about three seconds; it is not, which takes two more.
    service = serve(loader)
    await service.pool.load("phi4_fast")

    record, _ = await asked(service, "hola", deadline_ms=2_500)

    assert models(loader) == ["phi4_fast"]
    assert record.reason.endswith(
        "unsure (mean log-probability -1.90), but no better model can answer in time"
    )


async def test_a_model_that_the_rule_leaves_out_is_not_asked(serve):
    loader = Scripted(logprob=UNSURE)
    rule = RuleSettings(name="private", when=ConditionSettings(), only=["phi4_fast", "qwen_coder"])

    await asked(serve(loader, rule=rule), "hola")

    assert models(loader) == ["phi4_fast"]


async def test_a_refusal_is_asked_of_a_better_model(serve):
    loader = Scripted(phi4_fast="Lo siento, pero no puedo ayudarte con eso.")

    record, reply = await asked(serve(loader, EscalationSettings(refusal=True)), "hola")

    assert "; unsure (a refusal) -> " in record.reason
    assert reply["choices"][0]["message"]["content"] == "hola"
    assert "logprobs" not in loader.seen[0][1]


JSON = {"response_format": {"type": "json_object"}}
ASK = "Return the capital of France as JSON"


@pytest.mark.parametrize(
    ("text", "by_format", "by_words"),
    [
        ('{"capital": "Paris"}', True, True),
        (" [1, 2]\n", True, True),
        ('```json\n{"capital": "Paris"}\n```', False, True),
        ('Here it is:\n```\n{"capital": "Paris"}\n```\nBon voyage!', False, True),
        ('{"capital": "Paris"', False, False),
        ("```json\n{capital: Paris}\n```", False, False),
        ("The capital is Paris.", False, False),
        ("", False, False),
        ("[" * 50_000, False, False),
    ],
)
async def test_what_is_no_json_where_json_was_asked_for_is_unsure(serve, text, by_format, by_words):
    only_json = EscalationSettings(invalid_json=True)
    for fields, prompt, is_fine in ((JSON, "hola", by_format), ({}, ASK, by_words)):
        loader = Scripted(phi4_fast=text)
        service = serve(loader, only_json)

        record, _ = await asked(service, prompt, **fields)

        assert (len(loader.seen) == 1) is is_fine
        assert ("; unsure (no valid JSON) -> " in record.reason) is not is_fine
    loader = Scripted(phi4_fast=text)
    await asked(serve(loader, only_json), "hola")
    assert len(loader.seen) == 1, "nobody asked for JSON"


# --- the answer itself --------------------------------------------------------------------------


def chat(*choices):
    return msgspec.json.encode({"choices": [{"finish_reason": "stop", **each} for each in choices]})


def test_when_one_of_several_answers_is_good_enough_they_are_given():
    exam = Exam(ALL, "chat")
    bad, good = ({"message": {"content": text}} for text in ("I cannot help with that.", "Paris"))

    assert exam.doubt(chat(bad, good)) is None
    assert exam.doubt(chat(bad, bad)) == "a refusal"
    assert exam.doubt(chat()) is None


def test_an_answer_that_was_cut_off_or_calls_a_tool_is_not_read_as_json():
    exam = Exam(ALL, "chat", strict_json=True)
    call = {"message": {"content": None, "tool_calls": [{"id": "1"}]}}
    cut = {"message": {"content": '{"a": '}, "finish_reason": "length"}

    assert exam.doubt(chat(call)) is None
    assert exam.doubt(chat(cut)) is None
    assert exam.doubt(chat({**cut, "finish_reason": "stop"})) == "no valid JSON"


def test_a_token_that_cannot_be_is_not_all_of_the_mean():
    exam = Exam(EscalationSettings(logprob_min=-1), "chat")
    tokens = [{"logprob": -9999.0}, *[{"logprob": -0.1}] * 99]

    assert exam.doubt(chat({"message": {}, "logprobs": {"content": tokens}})) is None
    assert exam.doubt(chat({"message": {}, "logprobs": {"content": []}})) is None
    assert exam.doubt(chat({"message": {}, "logprobs": {"content": tokens[:1]}}))


def test_openai_s_field_for_refusals_is_one():
    refusal = {"message": {"content": None, "refusal": "I won't."}}

    assert Exam(ALL, "chat").doubt(chat(refusal)) == "a refusal"


def test_numbers_of_a_request_stay_exactly_as_they_were_sent():
    exam = Exam(EscalationSettings(logprob_min=-1), "chat")
    body = b'{"messages": [], "x": 1e400, "y": 0.10000000000000000001, "logprobs": null}'

    sent = exam.question(body)

    assert b"1e400" in sent
    assert b"0.10000000000000000001" in sent
    assert json.loads(sent)["logprobs"] is True


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"choices": 1}', b"\xff", b'{"choices": [{"text": "\\ud800"}]}'],
)
def test_an_answer_of_another_shape_is_given_as_it_is(answer):
    exam = Exam(ALL, "chat", strict_json=True)
    exam.question(b"{}")

    assert exam.doubt(answer) is None
    assert exam.reply(answer) is not None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I can\u2019t help with that request.",
        "I am very sorry, but I cannot do this.",
        "Sorry, but I'm unable to access the internet.",
        "I cannot provide medical advice.",
        "I can't directly help you with it.",
        "I'm not able to browse the web.",
        "Unfortunately, I do not have access to that.",
        "As an AI language model, I have no feelings.",
        "I apologize, but as an AI assistant, I cannot see images.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Lo siento mucho, no puedo hacerlo.",
        "Lamentablemente, no tengo acceso a internet.",
        "Me temo que no puedo responder a esa pregunta.",
        "No puedo ayudarte con esa solicitud.",
        "Como modelo de lenguaje, no tengo opiniones.",
        "**Como una IA**, no puedo verlo.",
    ],
)
def test_a_refusal_is_known_by_its_opening(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "I can help with that.",
        "I can't believe it, she whispered.",
        "I'm sorry for your loss. Here is a letter:",
        "Sorry, that was a typo: it is 42.",
        "Unfortunately, I forgot my umbrella, the story begins.",
        "No puedo más, dijo el rey.",
        "No, París no es la capital de Italia.",
        "Lo siento es una canción de Beret.",
        "The phrase 'I cannot help with that' is a refusal.",
        "As an airline pilot, you need a licence.",
        "Como una iglesia, el edificio tiene torres.",
    ],
)
def test_an_answer_is_no_refusal(text):
    assert not is_refusal(text)
