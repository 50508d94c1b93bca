"""The HTTP surface, on echo engines."""

import asyncio
import contextlib
import json
import re

import httpx
import msgspec
import pytest

from config import (
    ConditionSettings,
    ModelSettings,
    PolicySettings,
    PoolSettings,
    RuleSettings,
    ServerSettings,
)
from engines.echo import EchoEngine
from engines.protocol import EngineFailed
from engines.words import Ticket, Unavailable
from router import app
from router.app import create_app
from router.catalogue import Catalogue
from router.errors import CODES
from tests.hollow import LLAMA, write_model

HOLA = {"model": "auto", "messages": [{"role": "user", "content": "Hola"}]}


async def chat(client, **changes):
    return await client.post("/v1/chat/completions", json={**HOLA, **changes})


def error_of(response):
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error = body["error"]
    assert CODES[error["code"]].status == response.status_code
    assert CODES[error["code"]].type == error["type"]
    return error


async def test_a_chat_is_answered_by_the_chosen_model_and_says_why(client):
    response = await chat(client)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["model"] == "phi4_fast"
    assert body["choices"][0]["message"]["content"] == "Hola"
    assert response.headers["x-axion-model"] == "phi4_fast"
    assert response.headers["x-axion-reason"]
    assert response.headers["x-axion-reason"].isascii()
    assert body["id"] == f"chatcmpl-{response.headers['x-axion-decision']}"


async def test_code_goes_to_the_coder(client):
    messages = [{"role": "user", "content": "Write a Python function that reverses a string"}]

    response = await chat(client, messages=messages)

    assert response.json()["model"] == "qwen_coder"
    assert "code" in response.headers["x-axion-reason"]


async def test_a_named_model_answers_itself(client):
    response = await chat(client, model="mistral_balanced")

    assert response.json()["model"] == "mistral_balanced"
    assert response.headers["x-axion-reason"] == "named by the client -> mistral_balanced"


@pytest.mark.parametrize(("alias", "model"), [("gpt-4o", "phi4_fast"), ("coder", "qwen_coder")])
async def test_an_alias_stands_for_a_model_or_for_auto(client, alias, model):
    response = await chat(client, model=alias)

    assert response.json()["model"] == model
    assert response.headers["x-axion-reason"].startswith(f"alias {alias}")
    assert response.headers["x-axion-reason"].endswith(f" -> {model}")


async def test_a_stream_has_these_bytes(client):
    messages = [{"role": "user", "content": "uno dos"}]
    response = await chat(
        client, messages=messages, stream=True, stream_options={"include_usage": True}
    )

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, must-revalidate"
    head = (
        f'{{"id":"chatcmpl-{response.headers["x-axion-decision"]}","object":"chat.completion.chunk"'
        ',"created":0,"model":"phi4_fast","choices":'
    )
    choice = '[{"index":0,"finish_reason":%s,"logprobs":null,"delta":%s}]'
    assert response.text == "".join(
        f"data: {event}\n\n"
        for event in (
            head + choice % ("null", '{"role":"assistant","content":""}') + "}",
            head + choice % ("null", '{"content":"uno"}') + "}",
            head + choice % ("null", '{"content":" dos"}') + "}",
            head + choice % ('"stop"', "{}") + "}",
            head + '[],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4}}',
            "[DONE]",
        )
    )


async def test_a_completion_is_answered_whole_and_streamed(client):
    body = {"model": "auto", "prompt": "one two"}
    whole = await client.post("/v1/completions", json=body)
    stream = await client.post("/v1/completions", json={**body, "stream": True})

    assert whole.json()["object"] == "text_completion"
    assert whole.json()["choices"][0]["text"] == "one two"
    assert stream.text.endswith("data: [DONE]\n\n")


async def test_models_lists_auto_first_and_then_every_model_with_its_state(client):
    await chat(client)

    response = await client.get("/v1/models")

    body = response.json()
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == [
        "auto",
        "phi4_fast",
        "qwen_coder",
        "mistral_balanced",
        "gemma3_multimodal",
    ]
    assert body["data"][0]["max_model_len"] == 4096
    phi = body["data"][1]
    assert phi["object"] == "model"
    assert phi["state"] == "ready"
    assert phi["max_model_len"] == 64
    assert phi["capabilities"] == {"vision": False, "tools": False}
    assert body["data"][2]["state"] == "cold"  # listing loads nothing
    assert body["data"][2]["capabilities"]["tools"] is True
    assert body["data"][4]["capabilities"]["vision"] is True


@pytest.mark.parametrize(("name", "id_"), [("auto", "auto"), ("coder", "qwen_coder")])
async def test_one_model_can_be_asked_for_also_by_alias(client, name, id_):
    response = await client.get(f"/v1/models/{name}")

    assert response.json()["id"] == id_


async def test_an_unknown_model_is_refused_with_the_nearest_name(client):
    for response in (
        await chat(client, model="qwen_codr"),
        await client.get("/v1/models/qwen_codr"),
    ):
        error = error_of(response)
        assert response.status_code == 404
        assert error["code"] == "model_not_found"
        assert error["param"] is None  # as at OpenAI
        assert error["message"].startswith(
            "The model you asked for does not exist or you do not have access to it"
            " (did you mean `qwen_coder`?)."
        )


@pytest.mark.parametrize("name", ["429", "429 rate limit <script>", "x" * 1_000_000])
async def test_an_unknown_model_s_name_is_not_repeated(client, name):
    error = error_of(await chat(client, model=name))

    assert error["message"] == (
        "The model you asked for does not exist or you do not have access to it. There are: auto, "
        "auto:balanced, auto:fastest, auto:quality, phi4_fast, qwen_coder, mistral_balanced, "
        "gemma3_multimodal, gpt-4o, coder."
    )


async def test_only_the_beginning_of_an_unknown_name_is_compared(client, monkeypatch):
    """Comparing a megabyte would hold the event loop for a tenth of a second."""
    compared = []
    monkeypatch.setattr("router.catalogue.nearest", lambda name, _: compared.append(name) or "")

    await chat(client, model="x" * 1_000_000)

    assert compared == ["x" * 64]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[]", "invalid_type", None),
        (b"null", "invalid_type", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model": "auto"}', "missing_required_parameter", "messages"),
        (b'{"model": 5, "messages": []}', "invalid_type", "model"),
        (b'{"model": "auto", "messages": []}', "empty_array", "messages"),
        (b'{"model": "auto", "messages": {}}', "invalid_type", "messages"),
        (b'{"model": "auto", "messages": ["hi"]}', "invalid_type", "messages[0]"),
        (
            b'{"model": "auto", "messages": [{"content": "hi"}]}',
            "missing_required_parameter",
            "messages[0].role",
        ),
        (
            b'{"model": "auto", "messages": [{"role": "robot", "content": "hi"}]}',
            "invalid_value",
            "messages[0].role",
        ),
        (
            b'{"model": "auto", "messages": [{"role": "user", "content": 5}]}',
            "invalid_type",
            "messages[0].content",
        ),
        (
            b'{"model": "auto", "stream": "yes", "messages": [{"role": "user", "content": "a"}]}',
            "invalid_type",
            "stream",
        ),
        (b"[" * 100_000, "invalid_type", None),
        (
            b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "invalid_json",
            None,
        ),
    ],
    ids=lambda value: value[:60].decode("latin1") if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_wrong_is_refused_with_the_field_at_fault(client, body, code, param):
    error = error_of(await client.post("/v1/chat/completions", content=body))

    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/nothing", "not_found"),
        ("GET", "/v1/chat/completions", "method_not_allowed"),
        ("DELETE", "/health", "method_not_allowed"),
        ("POST", "/v1/models", "method_not_allowed"),
        ("PROPFIND", "/health", "method_not_allowed"),
        ("OPTIONS", "/v1/nothing", "not_found"),
        ("GET", "/docs/nothing", "not_found"),
        ("GET", "/docs/nothing.json", "not_found"),
        ("POST", "/docs", "method_not_allowed"),
        ("GET", "/v1/models/qwen_coder/load/x", "not_found"),
        ("POST", "/v1/models/qwen_coder/lod", "not_found"),
        ("POST", "/v1/models/some/owner/lod", "not_found"),
        ("POST", "/v1/models/qwen_coder", "method_not_allowed"),
        ("GET", "/v1/models/qwen_coder/load", "method_not_allowed"),
        ("DELETE", "/v1/models/some/owner", "method_not_allowed"),
    ],
)
async def test_a_wrong_url_or_method_gets_the_envelope_too(client, method, path, code):
    response = await client.request(method, path)

    assert error_of(response)["code"] == code
    if code == "method_not_allowed":
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/health/", "//health", "/v1//models", "/v1/models/"])
async def test_more_slashes_than_needed_do_no_harm(client, path):
    assert (await client.get(f"http://axion{path}")).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/v1/models", "/docs", "/"])
async def test_head_answers_like_get_without_the_body(client, path):
    got, head = await client.get(path), await client.head(path)

    assert head.status_code == got.status_code == 200
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.content == b""


async def test_options_and_a_wrong_method_tell_the_right_ones(client):
    options = await client.options("/health")
    wrong = await client.delete("/health")
    head = await client.head("/v1/chat/completions")

    assert options.status_code == 204
    assert set(options.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert head.status_code == 405
    assert set(head.headers["allow"].split(", ")) == {"POST", "OPTIONS"}


async def test_every_response_has_an_id_of_its_own(client):
    responses = [
        await client.get("/health"),
        await client.get("/v1/nothing"),
        await client.delete("/health"),
        await client.options("/health"),
        await client.get("/docs"),
        await chat(client),
        await chat(client, model="nothing"),
    ]

    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == len(responses)
    assert all(re.fullmatch("[0-9a-f]{24}", each) for each in ids)


async def test_the_log_has_the_id_of_a_response_whose_handler_broke(client, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Catalogue, "entries", broken)

    response = await client.get("/v1/models")

    assert error_of(response)["code"] == "internal_error"
    assert f"{response.headers['x-request-id']} GET /v1/models: internal error" in caplog.text


@contextlib.asynccontextmanager
async def client_of(service):
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        yield client


async def test_pages_of_other_origins_may_use_it_only_if_they_are_named(make_service):
    page = "https://chat.example.com"
    ask = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    named = make_service(server=ServerSettings(cors_origins=[page]))
    async with client_of(named) as client:
        preflight = await client.options("/v1/chat/completions", headers=ask)
        answers = [
            await client.post("/v1/chat/completions", json=HOLA, headers={"origin": page}),
            await client.get("/v1/nothing", headers={"origin": page}),
        ]
        other = await client.get("/v1/models", headers={"origin": "https://evil.example.com"})
    async with client_of(make_service()) as client:
        unnamed = await client.get("/v1/models", headers={"origin": page})

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == page
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == page
        assert "x-axion-model" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in unnamed.headers


@pytest.mark.parametrize("origin", ["chat.example.com", "https://chat.example.com/", "null", ""])
def test_what_is_not_an_origin_is_refused_in_the_configuration(origin):
    with pytest.raises(msgspec.ValidationError, match="cors_origins"):
        msgspec.convert({"cors_origins": [origin]}, ServerSettings)


async def test_a_body_that_does_not_arrive_in_time_is_a_408(make_service, monkeypatch):
    monkeypatch.setattr(app, "BODY_S", 0.02)
    service = make_service()

    async def for_ever():
        yield b"{"
        await asyncio.sleep(60)

    async with client_of(service) as client:
        response = await client.post("/v1/chat/completions", content=for_ever())

    assert error_of(response)["code"] == "request_timeout"
    assert response.headers["connection"] == "close"
    assert service.shutdown.running == 0


async def test_a_body_past_the_limit_is_refused(make_service):
    service = make_service(server=ServerSettings(max_body_mb=0.001))
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        exact = json.dumps(HOLA).encode().ljust(1000)
        assert (await client.post("/v1/chat/completions", content=exact)).status_code == 200
        error = error_of(await client.post("/v1/chat/completions", content=exact + b" "))
        assert error["code"] == "request_too_large"


async def test_a_prompt_past_the_context_of_a_named_model_is_refused_with_both_numbers(client):
    messages = [{"role": "user", "content": "palabra " * 100}]

    response = await chat(client, model="phi4_fast", messages=messages)

    error = error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert error["message"].startswith("This model's maximum context length is 64 tokens. However")
    assert "palabra" not in error["message"]
    assert response.headers["x-axion-model"] == "phi4_fast"


async def test_auto_takes_a_longer_context_when_the_default_is_too_short(client):
    messages = [{"role": "user", "content": "hello there " * 500}]

    response = await chat(client, messages=messages)

    assert response.json()["model"] == "gemma3_multimodal"


async def test_a_prompt_past_every_context_is_refused(client):
    messages = [{"role": "user", "content": "hello there " * 9000}]

    error = error_of(await chat(client, messages=messages))

    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 4096 tokens" in error["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


async def test_images_go_to_a_model_that_sees(client):
    content = [{"type": "text", "text": "¿Qué ves?"}, IMAGE]

    response = await chat(client, messages=[{"role": "user", "content": content}])

    assert response.json()["model"] == "gemma3_multimodal"


async def test_a_named_model_that_cannot_see_refuses_images(client):
    content = [{"type": "text", "text": "What is this?"}, IMAGE]

    error = error_of(
        await chat(client, model="qwen_coder", messages=[{"role": "user", "content": content}])
    )

    assert error["code"] == "no_capable_model"


async def test_health_is_live_and_ready_tells_which_models_are_broken(client):
    assert (await client.get("/health")).json() == {"status": "ok"}
    await chat(client)
    await chat(client, model="qwen_coder")
    engine_of = client.service.pool.engine

    engine_of("qwen_coder").break_down("its process ended")
    response = await client.get("/health/ready")
    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    assert response.json()["failures"] == {"qwen_coder": "its process ended"}

    engine_of("phi4_fast").break_down("its process ended")  # the default: others answer for it
    response = await client.get("/health/ready")
    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    assert (await chat(client)).status_code == 200


async def test_not_ready_while_every_model_is_in_the_pause_after_a_failure(make_service):
    loader = Gated(EngineFailed("it will not start"))
    loader.gate.set()
    service = make_service(loader)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        for model in ("phi4_fast", "qwen_coder", "mistral_balanced"):
            await chat(client, model=model)
        assert (await client.get("/health/ready")).status_code == 200
        await chat(client, model="gemma3_multimodal")

        response = await client.get("/health/ready")

    assert response.status_code == 503
    assert response.json()["reasons"][0] == "phi4_fast failed: it will not start"
    assert len(response.json()["reasons"]) == 4


async def test_not_ready_until_the_preloads_are_through(make_service):
    model = ModelSettings(name="a", source="x", engine="echo", preload=True)
    service = make_service(models=[model], routing=PolicySettings(default="a"), aliases={})
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        response = await client.get("/health/ready")
        assert response.status_code == 503
        assert response.json()["reasons"] == ["a is loading"]

        await service.pool.preload()
        assert (await client.get("/health/ready")).json()["status"] == "ready"


async def test_a_failure_after_the_first_byte_is_an_error_event_and_then_done(client):
    await chat(client)
    engine = client.service.pool.engine("phi4_fast")
    events = []
    async with client.stream(
        "POST",
        "/v1/chat/completions",
        json={**HOLA, "stream": True, "messages": [{"role": "user", "content": "a b"}]},
    ) as response:
        # The app runs ahead of this reader, so the engine breaks as soon as it is asked again.
        events = [line async for line in response.aiter_lines() if line]
    assert events[-1] == "data: [DONE]"

    engine._word_s = 0.01
    stream = client.stream(
        "POST",
        "/v1/chat/completions",
        json={**HOLA, "stream": True, "messages": [{"role": "user", "content": "a b c d"}]},
    )
    import asyncio

    asyncio.get_running_loop().call_later(0.025, engine.break_down, "its process ended")
    async with stream as response:
        assert response.status_code == 200
        events = [line async for line in response.aiter_lines() if line]
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["code"] == "engine_failed"
    assert error["type"] == "server_error"


async def test_a_failure_before_the_first_byte_has_its_status(client):
    await chat(client)

    async def broken(*_):
        raise RuntimeError("a bug")

    client.service.pool.engine("phi4_fast").generate = broken
    for stream in (False, True):
        error = error_of(await chat(client, stream=stream))
        assert error["code"] == "internal_error"
        assert "a bug" not in error["message"]


async def test_the_openapi_page_describes_every_endpoint(client):
    schema = (await client.get("/docs/openapi.json")).json()

    assert set(schema["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/feedback",
        "/v1/route",
        "/v1/decisions/{decision_id}",
        "/v1/policy",
        "/v1/policy/reload",
        "/v1/policy/rollback",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/load",
        "/v1/models/{model}/unload",
        "/v1/system",
        "/health",
        "/health/ready",
    }
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    assert "requestBody" in chat
    assert "`queue_full`" in chat["responses"]["429"]["description"]
    assert set(schema["paths"]["/v1/models/{model}"]["get"]["responses"]) == {"200", "404", "500"}
    assert "`reasons`" in schema["paths"]["/health/ready"]["get"]["responses"]["503"]["description"]


async def test_the_page_needs_nothing_but_itself(client):
    """It shows on a server without internet, and without scripts."""
    response = await client.get("/docs")

    assert response.headers["content-type"].startswith("text/html")
    assert "<script" not in response.text
    assert re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", response.text) == ["/docs/openapi.json"]
    for path in (await client.get("/docs/openapi.json")).json()["paths"]:
        assert f" {path}</code>" in response.text
    for code in CODES:
        assert f"<code>{code}</code>" in response.text
    assert "<td><code>messages</code><td>body<td>array<td>needed" in response.text
    assert "other models may have to leave for it" in response.text


async def test_the_root_points_to_the_rest(client):
    assert (await client.get("/")).json()["docs"] == "/docs"


async def test_tools_need_a_model_that_calls_them_unless_none_are_to_be_called(client):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    offered = await chat(client, tools=tools)
    declined = await chat(client, tools=tools, tool_choice="none")

    assert offered.json()["model"] == "qwen_coder"
    assert declined.json()["model"] == "phi4_fast"


async def test_an_alias_in_any_script_makes_a_sound_header(make_service):
    service = make_service(aliases={"último\n模型": "auto"})
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        response = await chat(client, model="último\n模型")

    assert response.status_code == 200
    assert response.headers["x-axion-reason"].startswith(r"alias \xfaltimo\n\u6a21\u578b; ")


async def test_every_request_writes_one_line_into_the_log_without_its_text(client, caplog):
    caplog.set_level("INFO", "axion.request")
    secret = [{"role": "user", "content": "mi secreto"}]

    answers = [
        await chat(client, messages=secret),
        await chat(client, messages=secret, stream=True),
    ]
    refused = await chat(client, model="nothing")

    lines = [record.getMessage() for record in caplog.records]
    ids = [answer.headers["x-axion-decision"] for answer in (*answers, refused)]
    assert [line.split()[0] for line in lines] == ids
    assert "auto -> phi4_fast: ok in" in lines[0]
    assert "auto -> phi4_fast: ok in" in lines[1]
    assert "-> -: model_not_found" in lines[2]
    assert "secreto" not in "".join(lines)


async def test_a_verbose_log_has_the_whole_decision_without_the_client_s_text(client, caplog):
    caplog.set_level("DEBUG", "axion.request")
    messages = [{"role": "user", "content": "Write a secret Python function"}]

    response = await chat(client, messages=messages, tools=[{}])

    id_, text = caplog.records[0].getMessage().split(maxsplit=1)
    whole = json.loads(text)
    assert id_ == response.headers["x-axion-decision"]
    assert whole["task"]["label"] == "code"
    assert whole["task"]["confidence"] > 0.5
    assert whole["task"]["signals"]["code"] > 0.5
    assert whole["decision"]["rule"] == "code"
    candidates = whole["decision"]["candidates"]
    assert (candidates[0]["model"], candidates[0]["why_not"]) == ("phi4_fast", "calls no tools")
    assert [each["capable"] for each in candidates] == [False, True, False, False]
    assert "secret" not in text


class Gated:
    """A loader whose starts wait until the test opens the gate, or fail."""

    def __init__(self, error=None):
        self.gate = asyncio.Event()
        self.error = error

    async def locate(self, model):
        return None

    def check(self, model, endpoint, body):
        pass

    def footprint_bytes(self, model, directory):
        return 0

    def progress(self, model):
        return 0.62

    async def start(self, model, directory):
        await self.gate.wait()
        if self.error:
            raise self.error
        return EchoEngine(model.name, max_model_len=model.max_model_len)


def body(stream=True, **more):
    return json.dumps({**HOLA, "stream": stream, **more}).encode()


async def replied(service, text, resources, caller="ana"):
    dispatcher = service.dispatcher
    return await dispatcher.dispatch(service.journal.open("chat"), text, {}, caller, resources)


async def test_a_stream_that_waits_for_a_load_has_comments_at_once_and_then_the_answer(
    make_service,
):
    loader = Gated()
    service = make_service(loader)
    async with contextlib.AsyncExitStack() as resources:
        reply = await replied(service, body(), resources)
        first = await anext(reply.events)
        loader.gate.set()
        rest = [event async for event in reply.events]
    await service.pool.close()

    assert first == b": loading phi4_fast, weights 62 %\n\n"
    assert b'"content":"Hola"' in b"".join(rest)
    assert rest[-1] == b"data: [DONE]\n\n"


async def test_a_load_that_fails_while_a_stream_waits_is_an_error_event_and_then_done(make_service):
    loader = Gated(RuntimeError("no such tensor"))
    service = make_service(loader)
    async with contextlib.AsyncExitStack() as resources:
        reply = await replied(service, body(), resources)
        await anext(reply.events)
        loader.gate.set()
        rest = [event async for event in reply.events]
    await service.pool.close()

    error = json.loads(rest[-2].removeprefix(b"data: "))["error"]
    assert error["code"] == "load_failed"
    assert error["message"] == "`phi4_fast` could not be loaded: no such tensor."
    assert rest[-1] == b"data: [DONE]\n\n"


async def test_auto_tries_a_default_that_failed_again_after_its_pause(make_service, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("engines.pool.time.monotonic", lambda: now)
    loader = Gated(RuntimeError("no such tensor"))
    loader.gate.set()
    service = make_service(loader)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        assert error_of(await chat(client))["code"] == "load_failed"
        loader.error = None
        during = await chat(client)
        now += 1.01
        after = await chat(client)
    await service.pool.close()

    assert during.json()["model"] != "phi4_fast"
    assert during.headers["x-axion-reason"].endswith("phi4_fast skipped: it has failed")
    assert after.json()["model"] == "phi4_fast"


async def test_when_every_model_has_failed_the_client_gets_the_reason_and_when_it_is_tried_again(
    make_service, monkeypatch
):
    now = 1000.0
    monkeypatch.setattr("engines.pool.time.monotonic", lambda: now)
    loader = Gated(RuntimeError("no such tensor"))
    loader.gate.set()
    service = make_service(loader)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        for name in ("phi4_fast", "qwen_coder", "mistral_balanced", "gemma3_multimodal"):
            await chat(client, model=name)
        response = await chat(client)
        now += int(response.headers["retry-after"]) + 0.01
        loader.error = None
        again = await chat(client)
    await service.pool.close()

    assert response.status_code == 503
    assert error_of(response)["code"] == "load_failed"
    assert "no such tensor" in error_of(response)["message"]
    assert response.headers["x-axion-reason"].endswith(
        "-> phi4_fast although it has failed: nothing better is left"
    )
    assert again.json()["model"] == "phi4_fast"


async def test_a_load_that_fails_quickly_still_has_its_status(make_service):
    loader = Gated(RuntimeError("no such tensor"))
    loader.gate.set()
    service = make_service(loader)
    async with contextlib.AsyncExitStack() as resources:
        with pytest.raises(Unavailable, match="no such tensor"):
            await replied(service, body(), resources)
    await service.pool.close()


async def test_leaving_while_the_stream_waits_gives_the_place_back(make_service):
    service = make_service(Gated())
    async with contextlib.AsyncExitStack() as resources:
        reply = await replied(service, body(), resources)
        await anext(reply.events)
        assert service.pool.snapshots()[0].held == 1

    assert service.pool.snapshots()[0].held == 0
    await service.pool.close()


async def test_a_deadline_that_passes_while_waiting_is_a_504(make_service):
    service = make_service(Gated())
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        response = await chat(client, deadline_ms=20)
    await service.pool.close()

    assert error_of(response)["code"] == "deadline_exceeded"
    assert int(response.headers["retry-after"]) >= 1


async def test_a_model_can_be_loaded_and_unloaded_by_name_or_alias(client):
    loaded = await client.post("/v1/models/coder/load")
    unloaded = await client.post("/v1/models/qwen_coder/unload")
    again = await client.post("/v1/models/qwen_coder/unload")

    assert (loaded.status_code, loaded.json()["id"], loaded.json()["state"]) == (
        200,
        "qwen_coder",
        "ready",
    )
    assert (unloaded.status_code, unloaded.json()["state"]) == (200, "cold")
    assert again.json()["state"] == "cold"


@pytest.mark.parametrize(
    ("name", "code"),
    [("auto", "invalid_value"), ("gpt-4o", "invalid_value"), ("x", "model_not_found")],
)
@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_what_is_not_one_model_can_be_neither_loaded_nor_unloaded(client, name, code, verb):
    response = await client.post(f"/v1/models/{name}/{verb}")

    assert error_of(response)["code"] == code


@pytest.mark.parametrize("alias", ["openai/gpt-4o", "hub/openai/gpt-4o"])
async def test_an_alias_with_slashes_can_be_looked_at_loaded_and_unloaded(make_service, alias):
    service = make_service(aliases={alias: "qwen_coder"})
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        seen = await client.get(f"/v1/models/{alias}")
        loaded = await client.post(f"/v1/models/{alias}/load")
        unloaded = await client.post(f"/v1/models/{alias}/unload")
        unknown = [
            await client.get(f"/v1/models/{alias}o"),
            await client.post(f"/v1/models/{alias}o/load"),
            await client.post(f"/v1/models/{alias}o/unload"),
        ]
    await service.pool.close()

    assert (seen.json()["id"], seen.json()["state"]) == ("qwen_coder", "cold")
    assert (loaded.status_code, loaded.json()["state"]) == (200, "ready")
    assert (unloaded.status_code, unloaded.json()["state"]) == (200, "cold")
    assert {error_of(response)["code"] for response in unknown} == {"model_not_found"}


async def test_users_of_one_key_take_turns(make_service):
    """One place; ana has sent three requests when bea sends hers: bea is second."""
    models = [
        ModelSettings(name="only", source="echo", engine="echo", max_num_seqs=1, max_model_len=64)
    ]
    loader = Gated()
    service = make_service(
        loader, models=models, routing=PolicySettings(default="only"), aliases={}
    )
    order = []

    async def ask(user):
        async with contextlib.AsyncExitStack() as resources:
            reply = await replied(service, body(False, user=user), resources, caller="one key")
            order.append(user)
        return reply

    loader.gate.set()
    await service.pool.load("only")
    async with service.pool.lease(Ticket("only")):
        waiting = [asyncio.create_task(ask(user)) for user in ("ana", "ana", "ana", "bea")]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    await service.pool.close()

    assert order == ["ana", "bea", "ana", "ana"]


async def test_with_serve_while_loading_a_resident_model_answers_and_the_other_is_loaded(
    make_service,
):
    routing = PolicySettings(
        default="phi4_fast",
        rules=[
            RuleSettings(name="code", when=ConditionSettings(task="code"), prefer=["qwen_coder"])
        ],
        serve_while_loading=True,
    )
    loader = Gated()
    loader.gate.set()
    service = make_service(loader, routing=routing)
    code = [{"role": "user", "content": "Write a Python function"}]
    async with contextlib.AsyncExitStack() as resources:
        await service.pool.load("phi4_fast")
        loader.gate.clear()
        first = await replied(service, body(False, messages=code), resources)
        loader.gate.set()
        await service.pool.load("qwen_coder")
        second = await replied(service, body(False, messages=code), resources)
    await service.pool.close()

    assert json.loads(first.body)["model"] == "phi4_fast"
    assert json.loads(second.body)["model"] == "qwen_coder"


async def test_the_system_page_tells_of_processor_memory_and_engines(client):
    await chat(client)

    body = (await client.get("/v1/system")).json()

    assert body["cpu"]["usable_cores"] >= 1
    assert body["memory"]["budget_bytes"] == 2**30
    assert 0 < body["memory"]["available_bytes"] <= body["memory"]["total_bytes"]
    first = body["engines"][0]
    assert (first["model"], first["state"], first["running"]) == ("phi4_fast", "ready", 0)
    assert (first["computing"], first["retry_in_s"]) == (0, 0)
    assert {engine["state"] for engine in body["engines"][1:]} == {"cold"}
    assert set(body["cpu"]["kernels"]["awq"]) == {"name", "reason", "instead"}
    assert [entry["model"] for entry in body["plan"]["models"]] == [
        engine["model"] for engine in body["engines"]
    ]
    assert body["plan"]["problems"] == []


async def test_the_system_page_has_the_plan_of_what_is_on_this_disk(make_service, tmp_path):
    directory = write_model(tmp_path, LLAMA, {"w": ("BF16", 1024, 1024)})
    models = [
        ModelSettings(name="here", source=str(directory), kv_cache_gb=0.5),
        ModelSettings(name="large", source=str(directory), kv_cache_gb=3),
        ModelSettings(name="away", source="nobody/nothing", kv_cache_gb=0.5),
    ]
    service = make_service(
        Gated(),
        models=models,
        routing=PolicySettings(default="here"),
        aliases={},
        pool=PoolSettings(memory_budget_gb=2),
    )
    async with client_of(service) as client:
        plan = (await client.get("/v1/system")).json()["plan"]

    here, large, away = plan["models"]
    parts = (here["weights_bytes"], here["kv_cache_bytes"], here["process_bytes"])
    assert here["kv_cache_bytes"] == 2**29
    assert here["total_bytes"] == sum(parts)
    assert plan["together"] == [["here"]]
    assert plan["problems"] == [large["problem"]]
    assert large["problem"].startswith("large takes")
    assert (away["here"], away["total_bytes"]) == (False, None)
