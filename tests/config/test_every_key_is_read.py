"""No key of the configuration is decoration: each is read by some code."""

import ast
from functools import cache
from pathlib import Path

import msgspec
import pytest

from config import policy, settings

ROOT = Path(__file__).parents[2]
STRUCTS = [
    value
    for value in {**vars(policy), **vars(settings)}.values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
]


@cache
def attributes_read() -> set[str]:
    """Return every attribute name that the code outside `config` reads."""
    # A fit is read by the label of a request's task.
    return set(policy.TASKS) | {
        node.attr
        for package in ("policies", "engines", "router")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize(
    "key",
    sorted({f"{kind.__name__}.{name}" for kind in STRUCTS for name in kind.__struct_fields__}),
)
def test_some_code_reads(key):
    if key.removeprefix("FitSettings.") in policy.TASKS:
        return  # read by the name of a task; tests/policies/test_policy.py has each
    assert key.split(".")[1] in attributes_read()
