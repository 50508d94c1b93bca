"""The stories of requests: what is kept of them, and what is learned from them."""

import logging
import re

import pytest

from config import LedgerSettings
from router import journal as module
from router.counterfactual import counterfactual
from router.journal import explanation
from tests.scripted import Scripted, asked


@pytest.fixture
async def service(make_service):
    service = make_service(Scripted())
    yield service
    await service.pool.close()


async def test_a_decision_is_found_with_what_became_of_it(service):
    record, reply = await asked(service, "Write a Python function that reverses a list")

    entry = await service.journal.find(record.id)

    assert (entry.id, entry.asked, entry.model) == (record.id, "auto", "qwen_coder")
    assert (entry.rule, entry.outcome) == ("code", "ok")
    assert entry.usage.completion_tokens == reply["usage"]["completion_tokens"]
    assert (entry.policy, entry.version) == ("default", record.choice.policy.version)
    assert entry.loads == ("qwen_coder",)
    assert entry.seconds > 0
    assert entry.text is None
    assert set(entry.elapsed_us) == {"parse", "describe", "decide"}
    assert [each.model for each in entry.inputs] == [each.model for each in entry.candidates]
    assert await service.journal.find("another") is None


async def test_a_model_in_memory_was_not_loaded_for_it(service):
    await asked(service, "hola")
    record, _ = await asked(service, "hola")

    assert (await service.journal.find(record.id)).loads == ()


async def test_the_first_end_of_a_story_counts(service):
    record, _ = await asked(service, "hola")

    service.journal.close(record, "left by the client")

    assert (await service.journal.find(record.id)).outcome == "ok"


async def test_only_the_latest_stay_in_memory(service, monkeypatch):
    monkeypatch.setattr(module, "LATEST_MAX", 3)
    records = [(await asked(service, "hola"))[0] for _ in range(5)]

    found = [await service.journal.find(record.id) for record in records]

    assert [each is not None for each in found] == [False, False, True, True, True]


async def test_a_request_that_was_not_decided_has_a_line_in_the_log_only(service, caplog):
    caplog.set_level(logging.INFO)
    record = service.journal.open("chat")

    service.journal.close(record, "invalid_json")

    assert f"{record.id} chat ? -> -: invalid_json" in caplog.text
    assert await service.journal.find(record.id) is None


async def test_the_forecast_learns_from_answers_that_went_as_decided(service):
    record, _ = await asked(service, "hola")
    assert service.forecast.error(record.model) is not None

    named, _ = await asked(service, "hola", "mistral_balanced")
    assert service.forecast.error(named.model) is not None

    service.forecast._keys["gemma3_multimodal"] = "another source than echo"
    record = service.journal.open("chat")
    record.choice = service.chooser.choose(named.choice.request, {})
    record.model, record.attempts = "gemma3_multimodal", 2
    service.journal.close(record, "ok")
    assert service.forecast.error("gemma3_multimodal") is None


async def test_with_a_ledger_older_decisions_are_found_too(make_service, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LATEST_MAX", 0)
    settings = LedgerSettings(path=str(tmp_path / "ledger.sqlite"), keep_text=True)
    service = make_service(Scripted(), ledger=settings)
    record, _ = await asked(service, "hola")

    entry = await service.journal.find(record.id)

    assert (entry.model, entry.text) == (record.model, "hola")
    assert entry.inputs == tuple(record.choice.candidates)
    await service.pool.close()
    service.ledger.close()


async def test_texts_stay_out_of_memory(make_service, tmp_path):
    settings = LedgerSettings(path=str(tmp_path / "l"), keep_text=True)
    service = make_service(Scripted(), ledger=settings)
    record, _ = await asked(service, "hola")

    assert (await service.journal.find(record.id)).text is None
    assert (await service.ledger.decision(record.id)).text == "hola"
    await service.pool.close()
    service.ledger.close()


def test_no_header_is_longer_than_proxies_take(service):
    record = service.journal.open("chat")
    record.reason = "x" * 100_000

    assert len(record.headers()["x-axion-reason"]) == module.HEADER_MAX


async def test_headers_are_ascii_and_only_what_is_known(service):
    record = service.journal.open("chat")
    assert set(record.headers()) == {"x-request-id", "x-axion-decision"}

    record.model, record.reason = "phi4_fast", "alias ñandú\r\nx: y -> phi4_fast"

    assert record.headers()["x-axion-reason"] == "alias \\xf1and\\xfa\\r\\nx: y -> phi4_fast"


async def test_an_explanation_has_what_the_api_promises(service):
    record, _ = await asked(service, "Write a Python function that reverses a list")
    sentences = counterfactual(record.choice)

    said = explanation(await service.journal.find(record.id), sentences)

    assert sentences[0] == "Without the rule `code`, `phi4_fast` would win."
    assert said["counterfactual"] == sentences
    assert said["policy"] == {"name": "default", "version": record.choice.policy.version}
    assert said["task"]["label"] == "code"
    assert said["measured"]["escalated_from"] is None
    best = next(each for each in said["candidates"] if each["model"] == "phi4_fast")
    price = record.choice.policy.price_per_second
    worth = best["fit"] - price * best["predicted_seconds"]["total"] - best["displacement"]
    assert best["worth"] == pytest.approx(worth)


async def test_other_policies_are_compared_under_the_names_that_clients_use(service):
    record, _ = await asked(service, "hola", "qwen_coder")

    sentences = counterfactual(record.choice)

    assert sentences[0] == "`auto` would take `phi4_fast`."
    assert all(re.match(r"`auto(:\w+)?` would take ", sentence) for sentence in sentences)
