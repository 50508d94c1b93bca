"""The `axion` command, as a person at a terminal uses it."""

import socket
import subprocess
import sys

import pytest

from router.cli import main
from tests.conftest import ROOT

QUICKSTART = ROOT / "config" / "quickstart.yaml"


def axion(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "router.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("name", ["quickstart.yaml", "axion.yaml"])
def test_check_says_that_a_shipped_file_is_sound(name, capsys):
    assert main(["check", str(ROOT / "config" / name)]) == 0

    assert "is sound: 4 models (phi4_fast, qwen_coder," in capsys.readouterr().out


def test_check_says_everything_that_is_wrong_and_fails(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("models: []\nserver: {prot: 1}\n")

    assert main(["check", str(path)]) == 1

    assert capsys.readouterr().err == (
        f"{path} has 3 problems:\n"
        "  line 1: models: expected a list with at least one entry, found an empty list\n"
        "  line 1: routing: is missing and has no default\n"
        "  line 2: server.prot: unknown key (did you mean `port`?)\n"
    )


def test_check_knows_the_arguments_of_the_installed_vllm(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "models:\n  - name: a\n    source: ./a\n    tool_parser: hermes2\n"
        "    engine_args: {block_siz: 16, max_model_len: 5, trust_remote_code: true}\n"
        "routing: {default: a}\n"
    )

    assert main(["check", str(path)]) == 1

    said = capsys.readouterr().err
    assert "tool_parser: the installed vLLM has no `hermes2` (did you mean `hermes`?)" in said
    assert "no such engine argument (did you mean `block_size`?)" in said
    assert "set `max_model_len` of the model instead" in said
    assert "code from a model's repository is never run" in said


def test_check_is_quick_because_it_does_not_import_vllm():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from router.cli import main; "
            f"main(['check', {str(QUICKSTART)!r}]); "
            "print([name for name in ('vllm', 'torch', 'litestar') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_models_lists_what_is_configured_when_nothing_runs(tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        path = tmp_path / "here.yaml"
        port = unused.getsockname()[1]
        path.write_text(QUICKSTART.read_text() + f"\nserver: {{port: {port}}}\n")

        assert main(["models", "--config", str(path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "STATE", "CONTEXT", "SOURCE", "DESCRIPTION"]
    assert lines[1].startswith("phi4_fast          not running  2048     quickstart:")


def test_a_taken_port_is_known_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        done = axion("serve", "--port", port)

    assert done.returncode == 1
    assert done.stderr == (
        f"axion: cannot listen on 127.0.0.1:{port}: Address already in use. Stop what uses it, or "
        "choose another port with --port or server.port.\n"
    )


def test_missing_model_files_are_known_before_anything_slow(tmp_path):
    path = tmp_path / "gone.yaml"
    path.write_text("models: [{name: a, source: ./gone}]\nrouting: {default: a}\n")

    done = axion("serve", "--config", path, "--port", 0)

    assert done.returncode == 1
    assert done.stderr == (
        f"axion: source './gone': {tmp_path}/gone does not exist; "
        "expected a directory with config.json and *.safetensors.\n"
    )


def test_a_model_that_can_never_fit_is_refused_with_the_numbers(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (model / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    path = tmp_path / "large.yaml"
    path.write_text(
        "models: [{name: a, source: ./model, kv_cache_gb: 3}]\nrouting: {default: a}\n"
        "pool: {memory_budget_gb: 2}\n"
    )

    done = axion("serve", "--config", path, "--port", 0)

    assert done.returncode == 1
    assert "axion: a takes 3.85 GiB, but the memory budget is 2.00 GiB" in done.stderr


@pytest.mark.parametrize("arguments", [["serve", "--prot", "1"], ["nothing"], []])
def test_wrong_usage_is_explained(arguments):
    done = axion(*arguments)

    assert done.returncode == 2
    assert "usage: axion" in done.stderr


def test_every_command_has_help():
    for command in ("serve", "check", "models"):
        assert f"usage: axion {command}" in axion(command, "--help").stdout
