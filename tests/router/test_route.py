"""`axion route`, and what `axion check` says of policies, as a person at a terminal sees them."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from router.cli import main
from router.route import shown
from tests.policy_files import CODE, CONFIGURATION, MINE, chat, write


@pytest.fixture
def route(tmp_path, capsys):
    """Run `axion route` on a configuration for which no service runs."""
    config = write(tmp_path)

    def run(*arguments, port=1, status=0):
        found = main(["route", "--config", str(config), "--port", str(port), *map(str, arguments)])
        said = capsys.readouterr()
        assert found == status, said.err
        return said

    return run


def test_without_a_service_it_decides_with_every_model_cold_and_says_so(route):
    said = route(CODE)

    assert said.err == (
        "axion: nothing listens on http://127.0.0.1:1; as it would be after a start, with every "
        "model cold:\n"
    )
    lines = said.out.splitlines()
    assert lines[0].startswith("coder: rule code: code (")
    assert lines[1].startswith("Task: code (likely: code ")
    assert lines[2].startswith("Policy: default, version ")
    assert lines[2].endswith("; rule: code")
    assert " ".join(lines[4].split()) == (
        "MODEL STATE FIT LOAD QUEUE PREFILL DECODE TOTAL DISPL WORTH"
    )
    assert {line[0] for line in lines[5:7]} == {">", " "}
    assert "It would load coder." in lines


def test_as_json_it_is_what_the_service_answers(route):
    said = json.loads(route(CODE, "--json").out)

    assert (said["model"], said["rule"], said["decision_id"]) == ("coder", "code", None)


def test_another_policy_can_be_named(route):
    assert route("Hola", "--policy", "mine").out.startswith("coder: rule all-to-coder: always")


def test_the_text_can_come_from_standard_input(route, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(CODE))

    assert route("-").out.startswith("coder:")


def test_a_whole_request_can_come_from_a_file(route, tmp_path):
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"messages": chat(CODE)["messages"]}))

    assert route("--request", file).out.startswith("coder:")
    file.write_text(json.dumps(chat(CODE, model="small")))
    assert route("--request", file).out.startswith("small: named by the client")
    file.write_text(json.dumps({"prompt": CODE}))
    assert route("--request", file).out.startswith("coder:")


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ([], None, "say what the user asks, or name a file with --request FILE; not both"),
        (["Hola", "--request", "FILE"], "{}", "say what the user asks, or name a file"),
        (["--request", "none.json"], None, "none.json cannot be read: No such file or directory"),
        (["--request", "FILE"], "{", "is not JSON"),
        (["--request", "FILE"], "[]", "expected a JSON object, the body of a chat request"),
        (["--request", "FILE"], "{}", "You must provide `messages`"),
        (["Hola", "--policy", "none"], None, "There is no such policy. There are: balanced"),
        (["word " * 20_000], None, "maximum context length is 4096 tokens"),
    ],
)
def test_what_cannot_be_answered_says_why(route, tmp_path, arguments, text, message):
    if text is not None:
        (tmp_path / "FILE").write_text(text)
    arguments = [tmp_path / "FILE" if each == "FILE" else each for each in arguments]

    said = route(*arguments, status=1)

    assert message in said.err
    assert said.out == ""


@pytest.fixture
def listener():
    """A server that answers whatever `answer` is, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["content-length"])
            server.asked = (self.path, dict(self.headers), self.rfile.read(length))
            status, body = server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_that_runs_is_asked(route, listener):
    said = json.loads(route(CODE, "--json").out)
    listener.answer = (200, json.dumps(said | {"model": "other"}).encode())

    out = route(CODE, "--policy", "mine", port=listener.server_port)

    path, headers, body = listener.asked
    assert out.err == ""
    assert out.out.startswith("other: ")
    assert path == "/v1/route"
    assert headers["X-Axion-Policy"] == "mine"
    assert json.loads(body) == chat(CODE)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b'{"error": {"message": "m", "code": "policy_not_found"}}', "axion: m\n"),
        (404, b'{"error": {"message": "m", "code": "not_found"}}', "is not this service"),
        (404, b"<html>", "is not this service"),
        (404, b"[]", "is not this service"),
        (200, b"<html>", "is not this service"),
        (200, b"{}", "is not this service"),
        (200, b'{"model": 1}', "is not this service"),
        (500, b"\xff", "is not this service"),
    ],
)
def test_what_else_listens_there_is_told(route, listener, status, body, message):
    listener.answer = (status, body)

    assert message in route("Hola", port=listener.server_port, status=1).err


def test_the_table_says_who_cannot_and_why_and_who_would_leave(route):
    said = json.loads(route(CODE, "--json").out)
    said["candidates"][0] |= {"capable": False, "why_not": "reads no images"}
    said["consequences"] = {"loads": ["coder"], "evicts": ["small", "other"]}
    said["counterfactual"] = ["`small` would win without the rule."]

    lines = shown(said).splitlines()

    assert lines[6].startswith("  small")
    assert lines[6].endswith("  reads no images")
    assert "It would load coder; small and other would leave memory for it." in lines
    assert "`small` would win without the rule." in lines


# --- axion check --------------------------------------------------------------------------------


def check(path, capsys):
    status = main(["check", str(path)])
    return status, "".join(capsys.readouterr())


def test_check_says_how_many_tests_passed(tmp_path, capsys):
    status, said = check(write(tmp_path), capsys)

    assert status == 0
    assert "is sound: 2 models (small, coder); 2 tests of its policies passed.\n" in said


def test_check_fails_with_the_line_of_each_test_that_fails(tmp_path, capsys):
    path = write(
        tmp_path,
        CONFIGURATION.replace("expect: small", "expect: coder"),
        MINE.replace("expect: coder", "expect: small"),
    )

    status, said = check(path, capsys)

    assert status == 1
    assert f"{path} has 1 problem:\n  line 9: routing.tests[0]: expected `coder`, but" in said
    assert f"{tmp_path / 'mine.yaml'} has 1 problem:\n  line 4: tests[0]: expected" in said


def test_check_finds_what_is_wrong_in_a_policy_file(tmp_path, capsys):
    status, said = check(write(tmp_path, mine=MINE.replace("[coder]", "[codr]")), capsys)

    assert status == 1
    assert "line 2: rules[0].prefer[0]: there is no model called `codr` (did you mean" in said


def test_serve_refuses_a_failing_test_before_anything_is_fetched(tmp_path, capsys):
    path = write(tmp_path, mine=MINE.replace("expect: coder", "expect: small"))

    assert main(["serve", "--config", str(path)]) == 1

    assert "line 4: tests[0]" in capsys.readouterr().err
