"""Policies in use: reloaded, refused, rolled back, watched."""

import asyncio
import contextlib
import time

import httpx
import pytest

from config import ConfigError
from engines.load import EngineLoader
from router import policies
from router.app import create_app
from router.policies import NothingBefore, _together
from router.serve import build, read_configuration
from tests.policy_files import CODE, CONFIGURATION, MINE, chat, replace, write


def service_of(path):
    settings = read_configuration(path)
    return build(settings, path, EngineLoader(settings, path.parent))


@contextlib.asynccontextmanager
async def client_of(path):
    service = service_of(path)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        client.service = service
        yield client
    await service.pool.close()


@pytest.fixture
async def here(tmp_path):
    """A client of a service whose files are in `here.path.parent`."""
    path = write(tmp_path)
    async with client_of(path) as client:
        client.path = path
        yield client


def prices(value):
    return CONFIGURATION.replace("routing:", f"routing:\n  price_per_second: {value}")


async def test_the_policies_are_shown_with_their_versions_and_files(here):
    found = (await here.get("/v1/policy")).json()

    by_name = {each["name"]: each for each in found["policies"]}
    assert set(by_name) == {"default", "balanced", "fastest", "quality", "mine"}
    assert [file.rpartition("/")[2] for file in by_name["mine"]["files"]] == [
        "mine.yaml",
        "balanced.yaml",
    ]
    assert by_name["mine"]["tests"] == 1
    assert len(by_name["mine"]["version"]) == 12
    assert [each["in_use"] for each in found["versions"]] == [True]
    assert found["versions"][0]["policies"]["mine"] == by_name["mine"]["version"]
    assert found["versions"][0]["at"] == pytest.approx(time.time(), abs=60)
    assert found["problem"] is None


async def test_a_reload_takes_what_the_files_say_now(here):
    replace(here.path.parent / "mine.yaml", MINE.replace("coder", "small"))

    found = (await here.post("/v1/policy/reload")).json()

    assert found["changed"] is True
    assert len(found["versions"]) == 2
    said = (await here.post("/v1/route", json=chat("Hola", model="auto:mine"))).json()
    assert said["model"] == "small"


async def test_a_reload_without_a_change_says_so(here):
    assert (await here.post("/v1/policy/reload")).json()["changed"] is False
    assert (await here.post("/v1/policy/reload")).json()["changed"] is False
    assert len(here.service.chooser.policies.versions) == 1


async def test_a_broken_file_is_refused_with_its_line_and_the_policies_stay(here):
    before = here.service.chooser.policies.get("mine")
    file = replace(here.path.parent / "mine.yaml", MINE.replace("prefer", "prefers"))

    response = await here.post("/v1/policy/reload")

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "policy_invalid")
    assert f"{file} has " in error["message"]
    assert "line 2: rules[0].prefers: unknown key (did you mean `prefer`?)" in error["message"]
    assert here.service.chooser.policies.get("mine") is before
    assert "did you mean `prefer`" in (await here.get("/v1/policy")).json()["problem"]
    assert (await here.get("/v1/system")).json()["problem"]
    replace(file, MINE)
    assert (await here.post("/v1/policy/reload")).json()["problem"] is None


async def test_a_failing_test_is_refused_with_its_line(here):
    replace(here.path, CONFIGURATION.replace("expect: small", "expect: coder"))

    message = (await here.post("/v1/policy/reload")).json()["error"]["message"]

    assert "line 9: routing.tests[0]: expected `coder`, but the policy chooses `small`" in message


async def test_problems_of_all_files_are_said_at_once(here):
    replace(here.path, CONFIGURATION.replace("expect: small", "expect: coder"))
    replace(here.path.parent / "mine.yaml", MINE.replace("expect: coder", "expect: small"))

    message = (await here.post("/v1/policy/reload")).json()["error"]["message"]

    assert "routing.tests[0]" in message
    assert "line 4: tests[0]: expected `small`, but the policy chooses `coder`" in message


async def test_a_policy_that_is_not_there_is_named_with_its_key(here):
    replace(here.path, CONFIGURATION.replace("./mine.yaml", "fastet"))

    message = (await here.post("/v1/policy/reload")).json()["error"]["message"]

    assert (
        "line 11: policies.mine: there is no shipped policy and no file called `fastet` "
        "(did you mean `fastest`?)" in message
    )


async def test_a_model_that_only_a_new_start_brings_is_no_name_yet(here):
    more = CONFIGURATION.replace(
        "models:", "models:\n  - {name: large, source: echo, engine: echo}"
    ).replace("prefer: [coder]", "prefer: [large]")
    replace(here.path, more)

    message = (await here.post("/v1/policy/reload")).json()["error"]["message"]

    assert "line 8: routing.rules[0].prefer[0]: there is no model called `large`" in message
    assert "a new model needs a new start" in message


async def test_a_policy_that_an_alias_stands_for_cannot_go(tmp_path):
    text = CONFIGURATION + "aliases: {gpt: 'auto:mine'}\n"
    async with client_of(write(tmp_path, text)) as here:
        replace(tmp_path / "axion.yaml", text.replace("mine: ./", "other: ./"))

        message = (await here.post("/v1/policy/reload")).json()["error"]["message"]

    assert "aliases.gpt: there is no policy called `mine`" in message


def test_no_policy_is_called_as_that_of_auto(tmp_path):
    path = write(tmp_path, CONFIGURATION.replace("mine: ./", "default: ./"))

    with pytest.raises(ConfigError, match=r"policies\.default: is the policy of `auto`"):
        read_configuration(path)


async def test_a_policy_has_the_name_that_the_configuration_gives_it(tmp_path):
    path = write(tmp_path, CONFIGURATION.replace("mine: ./mine.yaml", "quick: fastest"))
    async with client_of(path) as here:
        said = (await here.post("/v1/route", json=chat("Hola", model="auto:quick"))).json()

    assert said["policy"]["name"] == "quick"


async def test_rollback_goes_back_and_reload_forward(here):
    first = here.service.chooser.policies.get().version
    replace(here.path, prices(0.5))
    second = (await here.post("/v1/policy/reload")).json()["versions"][-1]["policies"]["default"]

    back = (await here.post("/v1/policy/rollback")).json()

    assert second != first
    assert [each["policies"]["default"] for each in back["versions"]] == [first]
    assert here.service.chooser.policies.get().version == first
    assert (await here.post("/v1/policy/reload")).json()["changed"] is True
    assert here.service.chooser.policies.get().version == second


async def test_without_an_earlier_version_there_is_no_way_back(here):
    response = await here.post("/v1/policy/rollback")

    assert response.status_code == 409
    assert response.json()["error"]["code"] == "no_earlier_policy"


async def test_ten_versions_are_kept(here):
    for index in range(12):
        replace(here.path, prices(index / 100))
        await here.service.chooser.policies.reload()

    assert len(here.service.chooser.policies.versions) == 10
    for _ in range(9):
        await here.service.chooser.policies.rollback()
    with pytest.raises(NothingBefore):
        await here.service.chooser.policies.rollback()
    assert here.service.chooser.policies.get().price_per_second == pytest.approx(0.02)


async def test_reloads_take_turns(here):
    running = most = 0
    read = here.service.chooser.policies._read

    def slowly(path):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return read(path)

    here.service.chooser.policies._read = slowly
    replace(here.path, prices(0.5))

    answers = await asyncio.gather(*(here.post("/v1/policy/reload") for _ in range(5)))

    assert most == 1
    assert sorted(each.json()["changed"] for each in answers) == [False] * 4 + [True]


async def test_a_running_request_keeps_the_policy_it_was_decided_with(here):
    answer = (await here.post("/v1/chat/completions", json=chat("Hola"))).headers
    version = here.service.chooser.policies.get().version
    replace(here.path, prices(0.5))
    await here.service.chooser.policies.reload()

    said = (await here.get(f"/v1/decisions/{answer['x-axion-decision']}")).json()

    assert said["policy"] == {"name": "default", "version": version}


async def test_reloads_under_traffic_lose_no_request_and_mix_no_policies(here):
    texts = [CONFIGURATION, CONFIGURATION.replace("prefer: [coder]", "prefer: [small]")]
    broken = CONFIGURATION.replace("when:", "whem:")
    made, over = 0, False
    outcomes = []

    async def ask():
        while not over:
            response = await here.post("/v1/chat/completions", json=chat(CODE, max_tokens=4))
            outcomes.append(
                (response.status_code, response.headers["x-axion-reason"].partition(" (")[0])
            )

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    while made < 200:
        replace(here.path, broken if made % 10 == 9 else texts[made % 2])
        with contextlib.suppress(ConfigError):
            await here.service.chooser.policies.reload()
        made += 1
    over = True
    await asyncio.gather(*asking)

    assert len(outcomes) > 50
    assert {status for status, _ in outcomes} == {200}
    assert {reason for _, reason in outcomes} == {"rule code: code"}


# --- the files are watched ----------------------------------------------------------------------


@pytest.fixture
async def watched(here, monkeypatch):
    monkeypatch.setattr(policies, "WATCH_S", 0.01)
    monkeypatch.setattr(policies, "RETRY_S", 0.05)
    task = asyncio.create_task(here.service.chooser.policies.watch())
    yield here
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_change_of_a_file_is_taken(watched):
    in_use = watched.service.chooser.policies

    replace(watched.path.parent / "mine.yaml", "price_per_second: 0.25\n")

    await until(lambda: in_use.get("mine").price_per_second == 0.25)


async def test_a_broken_file_is_logged_once_and_mended_later(watched, caplog):
    in_use = watched.service.chooser.policies
    file = watched.path.parent / "mine.yaml"

    replace(file, "price_per_secund: 0.25\n")
    await until(lambda: in_use.problem)
    await asyncio.sleep(0.3)  # it is tried again
    replace(file, "price_per_second: 0.25\n")
    await until(lambda: not in_use.problem)

    assert in_use.get("mine").price_per_second == 0.25
    assert caplog.text.count("policies: not loaded, those in use stay") == 1


async def test_what_was_missing_may_come_later(watched):
    in_use = watched.service.chooser.policies

    replace(watched.path.parent / "mine.yaml", "extends: ./team.yaml\n")
    await until(lambda: in_use.problem)
    replace(watched.path.parent / "team.yaml", "price_per_second: 0.25\n")

    await until(lambda: in_use.get("mine").price_per_second == 0.25)
    replace(watched.path.parent / "team.yaml", "price_per_second: 0.5\n")
    await until(lambda: in_use.get("mine").price_per_second == 0.5)


async def test_the_watcher_does_not_undo_a_rollback(watched):
    in_use = watched.service.chooser.policies
    replace(watched.path.parent / "mine.yaml", "price_per_second: 0.25\n")
    await until(lambda: len(in_use.versions) == 2)

    await in_use.rollback()
    await asyncio.sleep(0.2)

    assert len(in_use.versions) == 1


async def test_the_watcher_survives_a_mistake(watched, caplog):
    in_use = watched.service.chooser.policies
    read, in_use._read = in_use._read, lambda path: 1 / 0
    replace(watched.path.parent / "mine.yaml", "price_per_second: 0.25\n")
    await until(lambda: "ZeroDivisionError" in caplog.text)

    in_use._read = read
    replace(watched.path.parent / "mine.yaml", "price_per_second: 0.5\n")

    await until(lambda: in_use.get("mine").price_per_second == 0.5)


async def test_a_reload_does_not_hold_the_event_loop_up(here):
    read = here.service.chooser.policies._read

    def slowly(path):
        time.sleep(0.3)
        return read(path)

    here.service.chooser.policies._read = slowly
    reload = asyncio.create_task(here.service.chooser.policies.reload())
    longest, last = 0.0, time.perf_counter()
    while not reload.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()

    assert longest < 0.2


def test_several_errors_become_one_text(tmp_path):
    found = _together([ConfigError(tmp_path / "a", []), ConfigError(tmp_path / "b", [])])

    assert str(found) == f"{tmp_path / 'a'} has 0 problems:\n{tmp_path / 'b'} has 0 problems:"


# --- as models ----------------------------------------------------------------------------------


async def test_policies_of_the_configuration_are_listed_as_models(here):
    entries = (await here.get("/v1/models")).json()["data"]

    assert [each["id"] for each in entries] == ["auto", "auto:mine", "small", "coder"]
    assert entries[1]["description"] == (
        "Chooses one of the other models for each request, by the policy mine."
    )


@pytest.mark.parametrize("name", ["auto:fastest", "auto:mine", "auto:balanced"])
async def test_every_policy_can_be_looked_at_as_a_model(here, name):
    found = await here.get(f"/v1/models/{name}")

    assert (found.status_code, found.json()["id"]) == (200, name)


async def test_a_policy_that_is_not_there_is_no_model(here):
    found = await here.get("/v1/models/auto:mein")

    assert found.status_code == 404
    assert "(did you mean `auto:mine`?)" in found.json()["error"]["message"]


@pytest.mark.parametrize("move", ["load", "unload"])
async def test_a_policy_cannot_be_loaded(here, move):
    found = await here.post(f"/v1/models/auto:mine/{move}")

    assert found.json()["error"]["code"] == "invalid_value"


async def test_a_policy_that_is_new_is_listed_after_a_reload(here):
    replace(here.path, CONFIGURATION.replace("  mine:", "  fastest: fastest\n  mine:"))
    await here.service.chooser.policies.reload()

    entries = (await here.get("/v1/models")).json()["data"]

    assert [each["id"] for each in entries][:3] == ["auto", "auto:fastest", "auto:mine"]


async def test_the_system_page_has_policies_and_forecast(here):
    found = (await here.get("/v1/system")).json()

    assert [each["name"] for each in found["policies"]][-1] == "default"
    assert found["forecast"]["small"] == {
        "prefill_tokens_per_s": None,
        "decode_tokens_per_s": {},
        "error": None,
    }
    await here.post("/v1/chat/completions", json=chat("Hola " * 50))
    found = (await here.get("/v1/system")).json()
    assert found["forecast"]["small"]["decode_tokens_per_s"]["1"] > 0
    assert found["forecast"]["small"]["error"] > 0
