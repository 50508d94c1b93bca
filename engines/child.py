"""Runs inside every engine process: ends it when the server that started it is gone."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

ENABLED = "AXION_ENGINE"
"""Environment variable that the server sets for its engines; elsewhere the guard does nothing."""


def guard() -> None:
    """End this process as soon as its parent dies, however that happens.

    vLLM calls this in each of its processes, as a plug-in (see `pyproject.toml`).
    A normal stop goes through vLLM's own shutdown; this is for the server's `kill -9`, after which
    nobody would be left to stop the engine, which holds gigabytes. The parent's sentinel is a pipe
    that the kernel closes, so nothing is polled and no time passes.
    """
    parent = multiprocessing.parent_process()
    if parent is None or ENABLED not in os.environ:
        return

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=end_with_parent, name="axion-orphan-guard", daemon=True).start()
