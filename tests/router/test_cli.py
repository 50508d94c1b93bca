"""The `axion` command, as a person at a terminal uses it."""

import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engines import plan
from engines.memory import GIB, Machine
from router.cli import main
from tests.conftest import ROOT
from tests.hollow import LLAMA, write_gemma, write_model
from tests.service import RunningService

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
        f"{path} has 2 problems:\n"
        "  line 1: models: expected a list with at least one entry, found an empty list\n"
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
            "print([name for name in ('vllm', 'torch', 'sklearn') if name in sys.modules])",
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

        assert main(["models", str(path)]) == 0

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
        f"{path} has 1 problem:\n  models[0].source: {tmp_path}/gone does not exist; "
        "expected a directory with config.json and *.safetensors\n"
    )


def test_a_model_that_can_never_fit_is_refused_with_the_numbers(tmp_path):
    write_model(tmp_path / "model", LLAMA, {"w": ("F32", 1)})
    path = tmp_path / "large.yaml"
    path.write_text(
        "models: [{name: a, source: ./model, kv_cache_gb: 3}]\nrouting: {default: a}\n"
        "pool: {memory_budget_gb: 2}\n"
    )

    done = axion("serve", "--config", path, "--port", 0)

    assert done.returncode == 1
    assert "axion: a takes 3.57 GiB, but the memory budget is 2.00 GiB: weights" in done.stderr
    assert re.search(r"Set kv_cache_gb 1\.\d+, or pool\.memory_budget_gb 3\.\d+\.\n", done.stderr)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a/b/c", "is not a hub id (owner/name), and a directory starts with /, ./, ../ or ~"),
        ("my model", "is not a hub id (owner/name), and a directory starts with /, ./, ../ or ~"),
        ("~nosuchuser/x", "starts with the home directory of a user that this machine does not"),
        ("./a\\0b", "has a NUL character, which no path and no hub id can have"),
        ("quickstart:typo", "there is only `quickstart:smollm2-135m-instruct`"),
    ],
)
@pytest.mark.parametrize("command", [["serve", "--config"], ["check"], ["plan"], ["models"]])
def test_a_source_that_can_be_nothing_is_a_problem_of_the_file(
    tmp_path, capsys, command, source, said
):
    path = tmp_path / "axion.yaml"
    path.write_text(f'models: [{{name: a, source: "{source}"}}]\nrouting: {{default: a}}\n')

    assert main([*command, str(path)]) == 1

    assert f"{path} has 1 problem:\n  line 1: models[0].source: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "--config"], ["check"], ["plan"]])
def test_broken_files_of_a_model_are_a_problem_of_the_file(tmp_path, capsys, command):
    write_model(tmp_path / "model", LLAMA, {"w": ("F32", 1)})
    (tmp_path / "model" / "config.json").write_text("{")
    path = tmp_path / "axion.yaml"
    path.write_text("models: [{name: a, source: ./model}]\nrouting: {default: a}\n")

    assert main([*command, str(path)]) == 1

    said = capsys.readouterr().err
    assert f"models[0].source: {tmp_path}/model/config.json cannot be read (Expecting" in said
    assert said.endswith("; copy or download it again\n")


def test_check_refuses_engine_arguments_of_another_type_or_for_many_processes(tmp_path, capsys):
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models:\n  - name: a\n    source: ./a\n    engine_args:\n      block_size: banana\n"
        "      tensor_parallel_size: 2\n      data_parallel_rank: 1\n      nnodes: 2\n"
        "      worker_extension_cls: x\n      scheduling_policy: fcfs\n"
        "      disable_log_stats: false\n      seed: 1\n      mm_processor_cache_gb: 2\n"
        "routing: {default: a}\n"
    )

    assert main(["check", str(path)]) == 1

    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.partition(": ")[2].partition(": ")[0].rpartition(".")[2] for line in lines] == [
        "block_size",
        "tensor_parallel_size",
        "data_parallel_rank",
        "nnodes",
        "worker_extension_cls",
        "scheduling_policy",
        "disable_log_stats",
    ]
    assert lines[0].endswith('expected a whole number, found "banana"')
    assert all("an engine is one process" in line for line in lines[1:4])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "argument --port: expected a whole number <= 65535, found 70000"),
        (["--port", "-1"], "argument --port: expected a whole number >= 0, found -1"),
        (["--port", "http"], 'argument --port: expected a whole number, found "http"'),
        (["--host", ""], 'argument --host: expected text that is not empty, found ""'),
    ],
)
@pytest.mark.parametrize("command", ["serve", "models"])
def test_the_command_line_is_held_to_the_bounds_of_the_file(command, arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, *arguments])

    assert said in capsys.readouterr().err


class NotAxion(BaseHTTPRequestHandler):
    """Something else that listens: speaks no HTTP, or answers what is no list of models."""

    answer = b""

    def handle(self):
        self.request.recv(65536)
        self.request.sendall(self.answer)


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail ready\r\n",
        b"",
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n<html>",
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b'HTTP/1.0 200 OK\r\n\r\n{"data": [1]}',
    ],
)
def test_models_says_when_something_else_listens(answer, capsys):
    NotAxion.answer = answer
    with HTTPServer(("127.0.0.1", 0), NotAxion) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert main(["models", "--port", str(server.server_port)]) == 0

    said = capsys.readouterr()
    assert said.err == (
        f"axion: what listens on http://127.0.0.1:{server.server_port} is not this service; name "
        "its port with --port\n"
    )
    assert said.out.splitlines()[1].startswith("phi4_fast          not running")


def test_ctrl_c_during_the_imports_ends_at_once_without_a_word():
    script = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "litestar":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from router.__main__ import main
sys.argv = ["axion", "serve", "--port", "0"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)

    assert (done.returncode, done.stderr) == (130, "")


def test_an_import_that_fails_is_one_line_with_what_to_do():
    script = "import sys; sys.modules['msgspec'] = None; from router.__main__ import main; "
    script += "sys.exit(main())"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 1
    assert done.stderr == (
        "axion: the installation is damaged (import of msgspec halted; None in sys.modules). Run: "
        "make clean && make serve\n"
    )


def test_a_service_of_echo_engines_neither_imports_vllm_nor_says_so(tmp_path):
    path = tmp_path / "echo.yaml"
    path.write_text("models: [{name: a, source: x, engine: echo}]\nrouting: {default: a}\n")
    service = RunningService(path, tmp_path / "log")
    loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
    service.stop()

    assert "vLLM" not in service.log()
    assert "libtorch" not in loaded


# --- axion plan ---


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """A function that plans a file on a large machine, and returns status and lines."""
    large = Machine(total_bytes=128 * GIB, limit_bytes=None, available_bytes=120 * GIB)
    monkeypatch.setattr(plan, "machine", lambda: large)

    def run(text):
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        status = main(["plan", str(path)])
        return status, capsys.readouterr().out.splitlines()

    return run


def llama(gib):
    """Return the tensors of a model of so many GiB."""
    return {"w": ("I8", int(gib * GIB))}


def test_plan_shows_who_fits_and_who_must_leave(tmp_path, planned):
    for name, size in (("a", 1), ("b", 2), ("c", 1)):
        write_model(tmp_path / name, LLAMA, llama(size))
    models = "".join(
        f"  - {{name: {name}, source: ./{name}, max_model_len: 2048, max_num_seqs: 4}}\n"
        for name in "abc"
    )

    status, lines = planned(
        f"models:\n{models}routing: {{default: a}}\npool: {{memory_budget_gb: 5}}\n"
    )

    assert status == 0
    assert lines == [
        "Memory in GiB: 128.00 in this machine, 120.00 available; the service takes 1.29.",
        "Models may take 5.00 together.",
        "",
        "MODEL  WEIGHTS  KV CACHE  PROCESS  TOTAL  CONTEXT  AT ONCE  LEAVES FOR IT",
        "a         1.00      0.25     0.57   1.82     2048   4 of 4  b",
        "b         2.00      0.25     0.57   2.82     2048   4 of 4  a",
        "c         1.00      0.25     0.57   1.82     2048   4 of 4  a",
        "",
        "All models do not fit together: they take 6.46 of 5.00. At most 2 do: a + b; a + c; "
        "b + c.",
        "When a is loaded after the others, b must leave.",
        "When b is loaded after the others, a must leave.",
        "When c is loaded after the others, a must leave.",
    ]


def test_plan_says_what_fits_instead_and_fails_when_a_model_never_does(tmp_path, planned):
    write_gemma(tmp_path / "gemma")

    status, lines = planned(
        "models:\n"
        "  - {name: gemma, source: ./gemma, max_model_len: 65536, kv_cache_gb: 4}\n"
        "  - {name: gone, source: ./gone, max_model_len: 4096, kv_cache_gb: 2}\n"
        "routing: {default: gemma}\n"
    )

    assert status == 1
    assert lines[4:] == [
        "gemma    56.35      4.00     5.42    65.77    65536  0.616 of 8  does not fit",
        "gone   unknown      2.00  unknown  unknown     4096",
        "",
        "gemma: a KV cache of 4.00 GiB holds 33024 tokens of a request, but max_model_len is 65536"
        ", which takes 6.48 GiB. Set max_model_len 33024, or kv_cache_gb 6.48.",
        "Nothing is known of gone until the files are on this disk: a name says nothing about a "
        "size. The plan is made again before every load.",
    ]


def test_plan_says_when_all_fit(planned):
    status, lines = planned("models: [{name: a, source: ., engine: echo}]\nrouting: {default: a}\n")

    assert status == 0
    assert lines[-1].split() == ["a", *"-----"]


@pytest.mark.parametrize("name", ["quickstart.yaml", "axion.yaml"])
def test_a_shipped_file_can_be_planned_at_once_without_vllm(tmp_path, name):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from router.cli import main; "
            f"status = main(['plan', {str(ROOT / 'config' / name)!r}]); "
            "slow = {'vllm', 'torch', 'litestar'}; print(status, slow & set(sys.modules))",
        ],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.stdout.splitlines()[-1] == "0 set()"


@pytest.mark.parametrize("arguments", [["serve", "--prot", "1"], ["nothing"], []])
def test_wrong_usage_is_explained(arguments):
    done = axion(*arguments)

    assert done.returncode == 2
    assert "usage: axion" in done.stderr


def test_every_command_has_help():
    for command in ("serve", "check", "plan", "models"):
        assert f"usage: axion {command}" in axion(command, "--help").stdout
