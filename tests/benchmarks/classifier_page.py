"""Measure everything that docs/classifier.md says, and write it there, with its pictures.

    python -m tests.benchmarks.classifier_page FILE.jsonl ... [--part NAME ...]

FILE is labelled prompts that the classifier was not trained on, as for `axion evaluate`. It takes
some ten minutes, most of them for the models that leave a source out; `--part` writes one part of
the page only, and can be repeated. The sentences between the parts are for a person to check.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from router.classifier import shipped
from router.docs import DOCS, filled
from router.training import data, evaluate, pictures
from tests.benchmarks import description

REGRESSION_SET = data.REGRESSION
_PAGE = DOCS / "classifier.md"


def main() -> None:
    """Write the parts of the page that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--part", choices=PARTS, action="append")
    options = parser.parse_args()
    rows = data.read(options.files)
    for part in options.part or PARTS:
        text = PARTS[part](rows)
        # It is read again each time: a person may edit it meanwhile.
        page = filled(_PAGE.read_text(encoding="utf-8"), part, text)
        _PAGE.write_text(page, encoding="utf-8")
        _say(f"written: {part}")


def _public(rows: list[data.Row]) -> str:
    judged = evaluate.judge(shipped(), rows)
    pictures.write(judged, DOCS / "pictures")
    tables = evaluate.sections(judged)
    shown = ("Overall", "By task", "By language", "By near miss")
    collections = len({row.source for row in rows})
    return "\n\n".join(
        [
            f"From {collections} public collections, {time.strftime('%Y-%m-%d')}.",
            *(f"### {name}\n\n{tables[name]}" for name in shown),
        ]
    )


def _comparison(rows: list[data.Row]) -> str:
    return evaluate.comparison(shipped(), rows, data.read([data.PROMPTS]))


def _sources_left_out(rows: list[data.Row]) -> str:
    judged = evaluate.judge(shipped(), rows)
    return evaluate.left_out_sources(judged, data.read([data.PROMPTS]), _say)


def _regression_set(rows: list[data.Row]) -> str:
    return _comparison(data.read([REGRESSION_SET]))


def _times(rows: list[data.Row]) -> str:
    return description.table(description.PROMPTS)


PARTS: dict[str, Callable[[list[data.Row]], str]] = {
    "public prompts": _public,
    "public prompts, comparison": _comparison,
    "regression set": _regression_set,
    "times": _times,
    "sources left out": _sources_left_out,
}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
