"""`axion route`: which model a request would get, for people at a terminal."""

import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import AUTO, Settings
from engines.protocol import Refused
from router.address import url
from router.choose import POLICY_HEADER
from router.errors import translate

TIMEOUT_S = 10.0
"""Longest that a running service may take to answer."""

_HEAD = (
    "",
    "MODEL",
    "STATE",
    "FIT",
    "LOAD",
    "QUEUE",
    "PREFILL",
    "DECODE",
    "TOTAL",
    "DISPL",
    "WORTH",
)
_LEFT = 3  # columns of words; the others are numbers


class NoAnswer(Exception):
    """There is nothing to show; the message says why and what to do."""


def body(text: str | None, request: Path | None) -> bytes:
    """Return the body of the request that is asked about.

    Parameters
    ----------
    text
        What the user asks, or `-` for what standard input has.
    request
        A file with the body itself, in which `model` may be left out; or `-`.

    Raises
    ------
    NoAnswer
        There is none of them, or both, or the file is no JSON object.
    """
    if (text is None) == (request is None):
        raise NoAnswer("say what the user asks, or name a file with --request FILE; not both.")
    if request is None:
        asked = sys.stdin.read() if text == "-" else text
        return json.dumps(
            {"model": AUTO, "messages": [{"role": "user", "content": asked}]}
        ).encode()
    try:
        found = json.loads(sys.stdin.read() if str(request) == "-" else request.read_text("utf-8"))
    except OSError as error:
        raise NoAnswer(f"{request} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"{request} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise NoAnswer(f"{request}: expected a JSON object, the body of a chat request.")
    return json.dumps({"model": AUTO, **found}).encode()


def ask(settings: Settings, request: bytes, policy: str | None) -> dict[str, Any] | None:
    """Return what the running service says, or None when nothing listens there.

    Raises
    ------
    NoAnswer
        It refuses the request, does not answer, or is something else.
    """
    here = url(settings.server.host, settings.server.port)
    headers = {"content-type": "application/json"} | ({POLICY_HEADER: policy} if policy else {})
    question = urllib.request.Request(f"{here}/v1/route", request, headers)  # noqa: S310 - http
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    strange = f"what listens on {here} is not this service; name its port with --port"
    try:
        with direct.open(question, timeout=TIMEOUT_S) as response:
            found = json.load(response)
            shown(found)
            return dict(found)
    except urllib.error.HTTPError as error:
        try:
            refusal = json.load(error)["error"]
            message, code = str(refusal["message"]), refusal["code"]
        except (ValueError, LookupError, TypeError):
            raise NoAnswer(strange) from None
        raise NoAnswer(strange if code == "not_found" else message) from None
    except (http.client.HTTPException, ValueError, LookupError, TypeError):
        raise NoAnswer(strange) from None
    except TimeoutError:
        raise NoAnswer(f"{here} does not answer within {TIMEOUT_S:g} s") from None
    except OSError:
        return None


def offline(settings: Settings, config: Path, request: bytes, policy: str | None) -> dict[str, Any]:
    """Return what the service would say if it were started now.

    Raises
    ------
    NoAnswer
        It would refuse the request.
    ConfigError
        A policy cannot be used.
    """
    from router.explain import dry_run
    from router.serve import build_offline, speeds_file

    chooser = build_offline(settings, config, speeds_file())
    headers = {POLICY_HEADER: policy} if policy else {}
    try:
        return dry_run(request, headers, chooser)
    except Refused as refusal:
        raise NoAnswer(refusal.message) from None
    except Exception as error:
        api_error = translate(error)
        if api_error.code == "internal_error":
            raise
        raise NoAnswer(api_error.message) from None


def shown(found: dict[str, Any]) -> str:
    """Return a decision as text."""
    lines = [*_head(found), "", *_table(found), "", *_after(found)]
    return "\n".join(lines) + "\n"


def _head(found: dict[str, Any]) -> Iterator[str]:
    task, policy = found["task"], found["policy"]
    yield f"{found['model']}: {found['reason']}"
    shares = sorted(task["signals"].items(), key=lambda each: -each[1])
    likely = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    facts = [
        f"{task['label']} (likely: {likely})" if likely else task["label"],
        f"difficulty {task['difficulty']:.2f}",
        f"language {task['language'] or 'unknown'}",
        f"output {task['output']}",
        f"about {task['prompt_tokens']} prompt tokens",
        *(f"{task[key]} {key}" for key in ("images", "tools") if task[key]),
    ]
    yield f"Task: {', '.join(facts)}"
    yield f"Policy: {policy['name']}, version {policy['version']}; rule: {found['rule'] or 'none'}"


def _table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the candidates, most worthy first; times in seconds."""
    order = sorted(found["candidates"], key=lambda each: (not each["capable"], -each["worth"]))
    rows = [_HEAD, *(_row(each, found["model"]) for each in order)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row, why_not in zip(rows, [None, *(each["why_not"] for each in order)], strict=True):
        cells = [
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield " ".join(["".join(cells[:1]), "  ".join(cells[1:])]).rstrip() + (
            f"  {why_not}" if why_not else ""
        )


def _row(each: dict[str, Any], chosen: str) -> tuple[str, ...]:
    seconds = each["predicted_seconds"]
    times = (seconds[part] for part in ("load", "queue", "prefill", "decode", "total"))
    return (
        ">" if each["model"] == chosen else "",
        each["model"],
        each["state"],
        f"{each['fit']:.2f}",
        *(f"{time:.1f}" for time in times),
        f"{each['displacement']:.2f}",
        f"{each['worth']:.2f}",
    )


def _after(found: dict[str, Any]) -> Iterator[str]:
    loads, evicts = (found["consequences"][key] for key in ("loads", "evicts"))
    if loads:
        leaving = f"; {' and '.join(evicts)} would leave memory for it" if evicts else ""
        yield f"It would load {' and '.join(loads)}{leaving}."
    else:
        yield "Nothing would be loaded."
    yield from found["counterfactual"]
    taken = ", ".join(f"{step} {time} µs" for step, time in found["elapsed_us"].items())
    yield f"Took: {taken}."
