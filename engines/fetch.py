"""Fetches a model's files in a process of its own, which can be ended at any moment.

A download in a thread would go on after its load was cancelled or timed out, and hold up the end of
the server. Files that were complete are kept for the next try; the hub's library begins the others
again.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct

from engines.child import clause
from engines.sources import Report, SourceError, at_hand, resolve

_END_S = 2.0
"""Seconds that the process has to remove what it has begun."""


class _Line(Struct, tag="line"):
    """Something for people to read."""

    text: str


class _Found(Struct, tag="found"):
    """The end: where the files are."""

    directory: str


class _Failed(Struct, tag="failed"):
    """The end: why they cannot be had."""

    reason: str


_Message = _Line | _Found | _Failed


async def fetch(source: str, base: Path, report: Report) -> Path:
    """Return the directory of a model's files. See `engines.sources.resolve`.

    Cancelling ends what is under way; so does the end of this process, however that comes.

    Raises
    ------
    SourceError
        The files are not there and cannot be had; the message says what to do.
    """
    if at_hand(source):
        return resolve(source, base, report)
    process = await asyncio.create_subprocess_exec(
        # -P: a module of ours, not one of that name in the current directory.
        *(sys.executable, "-P", "-m", "engines.fetch", source, str(base)),
        stdin=asyncio.subprocess.PIPE,  # ends with this process: see `_end_with_parent`
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,  # of a line, in bytes
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C at a terminal is for the server; it ends this one
    )
    try:
        async for line in cast(asyncio.StreamReader, process.stdout):
            try:
                message = msgspec.json.decode(line, type=_Message)
            except msgspec.DecodeError:
                continue  # a library has something to say
            match message:
                case _Line(text):
                    report(text)
                case _Found(directory):
                    return Path(directory)
                case _Failed(reason):
                    raise SourceError(reason)
        status = await process.wait()
        raise SourceError(f"source {source!r}: fetching it ended early with exit status {status}")
    finally:
        try:
            cast(asyncio.StreamWriter, process.stdin).close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started, such as pip


def main(source: str, base: str) -> None:
    """Resolve `source` and write what happens to standard output, one JSON object in a line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        _say(_Found(str(resolve(source, Path(base), lambda text: _say(_Line(text))))))
    except SourceError as error:
        _say(_Failed(str(error)))
    except Exception as error:
        _say(_Failed(f"source {source!r}: {clause(type(error).__name__, str(error))}"))


def _say(message: _Message) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    """End this process and its own when nobody waits for it, also after the server's `kill -9`.

    Nothing is ever written to standard input; the kernel closes it with the server. Files that are
    half downloaded would stay for ever: the next try gives its own other names.
    """
    os.read(0, 1)
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it has just been closed
            path = descriptor.readlink()
            if path.suffix == ".incomplete":
                path.unlink()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
