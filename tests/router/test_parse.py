"""From bytes to a request: what routing reads of a body, and what it says is wrong with one."""

import json

import pytest

from router import tokens
from router.classifier import shipped
from router.describe import describe, subject
from router.errors import CODES, ApiError
from router.parse import parse
from router.words import Request, Turn

HOLA = {"role": "user", "content": "Hola"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Madrid"}'},
}


def described(request):
    return describe(request, subject(request.turns), shipped())


def chat(*messages, **fields):
    body = {"model": "auto", "messages": list(messages) or [HOLA], **fields}
    return parse("chat", json.dumps(body).encode())


def completion(prompt, **fields):
    return parse("completions", json.dumps({"model": "auto", "prompt": prompt, **fields}).encode())


def error_of(body, endpoint="chat"):
    with pytest.raises(ApiError) as caught:
        parse(endpoint, body)
    assert caught.value.code in CODES
    assert caught.value.status == 400
    return caught.value


def with_message(text):
    return b'{"model": "auto", "messages": [%s]}' % text


def with_field(text):
    return b'{"model": "auto", "messages": [{"role": "user", "content": "a"}], %s}' % text


def test_a_plain_chat_is_read():
    assert chat() == Request(
        endpoint="chat", model="auto", stream=False, turns=(Turn("user", "Hola"),)
    )


def test_a_plain_completion_is_one_turn_of_the_user():
    assert completion("Hola", stream=True, max_tokens=5) == Request(
        endpoint="completions",
        model="auto",
        stream=True,
        turns=(Turn("user", "Hola"),),
        output_tokens=5,
    )


@pytest.mark.parametrize(
    ("fields", "json"),
    [
        (b'"response_format": {"type": "json_object"}', True),
        (b'"response_format": {"type": "json_schema", "json_schema": {}}', True),
        (b'"structured_outputs": {"json": {}}', True),
        (b'"response_format": {"type": "text"}', False),
        (b'"structured_outputs": {"regex": "a"}', False),
        (b'"response_format": null', False),
    ],
)
def test_whether_the_answer_must_be_json_is_read(fields, json):
    assert parse("chat", with_field(fields)).json is json


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        (b"", "invalid_json", None, "The body is empty; expected a JSON object."),
        (b" \n ", "invalid_json", None, "The body is empty; expected a JSON object."),
        (b"{", "invalid_json", None, "The body is not JSON: Input data was truncated."),
        (
            b"model=auto",
            "invalid_json",
            None,
            "The body is not JSON: JSON is malformed: invalid character (byte 0).",
        ),
        (
            with_field(b'"stream": true') + b"x",
            "invalid_json",
            None,
            "The body is not JSON: JSON is malformed: trailing characters (byte 82).",
        ),
        (
            "{}".encode("utf-16"),
            "invalid_json",
            None,
            "The body is not JSON: JSON is malformed: invalid character (byte 0).",
        ),
        (
            with_message(b'{"role": "user", "content": "\xff"}'),
            "invalid_json",
            None,
            "The body is not UTF-8.",
        ),
        (
            with_field(b'"anything": ' + b"[" * 100_000),
            "invalid_json",
            None,
            "The body is nested too deeply.",
        ),
        (
            with_field(b'"tools": ' + b"[" * 100_000),
            "invalid_json",
            None,
            "The body is nested too deeply.",
        ),
        (
            b"[]",
            "invalid_type",
            None,
            "The body is the wrong kind of JSON: expected `object`, got `array`.",
        ),
        (
            b'"auto"',
            "invalid_type",
            None,
            "The body is the wrong kind of JSON: expected `object`, got `str`.",
        ),
        (
            b"{}",
            "missing_required_parameter",
            "model",
            'You must provide `model`. Send "auto" to have one chosen; '
            "GET /v1/models lists the others.",
        ),
        (
            b'{"model": "auto"}',
            "missing_required_parameter",
            "messages",
            "You must provide `messages`.",
        ),
        (
            b'{"model": null}',
            "invalid_type",
            "model",
            "Invalid 'model': expected `str`, got `null`.",
        ),
        (
            b'{"model": "auto", "messages": []}',
            "empty_array",
            "messages",
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an "
            "empty array instead.",
        ),
        (
            b'{"model": "auto", "messages": "Hola"}',
            "invalid_type",
            "messages",
            "Invalid 'messages': expected `array`, got `str`.",
        ),
        (
            with_message(b'"Hola"'),
            "invalid_type",
            "messages[0]",
            "Invalid 'messages[0]': expected `object`, got `str`.",
        ),
        (
            with_message(b'{"role": "user"}, {"content": "a"}'),
            "missing_required_parameter",
            "messages[1].role",
            "You must provide `messages[1].role`.",
        ),
        (
            with_message(b'{"role": "user"}, {"role": "429 rate limit"}'),
            "invalid_value",
            "messages[1].role",
            "messages[1].role must be one of system, developer, user, assistant, tool, function.",
        ),
        (
            with_message(b'{"role": "user", "content": 5}'),
            "invalid_type",
            "messages[0].content",
            "Invalid 'messages[0].content': expected `str | array | null`, got `int`.",
        ),
        (
            with_message(b'{"role": "user", "content": [{"type": "text"}, "a"]}'),
            "invalid_type",
            "messages[0].content[1]",
            "Invalid 'messages[0].content[1]': expected `object`, got `str`.",
        ),
        (
            with_message(b'{"role": "user", "content": [{"text": "a"}]}'),
            "missing_required_parameter",
            "messages[0].content[0].type",
            "You must provide `messages[0].content[0].type`.",
        ),
        (
            with_message(b'{"role": "user", "content": [{"type": "text", "text": []}]}'),
            "invalid_type",
            "messages[0].content[0].text",
            "Invalid 'messages[0].content[0].text': expected `str | null`, got `array`.",
        ),
        (
            with_field(b'"stream": 1'),
            "invalid_type",
            "stream",
            "Invalid 'stream': expected `bool | null`, got `int`.",
        ),
        (
            with_field(b'"tools": {}'),
            "invalid_type",
            "tools",
            "Invalid 'tools': expected `array | null`, got `object`.",
        ),
        (
            with_field(b'"max_tokens": "5"'),
            "invalid_type",
            "max_tokens",
            "Invalid 'max_tokens': expected `int | null`, got `str`.",
        ),
        (
            with_field(b'"max_completion_tokens": 5.5'),
            "invalid_type",
            "max_completion_tokens",
            "Invalid 'max_completion_tokens': expected `int | null`, got `float`.",
        ),
        (
            with_field(b'"max_tokens": 9007199254740992'),
            "integer_above_max_value",
            "max_tokens",
            "Invalid 'max_tokens': integer above maximum value. "
            "Expected a value <= 9007199254740991.",
        ),
        (
            with_field(b'"max_tokens": 5, "max_completion_tokens": 1' + b"0" * 400),
            "integer_above_max_value",
            "max_completion_tokens",
            "Invalid 'max_completion_tokens': integer above maximum value. "
            "Expected a value <= 9007199254740991.",
        ),
    ],
    ids=lambda value: value[-50:].decode("latin1") if isinstance(value, bytes) else "",
)
def test_what_is_wrong_with_a_chat_is_said_exactly(body, code, param, message):
    error = error_of(body)

    assert (error.code, error.param, error.message) == (code, param, message)


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        (
            b'{"model": "auto"}',
            "missing_required_parameter",
            "prompt",
            "You must provide `prompt`.",
        ),
        (
            b'{"prompt": "a"}',
            "missing_required_parameter",
            "model",
            'You must provide `model`. Send "auto" to have one chosen; '
            "GET /v1/models lists the others.",
        ),
        (
            b'{"model": "auto", "prompt": ""}',
            "invalid_value",
            "prompt",
            "`prompt` is empty.",
        ),
        (
            b'{"model": "auto", "prompt": []}',
            "invalid_value",
            "prompt",
            "`prompt` is empty.",
        ),
        (
            b'{"model": "auto", "prompt": null}',
            "invalid_type",
            "prompt",
            "Invalid 'prompt': expected `str | array`, got `null`.",
        ),
        (
            b'{"model": "auto", "prompt": [1, 2.5]}',
            "invalid_type",
            "prompt[1]",
            "Invalid 'prompt[1]': expected `int | str | array`, got `float`.",
        ),
        (
            b'{"model": "auto", "prompt": [[1], [2, "a"]]}',
            "invalid_type",
            "prompt[1][1]",
            "Invalid 'prompt[1][1]': expected `int`, got `str`.",
        ),
        (
            b'{"model": "auto", "prompt": "a", "max_tokens": 1%s}' % (b"0" * 400),
            "integer_above_max_value",
            "max_tokens",
            "Invalid 'max_tokens': integer above maximum value. "
            "Expected a value <= 9007199254740991.",
        ),
        (
            b'{"model": "auto", "prompt": "\xff"}',
            "invalid_json",
            None,
            "The body is not UTF-8.",
        ),
    ],
    ids=lambda value: value[:50].decode("latin1") if isinstance(value, bytes) else "",
)
def test_what_is_wrong_with_a_completion_is_said_exactly(body, code, param, message):
    error = error_of(body, "completions")

    assert (error.code, error.param, error.message) == (code, param, message)


@pytest.mark.parametrize(
    ("content", "turn"),
    [
        ("Hola", Turn("user", "Hola")),
        ("", Turn("user", "")),
        (None, Turn("user", "")),
        ([], Turn("user", "")),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], Turn("user", "a\nb")),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "b"}], Turn("user", "b")),
        (
            [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "What is this?"},
                {"type": "input_image", "image_url": "https://example.com/a.png"},
                {"type": "image"},
            ],
            Turn("user", "What is this?", 3),
        ),
        ([{"type": "input_audio", "input_audio": {"data": "AAAA"}}], Turn("user", "")),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_parts_of_a_content_are_joined_and_its_images_counted(content, turn):
    assert chat({"role": "user", "content": content}).turns == (turn,)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_every_role_of_the_api_is_known(role):
    assert chat({"role": role, "content": "a"}).turns == (Turn(role, "a"),)


def test_the_turns_keep_their_order():
    turns = chat(HOLA, {"role": "assistant", "content": "¿Qué tal?"}, HOLA).turns

    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[1].text == "¿Qué tal?"


def test_tools_are_counted_with_the_length_of_their_json():
    tools = [{"type": "function"}, {"type": "function", "function": {"name": "f"}}]

    request = chat(tools=tools)

    assert request.tools == 2
    assert request.tools_chars == sum(len(json.dumps(tool)) for tool in tools)


def test_tools_that_may_not_be_called_are_none_but_the_model_still_reads_them():
    declined = chat(tools=[CALL], tool_choice="none")
    offered = chat(tools=[CALL], tool_choice={"type": "function", "function": {"name": "f"}})

    assert (declined.tools, offered.tools) == (0, 1)
    assert declined.tools_chars == offered.tools_chars == len(json.dumps(CALL))


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_no_tools(tools):
    request = chat(tools=tools)

    assert (request.tools, request.tools_chars) == (0, 0)


def test_the_calls_of_a_conversation_are_read_and_counted():
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "20 degrees"}

    request = chat(HOLA, calls, result)

    assert request.turns == (
        Turn("user", "Hola"),
        Turn("assistant", ""),
        Turn("tool", "20 degrees"),
    )
    assert request.tools == 0  # nothing is offered, so any model can go on
    assert request.tools_chars == len(json.dumps([CALL]))


@pytest.mark.parametrize("calls", [None, [], [CALL]])
def test_an_answer_may_carry_any_tool_calls(calls):
    answer = {"role": "assistant", "content": "Wait.", "tool_calls": calls}

    assert chat(HOLA, answer, HOLA).turns[1] == Turn("assistant", "Wait.")


def test_a_call_does_not_make_a_conversation_one_about_code():
    question = {"role": "user", "content": "What's the weather in Madrid?"}
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    follow_up = {"role": "user", "content": "and tomorrow?"}

    assert described(chat(question, calls)).label != "code"
    assert described(chat(question, calls, follow_up)).label != "code"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0),
        ({"max_tokens": None}, 0),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_tokens": 7, "max_completion_tokens": 8}, 8),  # the newer name counts
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({"max_tokens": 2**53 - 1}, 2**53 - 1),
    ],
    ids=str,
)
def test_the_length_of_the_answer_is_what_the_client_asked_for(fields, expected):
    assert chat(**fields).output_tokens == expected


@pytest.mark.parametrize(("stream", "expected"), [(True, True), (False, False), (None, False)])
def test_a_stream_is_only_what_asks_for_one(stream, expected):
    assert chat(stream=stream).stream is expected


def test_fields_that_routing_does_not_read_are_left_to_the_engine():
    message = {**HOLA, "name": 5, "tool_call_id": []}

    assert chat(message, response_format=5, ignore_eos="x", max_tokens=7) == chat(max_tokens=7)
    assert completion("a", suffix=5, echo="x") == completion("a")


@pytest.mark.parametrize(
    ("field", "value", "code", "expected"),
    [
        ("temperature", 200, "decimal_above_max_value", "a value <= 2"),
        ("temperature", -0.1, "decimal_below_min_value", "a value >= 0"),
        ("top_p", 1.5, "decimal_above_max_value", "a value <= 1"),
        ("n", 129, "integer_above_max_value", "a value <= 128"),
        ("n", 0, "integer_below_min_value", "a value >= 1"),
        ("max_tokens", 0, "integer_below_min_value", "a value >= 1"),
        ("top_k", 10**30, "integer_above_max_value", "a value <= 2147483647"),
        ("seed", 2**64, "integer_above_max_value", "a value <= 9223372036854775807"),
        ("presence_penalty", 3, "decimal_above_max_value", "a value <= 2"),
        ("top_logprobs", 21, "integer_above_max_value", "a value <= 20"),
        ("logit_bias", {"429": 101}, "decimal_above_max_value", "a value <= 100"),
        ("stop", ["a"] * 5, "array_above_max_length", "at most 4 entries"),
        ("stop", "429" * 200, "string_above_max_length", "at most 500 characters"),
        ("bad_words", ["429"] * 129, "array_above_max_length", "at most 128 entries"),
        ("messages", [HOLA] * 2049, "array_above_max_length", "at most 2048 entries"),
        ("tools", [{}] * 2049, "array_above_max_length", "at most 2048 entries"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_out_of_bounds_is_refused_with_the_bound_but_without_the_value(
    field, value, code, expected
):
    with pytest.raises(ApiError) as caught:
        chat(**{field: value})

    error = caught.value
    assert (error.code, error.param) == (code, field)
    assert error.message.startswith(f"Invalid '{field}': ")
    assert error.message.endswith(f"Expected {expected}.")
    assert "429" not in error.message


@pytest.mark.parametrize(
    ("counts", "param"), [([2049], "messages[0].content"), ([1024, 1025], "messages")]
)
def test_a_conversation_has_no_more_parts_than_messages(counts, param):
    part = {"type": "text", "text": ""}

    with pytest.raises(ApiError) as caught:
        chat(*({"role": "user", "content": [part] * count} for count in counts))

    assert (caught.value.code, caught.value.param) == ("array_above_max_length", param)


def test_a_completion_has_at_most_128_prompts_and_any_number_of_token_ids():
    assert completion(["a"] * 128).turns
    assert completion([5] * 5000).turns
    for prompts in (["a"] * 129, [[5]] * 129):
        with pytest.raises(ApiError) as caught:
            completion(prompts)
        assert (caught.value.code, caught.value.param) == ("array_above_max_length", "prompt")


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (["a", ""], "invalid_value", "prompt[1]"),
        ([[]], "invalid_value", "prompt[0]"),
        (["a", 1], "invalid_type", "prompt"),
        ([1, "a"], "invalid_type", "prompt"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused(prompt, code, param):
    with pytest.raises(ApiError) as caught:
        completion(prompt)

    assert (caught.value.code, caught.value.param) == (code, param)


def test_prompts_and_answers_for_each_are_counted_together():
    assert completion(["a"] * 32, n=4).turns
    with pytest.raises(ApiError, match="at most 128 prompts, times `n`"):
        completion(["a"] * 33, n=4)


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_a_grammar_has_a_largest_size(field):
    assert chat(**{field: {"choice": ["x" * 60_000]}}).turns
    with pytest.raises(ApiError, match="Expected at most 65536 bytes") as caught:
        chat(**{field: {"choice": ["429"] * 20_000}})
    assert (caught.value.code, caught.value.param) == ("invalid_value", field)


def test_a_completion_may_ask_for_no_token_at_all():
    assert completion("a", max_tokens=0).output_tokens == 0


@pytest.mark.parametrize("key", ["x", "-1", "1.5", "٣", "1" * 10])
def test_a_logit_bias_is_for_token_ids(key):
    with pytest.raises(ApiError) as caught:
        chat(logit_bias={key: 1})

    assert (caught.value.code, caught.value.param) == ("invalid_value", "logit_bias")
    assert f"'{key}'" not in caught.value.message
    assert chat(logit_bias={"50256": -100}).turns


def test_who_asks_how_urgent_it_is_and_until_when():
    request = chat(HOLA, user="ana", priority=5, deadline_ms=1500)

    assert (request.user, request.priority, request.deadline_ms) == ("ana", 5, 1500)
    unsaid = completion("a", user=None, priority=None, deadline_ms=None)
    assert (unsaid.user, unsaid.priority, unsaid.deadline_ms) == ("", 0, None)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("user", 5, "invalid_type"),
        ("priority", "high", "invalid_type"),
        ("priority", 1.5, "invalid_type"),
        ("priority", 1_000_001, "integer_above_max_value"),
        ("priority", -1_000_001, "integer_below_min_value"),
        ("deadline_ms", 0, "decimal_below_min_value"),
        ("deadline_ms", -1, "decimal_below_min_value"),
        ("deadline_ms", "soon", "invalid_type"),
    ],
)
def test_what_cannot_be_queued_by_is_refused(field, value, code):
    for ask in (lambda: chat(HOLA, **{field: value}), lambda: completion("a", **{field: value})):
        with pytest.raises(ApiError) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == (code, field)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (["Hola"], "Hola"),
        (["a", "long one", "b"], "long one"),  # each is a prompt of its own
    ],
    ids=str,
)
def test_of_several_prompts_the_longest_counts(prompt, text):
    assert completion(prompt).turns == (Turn("user", text),)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1], 1),
        ([5, 100257, 0], 3),
        ([7] * 1000, 1000),
        ([[1, 2, 3], [4]], 3),  # two prompts, the longer one counts
        ([[7] * 1000], 1000),
    ],
    ids=lambda value: str(value)[:30],
)
def test_of_a_prompt_in_token_ids_each_id_is_one_token(prompt, expected):
    request = completion(prompt)

    assert tokens.count(request.turns[0].text) == expected
    task = described(request)
    assert task.prompt_tokens == expected
    assert (task.label, task.language) == ("general", None)


def test_many_token_ids_are_still_counted_about_right():
    task = described(completion([7] * 50_000))

    assert task.prompt_tokens == pytest.approx(50_000, rel=0.01)
