"""From a body to vLLM's request: what is wrong is said without the client's own words."""

import json

import pytest

from engines.protocol import Refused
from engines.request import read_request, refusal

HOLA = [{"role": "user", "content": "Hola"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(endpoint="chat", **fields):
    if endpoint == "chat":
        fields = {"messages": HOLA, **fields}
    return read_request(endpoint, json.dumps(fields).encode())


@pytest.mark.real
@pytest.mark.usefixtures("quickstart_loader")
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": [{**HOLA[0], "name": {"a": 1}}]}, "messages[0].name", "valid string"),
        ({"tools": [{"type": "429"}]}, "tools[0].type", "should be 'function'"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "provide"),
        ({"tools": [TOOL], "tool_choice": "429 rate limit"}, "tool_choice", "Only named tools"),
        ({"tool_choice": "auto"}, "tool_choice", "`tools` must be set"),
        ({"response_format": {"type": "429"}}, "response_format.type", "'json_schema'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=True"),
        ({"bad_words": ["429", ""]}, "bad_words", "empty string"),
        ({"stop": [""]}, "stop", "empty string"),
        ({"logprobs": 429}, "logprobs", "valid boolean"),
        ({"min_tokens": 50, "max_tokens": 5}, "min_tokens", "max_tokens=5"),
        ({"ignore_eos": "rate limit"}, "ignore_eos", "valid boolean"),
        ({"max_completion_tokens": "429x"}, "max_completion_tokens", "valid integer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_no_engine_can_run_is_refused_without_the_client_s_words(fields, param, words):
    with pytest.raises(Refused) as caught:
        read(**fields)

    assert caught.value.param == param
    assert words in caught.value.message
    assert "429" not in caught.value.message
    assert "rate limit" not in caught.value.message


@pytest.mark.real
@pytest.mark.usefixtures("quickstart_loader")
def test_a_null_is_a_field_left_out():
    fields = dict.fromkeys(("priority", "min_tokens", "length_penalty", "ignore_eos", "tools"))

    assert read(**fields).priority == 0
    assert read("completions", prompt="a", **dict.fromkeys(("echo", "min_tokens"))).min_tokens == 0


@pytest.mark.real
@pytest.mark.usefixtures("quickstart_loader")
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_asked_to_be_no_longer_than_the_context(name):
    body = json.dumps({"messages": HOLA, name: 8192}).encode()

    assert getattr(read_request("chat", body, 512), name) == 512
    assert getattr(read_request("chat", body), name) == 8192


@pytest.mark.real
@pytest.mark.usefixtures("quickstart_loader")
def test_the_least_top_p_is_zero_as_in_openai_s_schema():
    assert 0 < read(top_p=0).top_p < 0.001


@pytest.mark.parametrize(
    ("message", "param", "shown"),
    [
        ("Invalid value `banana`.", "guide", "Invalid value `...`."),
        ("Invalid value 429: expected 'auto'.", "guide.n", "Invalid value ...: expected 'auto'."),
        ("The key x-429 is not known.", "guide", "The key ... is not known."),
        # A short text of the conversation may be in a message by chance, a long one is not.
        ("It must have the role.", None, "It must have the role."),
        ("No: https://example.com/429.png!", None, "No: ...!"),
    ],
)
def test_values_of_the_client_are_taken_out_of_a_message(message, param, shown):
    fields = {
        "guide": {"type": "banana", "n": 429, "x-429": "auto"},
        "messages": [{"content": "the"}, {"content": [{"url": "https://example.com/429.png"}]}],
    }

    assert refusal(message, param, fields).message == shown


@pytest.mark.parametrize(
    ("message", "fields", "param", "words"),
    [
        (
            "EBNF parser error: '= \"429\" ('",
            {"structured_outputs": {"grammar": 'root ::= "429" ('}},
            "structured_outputs",
            "cannot be made into a grammar",
        ),
        (
            "Pointer '/429' does not exist in the schema",
            {"response_format": {"json_schema": {"$ref": "#/429"}}},
            "response_format",
            "cannot be made into a grammar",
        ),
        ("Too many. (parameter=bad_words, value=['429', '429'])", {}, None, "Too many."),
        ("7 validation errors for ValidatorIterator\n0.429", {}, None, "kind that is not known"),
        ("Start with --trust-request-mm-kwargs", {}, None, "does not offer that"),
        ("safe_apply() got multiple values for 429", {}, None, "these arguments"),
    ],
)
def test_messages_that_quote_are_replaced(message, fields, param, words):
    refused = refusal(message, None, fields)

    assert refused.param == param
    assert words in refused.message
    assert "429" not in refused.message


def test_the_name_of_the_model_stays_in_a_message():
    message = "phi4_fast is not a multimodal model"

    assert refusal(message, None, {"model": "phi4_fast"}).message == message


def test_options_of_vllm_s_own_server_are_nothing_a_client_can_set():
    message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'

    refused = refusal(message, None, {"tools": []})

    assert "--" not in refused.message
    assert "tool_parser" in refused.message


def test_a_message_that_begins_with_a_field_is_about_it():
    assert refusal("stop cannot be empty.", None, {"stop": [""]}).param == "stop"
    assert refusal("Stop, it is wrong.", None, {"stop": [""]}).param is None
