"""The service learns from use: ask, correct, train, start again; and back."""

import subprocess
import sys

import httpx
import pytest

from tests.router.test_feedback import TICKETS
from tests.service import ROOT, RunningService

pytestmark = pytest.mark.real

CONFIGURATION = """
models:
  - {name: a, source: x, engine: echo}
  - {name: b, source: x, engine: echo}
routing:
  default: a
  rules: [{name: tickets, when: {task: chat}, prefer: [b]}]
classifier: mine.npz
ledger: {path: kept/ledger.sqlite, keep_text: true}
"""


def train(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "router.cli", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_service_learns_what_it_is_told_and_unlearns_it(tmp_path):
    path = tmp_path / "axion.yaml"
    path.write_text(CONFIGURATION)

    def run(texts, **said):
        """Ask everything in a service of its own; return who answered."""
        service = RunningService(path, tmp_path / "log")
        with httpx.Client(base_url=service.url, trust_env=False) as client:
            models = []
            for text in texts:
                body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
                answer = client.post("/v1/chat/completions", json=body)
                models.append(answer.headers["x-axion-model"])
                if said:
                    id_ = answer.headers["x-axion-decision"]
                    judged = client.post("/v1/feedback", json={"decision_id": id_, **said})
                    assert judged.json()["stored"]
        assert service.stop() == 0
        return models

    assert set(run(TICKETS, task="chat")) == {"a"}

    done = train("--from-feedback", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Better: it is {tmp_path}/mine.npz now" in done.stdout
    assert run(TICKETS).count("b") > 0.9 * len(TICKETS)

    done = train("--rollback", path)
    assert done.returncode == 0
    assert "the shipped classifier is" in done.stdout
    assert set(run(TICKETS[:3])) == {"a"}
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == [
        "axion.yaml",
        "ledger.sqlite",
        "log",
    ]
