"""Runs inside every engine process: its surroundings, its last words, its end with the server."""

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
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


def run(
    surroundings: Surroundings,
    last_words: Connection,
    target: Callable[..., None],
    **arguments: Any,
) -> None:
    """Run an engine core in this process, which was forked from the template.

    If it fails, `last_words` gets what went wrong, and then the traceback: vLLM itself tells the
    server no more than that a process ended.
    """
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
    try:
        target(**arguments)
    except Exception as error:
        last_words.send(clause(type(error).__name__, str(error)))
        last_words.send(traceback.format_exc())
        sys.exit(1)


def clause(kind: str, message: str) -> str:
    """Return the first line of an error's message, with its kind where that alone says nothing."""
    lines = [line.strip() for line in message.removeprefix("Value error, ").splitlines()]
    lines = [line for line in lines if line] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    text = text.removesuffix(".")
    return text if " " in text else f"{kind} {text}".strip()


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
