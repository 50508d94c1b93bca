"""Where models come from, and what is said when they cannot be had."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engines import quickstart
from engines.sources import SourceError, local_directory, resolve


def said(source, base):
    with pytest.raises(SourceError) as caught:
        resolve(source, base, lambda line: None)
    return str(caught.value)


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def test_a_directory_is_taken_as_it_is_absolute_or_relative_to_the_file(model, tmp_path):
    assert resolve(str(model), tmp_path, print) == model
    assert resolve("./model", tmp_path, print) == model
    assert resolve("../model", model, print) == model
    assert local_directory("./model", tmp_path) == model


def test_a_home_directory_is_expanded(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))

    assert resolve("~/model", model, print) == model


def test_what_is_wrong_with_a_directory_is_said(model, tmp_path):
    expected = "expected a directory with config.json and *.safetensors"
    assert said("./none", tmp_path) == (
        f"source './none': {tmp_path}/none does not exist; {expected}"
    )
    assert said("./model/config.json", tmp_path) == (
        f"source './model/config.json': {model}/config.json is a file; {expected}"
    )
    (model / "model.safetensors").unlink()
    assert said("./model", tmp_path) == (
        f"source './model': {model} has no *.safetensors; convert its weights to that format"
    )
    (model / "config.json").unlink()
    assert said("./model", tmp_path) == (
        f"source './model': {model} has no config.json; expected a checkpoint in Hugging Face's "
        "layout"
    )
    assert local_directory("./model", tmp_path) is None


def test_an_unknown_quickstart_is_refused(tmp_path):
    assert said("quickstart:gpt", tmp_path) == (
        "there is no 'quickstart:gpt'; the quickstart has one model: "
        "quickstart:smollm2-135m-instruct"
    )


def test_the_quickstart_is_on_this_disk_only_once_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("AXION_CACHE", str(tmp_path))

    assert local_directory(quickstart.SOURCE, tmp_path) is None


class Hub(BaseHTTPRequestHandler):
    """A stand-in for a model hub: answers every request with one status."""

    status, error_code = 404, "RepoNotFound"

    def do_GET(self):
        self.send_response(self.status)
        if self.error_code:
            self.send_header("X-Error-Code", self.error_code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    class ThisHub(Hub):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), ThisHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    yield ThisHub
    server.shutdown()
    server.server_close()


HUB_ERRORS = {
    (401, "GatedRepo"): "accept its licence on the hub, then set HF_TOKEN",
    (404, "RepoNotFound"): "the hub has no such model, or it is private",
    (404, "RevisionNotFound"): "it has no revision 'v9'",
    (503, ""): "",
}


@pytest.mark.parametrize(("answer", "reason"), HUB_ERRORS.items(), ids=str)
def test_what_the_hub_refuses_is_explained(hub, tmp_path, answer, reason):
    hub.status, hub.error_code = answer

    text = said("someone/model@v9", tmp_path)

    assert text.startswith("source 'someone/model@v9' could not be downloaded: ")
    assert reason in text


def test_a_name_that_is_neither_a_path_nor_an_id_is_explained(tmp_path):
    assert "that is not a hub id (owner/name)" in said("not a model!", tmp_path)
