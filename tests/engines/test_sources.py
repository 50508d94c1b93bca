"""Where models come from, and what is said when they cannot be had."""

import json

import pytest

from engines import quickstart
from engines.sources import SourceError, damage, local_directory, missing, problem, resolve
from tests.hollow import LLAMA, write_model
from tests.hub import Hub


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


def test_the_quickstart_is_on_this_disk_only_once_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("AXION_CACHE", str(tmp_path))

    assert local_directory(quickstart.SOURCE, tmp_path) is None


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url, raising=False)
    yield hub
    hub.close()


HUB_ERRORS = {
    (401, "GatedRepo"): "accept its licence on the hub, then set HF_TOKEN",
    (404, "RepoNotFound"): "the hub has no such model, or it is private",
    (404, "RevisionNotFound"): "it has no revision 'v9'",
    (503, ""): "",
}


@pytest.mark.parametrize(("answer", "reason"), HUB_ERRORS.items(), ids=str)
def test_what_the_hub_refuses_is_explained(hub, tmp_path, answer, reason):
    hub.refusal = answer

    text = said("someone/model@v9", tmp_path)

    assert text.startswith("source 'someone/model@v9' could not be downloaded: ")
    assert reason in text


HUB_ID = "is not a hub id (owner/name), and a directory starts with /, ./, ../ or ~"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a/b/c", HUB_ID),
        ("my model", HUB_ID),
        ("not a model!", HUB_ID),
        ("", HUB_ID),
        ("a/b@", "has no revision after the @; expected owner/name@revision"),
        ("a/b@ v1", "has no revision after the @; expected owner/name@revision"),
        ("~nosuchuser/x", "starts with the home directory of a user that this machine does not"),
        ("./a\0b", "has a NUL character, which no path and no hub id can have"),
        ("a/b@v\0", "has a NUL character, which no path and no hub id can have"),
        ("quickstart:gpt", "there is only `quickstart:smollm2-135m-instruct`"),
    ],
)
def test_a_source_that_can_be_nothing_is_explained_and_is_not_here(tmp_path, source, said):
    assert problem(source).startswith(said)
    assert local_directory(source, tmp_path) is None
    assert missing(source, tmp_path) is None
    assert damage(source, tmp_path) is None
    with pytest.raises(SourceError, match=r"^source "):
        resolve(source, tmp_path, print)


@pytest.mark.parametrize(
    "source", ["a/b", "gpt2", "a/b@v1", "/x", "./x", "../x", "~/x", ".", quickstart.SOURCE]
)
def test_what_can_be_a_source_is_no_problem(source):
    assert problem(source) is None


def harmed(directory, harm):
    write_model(directory, LLAMA, {"w": ("F32", 100)})
    config, weights = directory / "config.json", next(directory.glob("*.safetensors"))
    match harm:
        case "config cut off":
            config.write_text('{"model_type":')
        case "config a list":
            config.write_text("[]")
        case "config deep":
            config.write_text("[" * 100_000)
        case "weights cut off":
            with weights.open("r+b") as file:
                file.truncate(weights.stat().st_size - 1)
        case "weights junk":
            weights.write_bytes(b"junk")
        case "weights of another shape":
            weights.write_bytes((7).to_bytes(8, "little") + b'{"a":1}')
        case "a shard missing":
            (directory / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"w": "gone.safetensors"}})
            )


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("config cut off", "config.json cannot be read (Expecting value"),
        ("config a list", "config.json is not a JSON object; copy or download it again"),
        ("config deep", "config.json cannot be read (maximum recursion depth"),
        ("weights cut off", "model.safetensors was cut off: it has "),
        ("weights junk", "model.safetensors is not a safetensors file"),
        ("weights of another shape", "its weights cannot be read ("),
        ("a shard missing", "gone.safetensors is missing; copy or download it again"),
    ],
)
def test_what_is_broken_in_the_files_is_said(tmp_path, harm, said):
    harmed(tmp_path / "model", harm)

    assert said in damage("./model", tmp_path)


def test_sound_files_and_files_that_are_not_here_are_not_broken(tmp_path):
    harmed(tmp_path / "model", "no harm")

    assert damage("./model", tmp_path) is None
    assert damage("./later", tmp_path) is None
    assert damage("someone/else", tmp_path) is None
