"""Write the generated pages, and parts of pages: `python -m router.docs`.

A test fails when they are stale.
"""

# ruff: noqa: E501 - Markdown has one sentence on a line

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from config import PolicySettings, Settings
from router.classifier import TASKS
from router.errors import CODES
from router.training import data

DOCS = Path(__file__).parent.parent / "docs"


def pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    classifier = (DOCS / "classifier.md").read_text(encoding="utf-8")
    return {
        "classifier.md": filled(classifier, "the prompts", training_prompts()),
        "configuration.md": configuration(),
        "policy-keys.md": policy_keys(),
        "errors.md": errors(),
    }


def main() -> None:
    """Write every generated page."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")


def filled(page: str, part: str, text: str) -> str:
    """Return the page with another text between the comments that mark a generated part.

    Raises
    ------
    ValueError
        The page has no such part, or has it twice.
    """
    begin, end = f"<!-- {part}: generated, ", f"<!-- end of {part} -->"
    pattern = re.compile(rf"({re.escape(begin)}[^\n]*\n).*?({re.escape(end)})", re.DOTALL)
    page, count = pattern.subn(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", page)
    if count != 1:
        raise ValueError(f"expected one part from `{begin}… -->` to `{end}`, found {count}")
    return page


def training_prompts() -> str:
    """Return the table of the prompts that the shipped classifier is trained on."""
    files = {
        path.stem: [
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
        ]
        for path in sorted(data.PROMPTS.glob("*.jsonl"))
    }
    rows = [row for several in files.values() for row in several]
    lengths = [len(row.text) for row in data.read([data.PROMPTS])]
    titles = ("file", "prompts", "English", "Spanish", *TASKS, "near misses", "conversations")
    lines = [
        f"{len(rows):,} prompts in {len(files)} files; half of them have fewer than "
        f"{round(statistics.median(lengths))} characters, the longest has {max(lengths):,}:",
        "",
        _row(titles),
        _row(["---", *["---:"] * (len(titles) - 1)]),
        *(_row([f"`{name}`", *_counts(several)]) for name, several in files.items()),
        _row(["**all**", *_counts(rows)]),
    ]
    return "\n".join(lines)


def _counts(rows: list[dict[str, Any]]) -> list[str]:
    languages = Counter(row["language"] for row in rows)
    tasks = Counter(row["task"] for row in rows)
    counts = [
        len(rows),
        *(languages[language] for language in ("en", "es")),
        *(tasks[task] for task in TASKS),
        sum(bool(row.get("near_miss")) for row in rows),
        sum("messages" in row for row in rows),
    ]
    return [f"{count:,}" if count else "" for count in counts]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def configuration() -> str:
    """Return the page that describes every key of a configuration but those of its policy."""
    return "\n".join([_CONFIGURATION, *_sections("", Settings, "The file")]) + "\n"


_CONFIGURATION = """\
# What can be configured?

<!-- Generated from config/settings.py by `python -m router.docs`; edit there. -->

A configuration is one YAML or JSON file.
`axion serve --config FILE` runs it, `axion check FILE` says everything that is wrong with it, each problem with its line, and looks at the models' files that are on this disk.
Unknown keys, wrong types, values out of bounds and names that do not exist are errors; nothing is silently ignored.

Two files are shipped and commented: [quickstart.yaml](../config/quickstart.yaml), for any laptop, and [axion.yaml](../config/axion.yaml), the production roles.
Sizes in GB are GiB (2^30 bytes) unless a key says otherwise; times are seconds."""


def policy_keys() -> str:
    """Return the page that describes every key of a policy."""
    return "\n".join([_POLICY_KEYS, *_sections("", PolicySettings, "The policy")]) + "\n"


_POLICY_KEYS = """\
# What can be said in a policy?

<!-- Generated from config/policy.py by `python -m router.docs`; edit there. -->

A policy says which model answers a request for `auto`; how the choice is made is in [routing.md](routing.md).
It is the `routing` section of a [configuration](configuration.md), or a YAML or JSON file of its own that is named under `policies` there.
Every key may be left out: it is then taken from the policy that this one extends, at the end from `balanced`.

Three policies are shipped and commented: [balanced.yaml](../policies/balanced.yaml), [fastest.yaml](../policies/fastest.yaml) and [quality.yaml](../policies/quality.yaml).

A small policy file:

```yaml
extends: balanced
default: phi4_fast
fit:
  qwen_coder: {code: 0.9, other: 0.5, slope: 0.3}
rules:
  - name: invoices
    when: {keywords: [invoice, factura], language: es}
    prefer: [mistral_balanced]
  - name: nights
    when: {hours: "22:00-06:00"}
    exclude: [gemma3_multimodal]
tests:
  - prompt: Write a Python function that reverses a string
    expect: qwen_coder
```

`axion check` says everything that is wrong with a policy, each problem with its line.
Unknown keys, models that do not exist, rules that can never apply and regular expressions that take for ever on some texts are errors."""


def _sections(path: str, kind: type[Struct], title: str) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield (kind.__doc__ or "").strip().splitlines()[0]
    yield "\n| key | type | default | meaning |\n| --- | --- | --- | --- |"
    inner: list[tuple[str, type[Struct], str]] = []
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        annotation = hints[field.name]
        struct, entry = _struct_in(annotation)
        here = f"{path}{field.name}"
        if struct is PolicySettings and kind is not PolicySettings:
            shown = "a policy"  # it has a page of its own
        elif struct is not None:
            inner.append((f"{here}{entry}.", struct, f"`{here}{entry}`"))
            shown = {"": "see below", "[]": "list, see below"}.get(entry, "mapping, see below")
        else:
            shown = _type(annotation)
        text = _meaning(annotation).replace("|", "\\|")
        default = _default(field, struct is not None)
        yield f"| `{here}` | {shown} | {default} | {text} |"
    for name, struct, heading in inner:
        yield from _sections(name, struct, heading)


def _struct_in(annotation: Any) -> tuple[type[Struct] | None, str]:
    """Return the Struct that an annotation holds, and how one is named if there are several."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind, ""
    if get_origin(kind) is list:
        return _struct_in(get_args(kind)[0])[0], "[]"
    if get_origin(kind) is dict:
        return _struct_in(get_args(kind)[1])[0], ".NAME"
    options = [option for option in get_args(kind) if option is not type(None)]
    return _struct_in(options[0]) if len(options) == 1 else (None, "")


def _type(annotation: Any) -> str:
    """Return the type in plain words, with its bounds."""
    if get_origin(annotation) is Annotated:
        kind, *metas = get_args(annotation)
        bounds = [
            f"{sign} {value:g}"
            for meta in metas
            if isinstance(meta, Meta)
            for sign, value in (("≥", meta.ge), (">", meta.gt), ("≤", meta.le), ("<", meta.lt))
            if value is not None
        ]
        return ", ".join([_type(kind), *bounds])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    options = [option for option in get_args(annotation) if option is not type(None)]
    if options:
        return " or ".join(_type(option) for option in options)
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[annotation]


def _meaning(annotation: Any) -> str:
    metas = [meta for meta in get_args(annotation) if isinstance(meta, Meta) and meta.description]
    return metas[-1].description or "" if metas else ""


def _default(field: Any, is_struct: bool) -> str:
    if field.required:
        return "**needed**"
    value = field.default
    if value is NODEFAULT:
        value = field.default_factory() if not is_struct else None
    if value is None or is_struct:
        return ""
    if value in ([], {}, ""):
        return "empty"
    return f"`{'true' if value is True else 'false' if value is False else value}`"


def errors() -> str:
    """Return the page that lists every error code."""
    rows = "\n".join(
        f"| `{name}` | {code.status} | `{code.type}` | {code.meaning} |"
        for name, code in CODES.items()
    )
    return f"""\
# What do the errors mean?

<!-- Generated from router/errors.py by `python -m router.docs`; edit there. -->

Every error, also for a wrong URL or method, is OpenAI's envelope:

```json
{{"error": {{"message": "what, where, and what to do", "type": "…", "param": "the field at fault or null", "code": "…"}}}}
```

The message never repeats the prompt.
`429` and `503` carry `Retry-After` in seconds.
After the first byte of a stream the status is gone: a failure is then one event with this envelope, followed by `data: [DONE]`.

| code | status | type | when, and what to do |
| --- | --- | --- | --- |
{rows}
"""


if __name__ == "__main__":
    main()
