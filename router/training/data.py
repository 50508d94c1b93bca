"""Labelled prompts: one JSON object a line.

Needed are `text`, or `messages` as in a chat request, and `task`. `language`, `source_group` and
`near_miss` group the report; `difficulty` is 0 to 1. The wider format of public collections is read
too: `labels.task`, `labels.language`, `meta.set`, `meta.near_miss`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from router.classifier import TASKS
from router.describe import subject
from router.words import Turn

PROMPTS = Path(__file__).with_name("prompts")
"""What the shipped classifier is trained on; every row was written for it."""

REGRESSION = Path(__file__).with_name("regression.jsonl")
"""Written to catch a classifier that has learned surface words; never trained on."""


class BadRow(Exception):
    """A row cannot be used; the message says which and why."""


class Row(Struct, frozen=True):
    """One labelled prompt.

    Attributes
    ----------
    text
        What the classifier reads.
    source
        Where it is from; whole sources are left out together.
    near_miss
        In which ways it looks like another task.
    difficulty
        0 to 1, or None where nobody said.
    """

    text: str
    task: str
    source: str
    language: str = ""
    near_miss: tuple[str, ...] = ()
    difficulty: float | None = None


def read(paths: Iterable[Path]) -> list[Row]:
    """Return the rows whose task is one of `TASKS`, of files or of all files in a directory.

    Raises
    ------
    BadRow
        A line is not JSON, or has no prompt.
    """
    files = [
        file
        for path in paths
        for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
    ]
    return [row for file in files for row in _read(file)]


def _read(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            labels, meta = fields.get("labels", {}), fields.get("meta", {})
            task = fields.get("task", labels.get("task"))
            messages = [{"role": "user", "content": fields["text"]}] if "text" in fields else []
            text = subject(turns(messages or fields["messages"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRow(
                f"{path}:{number}: not a prompt ({error}). Expected a JSON object with `text` or "
                "`messages`, and `task`"
            ) from None
        if task in TASKS:
            yield Row(
                text=text,
                task=task,
                source=fields.get("source_group") or meta.get("set") or path.stem,
                language=fields.get("language") or labels.get("language") or "",
                near_miss=_tags(fields.get("near_miss") or meta.get("near_miss") or []),
                difficulty=fields.get("difficulty"),
            )


def turns(messages: list[dict[str, Any]]) -> list[Turn]:
    """Return the turns of messages as in a chat request."""
    return [Turn(each["role"], _text(each.get("content"))) for each in messages]


def _tags(near_miss: str | list[str]) -> tuple[str, ...]:
    return (near_miss,) if isinstance(near_miss, str) else tuple(near_miss)


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text") or "" for part in content)
    return content or ""
