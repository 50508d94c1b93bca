"""Files are fetched by a process of its own, which ends with whoever waits for it."""

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest

from engines import quickstart
from engines.fetch import fetch
from engines.sources import SourceError
from tests.conftest import ROOT
from tests.hub import Hub
from tests.service import wait_until


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    hub.files = {"config.json": b"{}", "model.safetensors": bytes(25_000_000)}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    hub.close()


def fetching(process=None):
    """Return the processes that fetch for `process`, or for this one."""
    children = (process or psutil.Process()).children(recursive=True)
    return [child for child in children if "engines.fetch" in child.cmdline()]


async def until_stalled(hub):
    assert await asyncio.to_thread(hub.stalled.wait, 30)


async def test_a_model_is_downloaded_with_a_line_at_the_start_and_one_at_the_end(
    hub, tmp_path, capfd
):
    lines = []

    place = await fetch("someone/model@main", tmp_path, lines.append)

    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]
    assert lines == [
        "looking for someone/model@main in the local cache and on the hub",
        f"someone/model@main is in {place}",
    ]
    assert capfd.readouterr() == ("", "")
    assert fetching() == []


async def test_a_cancelled_download_ends_at_once_and_leaves_only_whole_files(hub, tmp_path):
    hub.stall_after = 15_000_000
    task = asyncio.create_task(fetch("someone/model", tmp_path, print))
    await until_stalled(hub)
    wait_until(lambda: [*tmp_path.rglob("config.json")], 5, "the small file is here")
    assert len(fetching()) == len([*tmp_path.rglob("*.incomplete")]) == 1

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)

    assert fetching() == [*tmp_path.rglob("*.incomplete")] == []
    hub.stall_after = None
    place = await fetch("someone/model", tmp_path, print)
    assert (place / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert sorted(hub.sent) == ["config.json", "model.safetensors", "model.safetensors"]


def test_how_far_a_download_is_is_told_without_bars(hub):
    script = "import pathlib; from engines import sources; sources._PROGRESS_S = 0; "
    script += "sources.resolve('someone/model', pathlib.Path(), print)"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "0.01 of 0.02 GiB are here\n" in done.stdout
    assert done.stderr == ""


async def test_a_download_that_takes_too_long_ends(hub, tmp_path):
    hub.stall_after = 0

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await fetch("someone/model", tmp_path, print)

    assert fetching() == []


async def test_a_download_ends_with_a_server_that_is_killed(hub, tmp_path):
    hub.stall_after = 0
    script = "import asyncio, pathlib; from engines.fetch import fetch; "
    script += "asyncio.run(fetch('someone/model', pathlib.Path(), print))"
    server = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        await until_stalled(hub)
        (child,) = fetching(psutil.Process(server.pid))
    finally:
        server.kill()
        server.wait()

    wait_until(lambda: not child.is_running(), 5, "the download ended")


async def test_why_a_model_cannot_be_had_comes_back(hub, tmp_path):
    hub.refusal = (401, "GatedRepo")

    with pytest.raises(SourceError, match="accept its licence on the hub, then set HF_TOKEN"):
        await fetch("someone/model", tmp_path, print)


async def test_a_fetch_that_is_killed_says_so(hub, tmp_path):
    hub.stall_after = 0
    task = asyncio.create_task(fetch("someone/model", tmp_path, print))
    await until_stalled(hub)

    os.kill(fetching()[0].pid, signal.SIGKILL)

    with pytest.raises(SourceError, match="source 'someone/model': fetching it ended early with"):
        await task


async def test_what_is_on_this_disk_needs_no_process(tmp_path, monkeypatch):
    async def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(asyncio, "create_subprocess_exec", never)
    monkeypatch.setattr(quickstart, "whole", lambda: tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()

    assert await fetch(str(tmp_path), tmp_path, print) == tmp_path
    assert await fetch(quickstart.SOURCE, tmp_path, print) == tmp_path


async def test_what_a_library_prints_is_no_message(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('noise ' * 50_000, flush=True)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(SourceError) as caught:
        await fetch("nobody/nothing", tmp_path, print)

    assert "nobody/nothing" in str(caught.value)
    assert "noise" not in str(caught.value)
    assert "exit status" not in str(caught.value)


def test_fetching_imports_neither_vllm_nor_torch():
    script = "import sys, engines.fetch, engines.sources; from huggingface_hub import *; "
    script += "print({'vllm', 'torch'} & set(sys.modules))"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"
