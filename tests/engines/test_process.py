"""Processes that are forked from a template, with a template that imports nothing."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, time
from multiprocessing import forkserver
from multiprocessing.connection import wait
from engines.process import Process


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def template():
    forkserver.ensure_running()
    return forkserver._forkserver._forkserver_pid


if __name__ == "__main__":
    short = Process(target=os._exit, args=(3,))
    short.start()
    short.join()
    assert short.exitcode == 3

    process = Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    before = template()
    kill(before)
    while os.path.exists(f"/proc/{before}") and template() == before:
        time.sleep(0.01)
    assert not wait([process.sentinel], 0.3), "the end of the template was taken for its own"
    assert process.is_alive()

    process.kill()
    assert wait([process.sentinel], 5), "its end was not seen"
    assert not process.is_alive()

    later = Process(target=os._exit, args=(4,))
    later.start()
    later.join()
    assert later.exitcode == 4
"""


def test_a_process_outlives_the_template_and_its_own_end_is_seen(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]

    done = subprocess.run(
        command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_the_template_prints_nothing():
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "CRITICAL"}
    command = [sys.executable, "-c", "import engines.template"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
