"""Measure how far `router.tokens.count` is from what the tokenizers of models count.

    python -m tests.benchmarks.token_estimate FILE.jsonl [NAME=tokenizer.json ...]

FILE has one prompt a line: `messages` in OpenAI's shape, and `labels` with `task` and `language`.
Measured are the tokenizers that an installation has, and those that are named.
The table on standard output is the one in docs/routing.md.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.quickstart import fetch
from policies.decide import FEWER, MORE
from router import tokens

Count = Callable[[str], int]
"""A tokenizer, as far as this is concerned: how many tokens a text is, without special ones."""

TOKENS_MIN = 50
"""Shorter texts are left out: one token more or less is a large share, and fits anywhere."""

_ROOT = Path(__file__).parents[2]
_PIECE_CHARS = 2_000  # of source code, about what a person pastes
_LANGUAGES = {"en": "English", "es": "Spanish"}
_KINDS = {
    ("en", "code"): "English programming tasks",
    ("es", "code"): "Spanish programming tasks",
    ("en", "math"): "English maths",
    ("es", "math"): "Spanish maths",
    ("en", "reasoning"): "English puzzles",
}


def main(arguments: Sequence[str]) -> None:
    """Print the table for the file and the further tokenizers in `arguments`."""
    if not arguments:
        sys.exit(__doc__)
    path, *named = arguments
    prompts, others = _prompts(Path(path)), _others(Path(path))
    counts = dict(_installed())
    for name, _, file in (argument.partition("=") for argument in named):
        counts[name] = _from_json(Path(file))
    sys.stdout.write(_table(prompts, others, counts))


def _prompts(path: Path) -> dict[str, list[str]]:
    """Return the prompts in the file, by kind."""
    found = defaultdict(list)
    for record in _records(path):
        language, task = record["labels"]["language"], record["labels"]["task"]
        prose = f"{_LANGUAGES[language]} prose" if language in _LANGUAGES else "other languages"
        found[_KINDS.get((language, task), prose)].append(_text(record["messages"]))
    return _long(found)


def _others(path: Path) -> dict[str, list[str]]:
    """Return texts that are no prompts: what the file says about its prompts, and our source."""
    about = [{**record, "messages": []} for record in _records(path)]
    sources = [
        source.read_text(encoding="utf-8")
        for package in ("config", "policies", "engines", "router")
        for source in sorted((_ROOT / package).glob("*.py"))
    ]
    return _long(
        {
            "JSON": [json.dumps(record, ensure_ascii=False) for record in about],
            "Python": [
                source[start : start + _PIECE_CHARS]
                for source in sources
                for start in range(0, len(source), _PIECE_CHARS)
            ],
        }
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _long(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    long = {
        kind: [text for text in several if tokens.count(text) > TOKENS_MIN]
        for kind, several in texts.items()
    }
    return {kind: several for kind, several in sorted(long.items()) if several}


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that `router.parse` finds in the messages."""
    texts = []
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if part.get("text")]
    return "\n".join(texts)


def _installed() -> Iterator[tuple[str, Count]]:
    """Yield the tokenizers that need no download but the quickstart model's."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    yield "SmolLM2 (quickstart)", _from_json(fetch(_say) / "tokenizer.json")
    for name, whole in (
        ("Mistral-7B v0.2", MistralTokenizer.v1()),  # the one that its model card names
        ("Tekken (Mistral Nemo)", MistralTokenizer.v3(is_tekken=True)),
    ):
        yield name, _without_special_tokens(whole.instruct_tokenizer.tokenizer)


def _from_json(path: Path) -> Count:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _without_special_tokens(tokenizer: Any) -> Count:
    return lambda text: len(tokenizer.encode(text, bos=False, eos=False))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _table(
    prompts: Mapping[str, Sequence[str]],
    others: Mapping[str, Sequence[str]],
    counts: Mapping[str, Count],
) -> str:
    """Return a Markdown table: a row for each kind of text, a column for each tokenizer."""
    every_prompt = [text for several in prompts.values() for text in several]
    rows = [["text", "number", *counts], ["---"] * (2 + len(counts))]
    for kind, several in {**prompts, "all prompts": every_prompt, **others}.items():
        cells = [_cell(several, count) for count in counts.values()]
        rows.append([kind, f"{len(several):,}", *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(texts: Sequence[str], count: Count) -> str:
    """Return the median of the ratios, and the shares of them that the margins do not cover."""
    ratios = [count(text) / tokens.count(text) for text in texts]
    above = sum(ratio > 1 + MORE for ratio in ratios) / len(ratios)
    below = sum(ratio < 1 - FEWER for ratio in ratios) / len(ratios)
    return f"{statistics.median(ratios):.2f} ({above:.1%} / {below:.1%})"


if __name__ == "__main__":
    main(sys.argv[1:])
