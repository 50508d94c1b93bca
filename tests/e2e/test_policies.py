"""The policies of a service that runs: SIGHUP, a changed file, `axion route` beside it."""

import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.policy_files import CODE, CONFIGURATION, chat, replace, write
from tests.service import ROOT, RunningService, wait_until

pytestmark = pytest.mark.real


@pytest.fixture
def running(tmp_path):
    service = RunningService(write(tmp_path), tmp_path / "log")
    service.file = tmp_path / "axion.yaml"
    yield service
    service.stop()


def policy(service):
    return httpx.get(f"{service.url}/v1/policy").json()


def model_of_code(service):
    return httpx.post(f"{service.url}/v1/route", json=chat(CODE)).json()["model"]


def test_a_hangup_reloads_the_policies_and_a_broken_file_disturbs_nobody(running):
    running.process.send_signal(signal.SIGHUP)  # nothing has changed
    replace(running.file, CONFIGURATION.replace("prefer: [coder]", "prefer: [small]"))
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: model_of_code(running) == "small", 10, "the reload")

    replace(running.file, CONFIGURATION.replace("prefer:", "prefers:"))
    for _ in range(20):
        running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: policy(running)["problem"], 10, "the refusal")

    assert "rules[0].prefers: unknown key" in policy(running)["problem"]
    assert model_of_code(running) == "small"
    assert "policies: not loaded, those in use stay" in running.log()
    assert running.stop() == 0


def test_a_changed_file_is_taken_without_a_signal(running):
    replace(running.file, CONFIGURATION.replace("prefer: [coder]", "prefer: [small]"))

    wait_until(lambda: model_of_code(running) == "small", 10, "the reload")


def test_axion_route_asks_the_service_that_runs(running):
    port = re.search(r":(\d+)$", running.url)[1]
    httpx.post(f"{running.url}/v1/models/coder/load")

    done = subprocess.run(
        [
            *(sys.executable, "-m", "router.cli", "route", CODE),
            *("--config", running.file, "--port", port),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("coder: rule code: code (")
    assert re.search(r"^> coder +ready ", done.stdout, re.MULTILINE)
    assert "Nothing would be loaded." in done.stdout
