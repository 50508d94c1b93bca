"""From the command to the greeting, and Ctrl-C at any moment of it."""

import os
import re
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from tests.hub import Hub
from tests.service import ROOT, RunningService, wait_until

pytestmark = pytest.mark.real


@pytest.fixture
def started(tmp_path):
    """A function that starts a command in a group of its own, and ends what is left of it."""
    processes = []

    def start(*command, **environment):
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        log.close()
        processes.append(process)
        return process, (tmp_path / "log").read_text

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_make_serve_starts_the_service_and_ctrl_c_ends_it(started):
    assert (ROOT / ".venv" / "bin" / "axion").exists(), "run `make setup` first"
    make, log = started("make", "serve", "PORT=0")

    url = wait_until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log()), 120, "the greeting")[0]
    assert httpx.get(f"{url}/health").status_code == 200
    descendants = psutil.Process(make.pid).children(recursive=True)
    os.killpg(make.pid, signal.SIGINT)  # as a terminal does: to the whole group
    make.wait(60)

    wait_until(lambda: not any(each.is_running() for each in descendants), 30, "all have ended")
    assert "stopped" in log()
    assert "Traceback" not in log()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize("after_s", [0.2, 1.5, 4])
def test_ctrl_c_while_vllm_is_imported_ends_at_once_and_quietly(started, after_s):
    command = (sys.executable, "-m", "router.cli", "serve", "--port", "0")
    process, log = started(*command)
    wait_until(lambda: "importing vLLM" in log(), 60, "the import began")
    time.sleep(after_s)
    descendants = psutil.Process(process.pid).children(recursive=True)

    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(5) == 130
    wait_until(lambda: not any(each.is_running() for each in descendants), 60, "all have ended")
    assert [line for line in log().splitlines() if "importing vLLM" not in line] == []


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_a_download_does_not_wait_for_it(tmp_path, monkeypatch, way):
    hub = Hub()
    hub.files = {"config.json": b"{}", "model.safetensors": bytes(25_000_000)}
    hub.stall_after = 12_000_000
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models: [{name: a, source: someone/model, preload: true}]\nrouting: {default: a}\n"
        "server: {shutdown_grace_s: 1}\n"
    )
    service = RunningService(path, tmp_path / "log")
    try:
        assert hub.stalled.wait(30)
        descendants = service.descendants()
        began = time.monotonic()
    finally:
        status = service.stop(way)
        hub.close()

    assert status == 0
    assert time.monotonic() - began < 10
    wait_until(lambda: not any(each.is_running() for each in descendants), 10, "all have ended")
    assert "Traceback" not in service.log()
    assert "HTTP Request" not in service.log()
    assert [*tmp_path.rglob("*.incomplete")] == []
