"""Decisions explained over HTTP: dry runs, and what really happened."""

import asyncio
import contextlib

import httpx
import msgspec
import pytest

from config import LedgerSettings
from engines.echo import EchoEngine
from engines.load import EngineLoader
from engines.protocol import Refused
from router import explain
from router.app import create_app
from router.serve import build, read_configuration
from tests.policy_files import CODE, CONFIGURATION, chat, replace, write


@contextlib.asynccontextmanager
async def client_of(path, **changes):
    settings = msgspec.structs.replace(read_configuration(path), **changes)
    service = build(settings, path, EngineLoader(settings, path.parent))
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        client.service = service
        yield client
    await service.pool.close()
    if service.ledger:
        service.ledger.close()


@pytest.fixture
async def here(tmp_path):
    async with client_of(write(tmp_path)) as client:
        yield client


async def test_a_dry_run_has_every_field(here):
    said = (await here.post("/v1/route", json=chat(CODE))).json()

    assert set(said) == {
        "decision_id",
        "model",
        "asked",
        "policy",
        "task",
        "candidates",
        "rule",
        "reason",
        "consequences",
        "counterfactual",
        "elapsed_us",
    }
    assert (said["decision_id"], said["model"], said["rule"]) == (None, "coder", "code")
    assert said["reason"].startswith("rule code: code (")
    assert said["consequences"] == {"loads": ["coder"], "evicts": []}
    assert {"label", "confidence", "difficulty", "language", "prompt_tokens", "signals"} <= set(
        said["task"]
    )
    assert set(said["elapsed_us"]) == {"parse", "describe", "decide"}
    assert all(each > 0 for each in said["elapsed_us"].values())
    small, coder = said["candidates"]
    assert (small["model"], small["capable"], small["why_not"]) == ("small", True, None)
    assert coder["state"] == "cold"
    assert set(coder["predicted_seconds"]) == {"load", "queue", "prefill", "decode", "total"}


async def test_a_dry_run_loads_and_remembers_nothing(here):
    before = here.service.pool.snapshots()

    for _ in range(3):
        await here.post("/v1/route", json=chat(CODE), headers={"x-session-id": "one"})

    assert here.service.pool.snapshots() == before
    assert len(here.service.chooser._conversations._places) == 0
    assert not here.service.journal._latest
    assert not here.service.journal._running


async def test_a_dry_run_says_what_a_request_then_gets(here):
    said = (await here.post("/v1/route", json=chat(CODE))).json()
    got = await here.post("/v1/chat/completions", json=chat(CODE))

    assert got.headers["x-axion-model"] == said["model"]
    assert got.headers["x-axion-reason"] == said["reason"]


async def test_the_worth_adds_up(here):
    said = (await here.post("/v1/route", json=chat(CODE))).json()
    price = here.service.chooser.policies.get().price_per_second

    for each in said["candidates"]:
        seconds = each["predicted_seconds"]
        parts = sum(seconds[part] for part in ("load", "queue", "prefill", "decode"))
        assert seconds["total"] == pytest.approx(parts)
        assert each["worth"] == pytest.approx(
            each["fit"] - price * seconds["total"] - each["displacement"]
        )


@pytest.mark.parametrize(
    ("body", "headers"),
    [(chat("Hola", model="auto:mine"), {}), (chat("Hola"), {"x-axion-policy": "mine"})],
    ids=["model", "header"],
)
async def test_the_policy_is_asked_for_as_in_a_request(here, body, headers):
    said = (await here.post("/v1/route", json=body, headers=headers)).json()

    assert (said["policy"]["name"], said["model"], said["rule"]) == (
        "mine",
        "coder",
        "all-to-coder",
    )


async def test_the_body_of_a_completion_is_taken_too(here):
    said = (await here.post("/v1/route", json={"model": "auto", "prompt": CODE})).json()

    assert said["model"] == "coder"


async def test_of_a_named_model_it_says_what_each_would_be_worth(here):
    said = (await here.post("/v1/route", json=chat(CODE, model="small"))).json()

    assert (said["model"], said["reason"]) == ("small", "named by the client -> small")
    assert [each["model"] for each in said["candidates"]] == ["small", "coder"]
    assert all(each["worth"] for each in said["candidates"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"\xff", "invalid_json"),
        (b'{"prompt": ' + b"[" * 100_000, "invalid_json"),
        (b'{"messages": [{"role": "user"}]}', "missing_required_parameter"),
        (b'{"model": "auto"}', "missing_required_parameter"),
        (b'{"model": "auto", "prompt": ""}', "invalid_value"),
        (b'{"model": "auto", "messages": []}', "empty_array"),
        (b'{"model": "none", "prompt": "a"}', "model_not_found"),
        (b'{"model": "auto:none", "prompt": "a"}', "model_not_found"),
        (b'{"model": "auto", "prompt": "' + b"word " * 100_000 + b'"}', "context_length_exceeded"),
    ],
)
async def test_errors_are_as_everywhere(here, body, code):
    response = await here.post("/v1/route", content=body)

    assert response.json()["error"]["code"] == code


async def test_an_unknown_policy_is_refused_with_those_there_are(here):
    response = await here.post("/v1/route", json=chat("Hola"), headers={"x-axion-policy": "no"})

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "policy_not_found"
    assert "balanced, fastest, quality, mine" in response.json()["error"]["message"]


async def test_what_the_engine_would_refuse_is_refused(here, monkeypatch):
    def check(name, endpoint, body):
        raise Refused("No such field.", param="x", code=None)

    monkeypatch.setattr(here.service.pool, "check", check)

    response = await here.post("/v1/route", json=chat("Hola"))

    assert response.json()["error"]["message"] == "No such field."


async def test_a_service_that_stops_answers_no_dry_run(here):
    here.service.shutdown.begun = True

    response = await here.post("/v1/route", json=chat("Hola"))

    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")


# --- what really happened -----------------------------------------------------------------------


async def decision(client, answer):
    return await client.get(f"/v1/decisions/{answer.headers['x-axion-decision']}")


async def test_a_decision_says_what_came_of_it(here):
    answer = await here.post("/v1/chat/completions", json=chat(CODE))

    said = (await decision(here, answer)).json()

    assert said["decision_id"] == answer.headers["x-axion-decision"]
    assert (said["model"], said["rule"]) == ("coder", "code")
    assert said["consequences"]["loads"] == ["coder"]
    measured = said["measured"]
    assert measured["outcome"] == "ok"
    assert measured["seconds"] > 0
    assert measured["tokens"]["completion_tokens"] > 0


async def test_a_decision_that_is_not_known_is_not_found(here):
    response = await here.get("/v1/decisions/no-such-id")

    assert (response.status_code, response.json()["error"]["code"]) == (404, "decision_not_found")


async def test_a_request_that_still_runs_is_running(here, monkeypatch):
    go = asyncio.Event()
    generate = EchoEngine.generate

    async def waiting(self, *arguments):
        await go.wait()
        return await generate(self, *arguments)

    monkeypatch.setattr(EchoEngine, "generate", waiting)
    asking = asyncio.create_task(here.post("/v1/chat/completions", json=chat(CODE)))
    async with asyncio.timeout(10):
        while not (ids := list(here.service.journal._running)):
            await asyncio.sleep(0.01)
        while (response := await here.get(f"/v1/decisions/{ids[0]}")).status_code == 404:
            await asyncio.sleep(0.01)
    go.set()
    answer = await asking

    said = response.json()
    assert said["model"] == "coder"
    assert (said["measured"]["outcome"], said["measured"]["tokens"]) == ("running", None)
    assert (await decision(here, answer)).json()["measured"]["outcome"] == "ok"
    assert not here.service.journal._running


async def test_a_refused_request_leaves_nothing_running(here):
    await here.post("/v1/chat/completions", json=chat("Hola", model="none"))

    assert not here.service.journal._running


async def test_a_decision_in_the_ledger_outlives_the_service(tmp_path):
    path, ledger = write(tmp_path), LedgerSettings(path="./ledger.sqlite")
    async with client_of(path, ledger=ledger) as client:
        answer = await client.post("/v1/chat/completions", json=chat(CODE))
        first = (await decision(client, answer)).json()
    async with client_of(path, ledger=ledger) as client:
        said = (await decision(client, answer)).json()

    assert said == first


async def test_a_ledger_that_cannot_be_read_says_so(tmp_path):
    async with client_of(write(tmp_path), ledger=LedgerSettings(path="./l.sqlite")) as client:
        client.service.ledger.close()

        response = await client.get("/v1/decisions/some-id")

    assert (response.status_code, response.json()["error"]["code"]) == (503, "ledger_failed")


# --- counterfactuals of decisions that are over ---------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The choices of which the counterfactuals were asked."""
    choices = []
    monkeypatch.setattr(
        explain, "counterfactual", lambda choice: choices.append(choice) or ["Else."]
    )
    return choices


async def test_a_decision_is_made_again_for_its_counterfactuals(here, asked):
    answer = await here.post("/v1/chat/completions", json=chat(CODE))

    said = (await decision(here, answer)).json()

    assert said["counterfactual"] == ["Else."]
    assert asked[0].decision.model == said["model"]
    assert asked[0].decision.reason == said["reason"]


async def test_a_decision_of_an_older_version_still_has_counterfactuals(here, asked, tmp_path):
    answer = await here.post("/v1/chat/completions", json=chat(CODE))
    replace(tmp_path / "axion.yaml", CONFIGURATION.replace("[coder]", "[small]"))
    assert await here.service.chooser.policies.reload()

    assert (await decision(here, answer)).json()["counterfactual"] == ["Else."]


async def test_where_a_rule_looked_at_what_is_not_kept_there_are_none(here, asked, tmp_path):
    replace(
        tmp_path / "axion.yaml",
        CONFIGURATION.replace("when: {task: code}", "when: {keywords: [linked]}"),
    )
    await here.service.chooser.policies.reload()
    answer = await here.post("/v1/chat/completions", json=chat(CODE))

    said = (await decision(here, answer)).json()

    assert (said["rule"], said["counterfactual"]) == ("code", [])
    assert not asked
