"""A configuration on echo engines in files of its own, which tests change while it is in use."""

import os
from pathlib import Path

CONFIGURATION = """\
models:
  - {name: small, source: echo, engine: echo, max_model_len: 4096}
  - {name: coder, source: echo, engine: echo, max_model_len: 4096}
routing:
  default: small
  rules:
    - {name: code, when: {task: code}, prefer: [coder]}
  tests:
    - {prompt: Hola, expect: small}
policies:
  mine: ./mine.yaml
pool: {memory_budget_gb: 1}
"""

MINE = """\
rules:
  - {name: all-to-coder, when: {}, prefer: [coder]}
tests:
  - {prompt: Hola, expect: coder}
"""

CODE = "Write a Python function that reverses a linked list"


def write(directory: Path, configuration: str = CONFIGURATION, mine: str = MINE) -> Path:
    """Write both files and return the configuration's."""
    replace(directory / "mine.yaml", mine)
    return replace(directory / "axion.yaml", configuration)


def replace(path: Path, text: str) -> Path:
    """Write a file as a careful editor does: never is half of it there."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
    return path


def chat(text: str, **more: object) -> dict[str, object]:
    """Return the body of a chat request."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}
