"""Run the real `axion serve` as a process of its own, for end-to-end tests."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


class RunningService:
    """`axion serve` on a free port.

    Attributes
    ----------
    greeting
        What it wrote to its standard output: the text a person sees.
    url
        Where it listens.
    """

    def __init__(self, config: Path, log: Path, module: str = "router.cli"):
        self.log_path = log
        self._log = log.open("wb")
        command = [sys.executable, "-m", module, "serve", "--config", config, "--port", "0"]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # a group of its own, as at a terminal
        )
        self.greeting = ""
        for line in self.process.stdout:
            self.greeting += line
            if "Stop: Ctrl-C" in line:
                break
        found = re.search(r"http://[\d.]+:\d+", self.greeting)
        assert found, f"the service did not start:\n{self.log()}"
        self.url = found[0]

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.log_path.read_text(errors="replace")

    def engine_pids(self, model: str = "") -> list[int]:
        """Return the processes of its engines, or of one model's."""
        return [
            child.pid
            for child in self.descendants()
            if " ".join(child.cmdline()).startswith(f"axion:{model}")
        ]

    def descendants(self) -> list[psutil.Process]:
        """Return every process it started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def memory_bytes(self) -> int:
        """Return what it and its descendants take; pages that they share count once.

        Anonymous memory only: how much of a library's pages counts for us depends on who else on
        the machine uses it.
        """
        total = 0
        for process in [psutil.Process(self.process.pid), *self.descendants()]:
            with contextlib.suppress(OSError):  # it has just ended
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += 1024 * int(text.partition("Pss_Anon:")[2].split()[0])
        return total

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(kind)
        try:
            return self.process.wait(330)
        finally:
            self.process.kill()
            self.process.stdout.close()
            self._log.close()


def wait_until(condition, seconds: float, what: str):
    """Return the first true value of `condition()`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")
