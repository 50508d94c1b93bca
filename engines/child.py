"""Runs inside every engine process: its surroundings, its last words, its end with the server."""

import contextlib
import inspect
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctypes import c_int as Synchronized  # noqa: N812 - shared between processes

from msgspec import Struct

_OOM_SCORE = 500
"""Added to the kernel's score, so that an engine is killed before the server is."""


class Surroundings(Struct, frozen=True):
    """What one engine process is given before vLLM runs in it.

    Attributes
    ----------
    title
        What `ps` and `top` show.
    environment
        Variables to set.
    """

    title: str
    environment: dict[str, str]


def run(
    surroundings: Surroundings,
    threads: "Synchronized",
    last_words: Connection,
    target: Callable[..., None],
    **arguments: Any,
) -> None:
    """Run an engine core in this process, which was forked from the template.

    `threads` is shared with the server, which changes it when other engines become busy or idle.
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
    import vllm.v1.sample.sampler as sampler

    # It counts numbers. Compiling it would stop all answers for 3 to 18 s when the first request
    # asks for logprobs.
    sampler.batched_count_greater_than = inspect.unwrap(sampler.batched_count_greater_than)
    _follow(threads, torch.set_num_threads, vllm.v1.engine.core.EngineCoreProc)
    setproctitle.setproctitle(surroundings.title)
    vllm.v1.engine.core.set_process_title = lambda *_: None  # it would take the name away again
    _talk_to_nobody()
    try:
        target(**arguments)
    except Exception as error:
        last_words.send(clause(type(error).__name__, str(error)))
        last_words.send(traceback.format_exc())
        sys.exit(1)


def _follow(threads: "Synchronized", set_threads: Callable[[int], None], core: Any) -> None:
    """Compute with as many threads as `threads` says, from step to step of the engine core."""
    current = threads.value
    # OpenMP has read its variables in the template already. vLLM replaces this function later.
    set_threads(current)
    step = core._process_engine_step

    def step_with_threads(engine: Any) -> Any:
        nonlocal current
        if threads.value != current:
            current = threads.value
            set_threads(current)
        return step(engine)

    core._process_engine_step = step_with_threads


def _talk_to_nobody() -> None:
    """Spare an engine of one process the threads by which processes would talk to each other.

    vLLM makes a dozen groups for parallel engines, and each has a thread that wakes every 10 ms:
    together they take 1.4 % of a core, for ever. In a group of one no collective does anything.
    """
    import torch.distributed
    import torch.testing._internal.distributed.fake_pg

    new_group = torch.distributed.new_group

    def new_group_of_one(*arguments: Any, **options: Any) -> Any:
        if torch.distributed.get_world_size() == 1:
            options["backend"] = "fake"
        return new_group(*arguments, **options)

    torch.distributed.new_group = new_group_of_one


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
