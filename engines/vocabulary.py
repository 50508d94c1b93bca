"""The names that the installed vLLM knows, read from its source in milliseconds.

Importing vLLM takes seconds; `axion check` should not.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from config import Vocabulary
from engines import cpu

_RESERVED = {
    "model": "set `source` instead",
    "tokenizer": "the tokenizer comes with the model; set `source`",
    "served_model_name": "set `name` instead",
    "gpu_memory_utilization": "there is no GPU; set `kv_cache_gb` instead",
    "kv_cache_memory_bytes": "set `kv_cache_gb` instead",
    "enable_chunked_prefill": "set `chunked_prefill` instead",
    "enable_prefix_caching": "set `prefix_caching` instead",
    "distributed_executor_backend": "the service sets it; engines start faster that way",
    "trust_remote_code": "code from a model's repository is never run",
    **{
        name: f"set `{name}` of the model instead"
        for name in (
            "dtype",
            "quantization",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "enforce_eager",
            "reasoning_parser",
        )
    },
}


@cache
def vocabulary() -> Vocabulary:
    """Return the names of the installed vLLM; empty sets, and so no checks, when there is none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return Vocabulary()
    root = Path(spec.origin).parent
    quantizations = frozenset(
        _literal(root / "model_executor" / "layers" / "quantization" / "__init__.py")
    )
    return Vocabulary(
        engine_args=frozenset(_engine_args(root / "engine" / "arg_utils.py")),
        own_keys=_RESERVED,
        tool_parsers=frozenset(_keys(root / "tool_parsers" / "__init__.py")),
        reasoning_parsers=frozenset(_keys(root / "reasoning" / "__init__.py")),
        quantizations=quantizations,
        unsupported_quantizations=cpu.unsupported(quantizations, cpu.features()),
    )


def _engine_args(path: Path) -> list[str]:
    """Return the fields of the dataclasses EngineArgs and AsyncEngineArgs."""
    return [
        statement.target.id
        for node in _parsed(path).body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not statement.target.id.startswith("_")
    ]


def _keys(path: Path) -> list[str]:
    """Return the keys of the module's table `..._TO_REGISTER`."""
    return [
        str(key.value)
        for node in _parsed(path).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.endswith("_TO_REGISTER")
        and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    ]


def _literal(path: Path) -> list[str]:
    """Return the values of the module's Literal `QuantizationMethods`."""
    return [
        str(value.value)
        for node in _parsed(path).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "QuantizationMethods"
        for value in ast.walk(node.value)
        if isinstance(value, ast.Constant)
    ]


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])
