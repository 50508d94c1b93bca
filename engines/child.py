"""Runs inside every engine process: its surroundings, and its end when the server is gone."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from msgspec import Struct

_OOM_SCORE = 500
"""Added to the kernel's score, so that an engine is killed before the server is."""


class Surroundings(Struct, frozen=True):
    """What one engine process is given before vLLM runs in it.

    Attributes
    ----------
    title
        What `ps` and `top` show.
    threads
        Compute threads.
    environment
        Variables to set.
    """

    title: str
    threads: int
    environment: dict[str, str]


def run(surroundings: Surroundings, target: Callable[..., None], **arguments: Any) -> None:
    """Run an engine core in this process, which was forked from the template."""
    guard()
    os.environ.update(surroundings.environment)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    import setproctitle
    import torch
    import vllm.v1.engine.core

    # OpenMP has read its variables in the template already.
    torch.set_num_threads(surroundings.threads)
    setproctitle.setproctitle(surroundings.title)
    vllm.v1.engine.core.set_process_title = lambda *_: None  # it would take the name away again
    target(**arguments)


def guard() -> None:
    """End this process as soon as the server dies, however that happens.

    A normal stop goes through vLLM's own shutdown; this is for the server's `kill -9`, after which
    nobody would be left to stop the engine, which holds gigabytes. The parent's sentinel is a pipe
    that the kernel closes, so nothing is polled and no time passes.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=end_with_parent, name="axion-orphan-guard", daemon=True).start()
