"""The names that the installed vLLM knows, read from its source in milliseconds.

Importing vLLM takes seconds; `axion check` should not.
"""

import ast
import importlib.util
import types
from functools import cache
from pathlib import Path
from typing import Any

from config import Vocabulary
from engines import cpu, sources

_ONE_PROCESS = (
    "an engine is one process on this machine's cores; for more speed set `threads`, for more "
    "models at a time add them to `models`"
)

_RESERVED = {
    "model": "set `source` instead",
    "tokenizer": "the tokenizer comes with the model; set `source`",
    "served_model_name": "set `name` instead",
    "gpu_memory_utilization": "there is no GPU; set `kv_cache_gb` instead",
    "kv_cache_memory_bytes": "set `kv_cache_gb` instead",
    "enable_chunked_prefill": "set `chunked_prefill` instead",
    "enable_prefix_caching": "set `prefix_caching` instead",
    "distributed_executor_backend": "the service sets it; engines start faster that way",
    "worker_extension_cls": "the service sets it, to give memory back after a load",
    "scheduling_policy": "the service sets it: priorities are those of its queue",
    "disable_log_stats": "the service sets it; GET /v1/system has the numbers",
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
    """Return the names of the installed vLLM; none of them, and so no checks, without one."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return Vocabulary(source_problem=sources.problem)
    root = Path(spec.origin).parent
    quantizations = frozenset(
        _literal(root / "model_executor" / "layers" / "quantization" / "__init__.py")
    )
    arguments = _engine_args(root / "engine" / "arg_utils.py")
    return Vocabulary(
        engine_args=arguments,
        own_keys={**dict.fromkeys(filter(_for_many, arguments), _ONE_PROCESS), **_RESERVED},
        tool_parsers=frozenset(_keys(root / "tool_parsers" / "__init__.py")),
        reasoning_parsers=frozenset(_keys(root / "reasoning" / "__init__.py")),
        quantizations=quantizations,
        unsupported_quantizations=cpu.unsupported(quantizations, cpu.features()),
        source_problem=sources.problem,
    )


def _for_many(argument: str) -> bool:
    """Tell whether an engine argument spreads an engine over processes, devices or machines."""
    return argument.startswith(
        ("data_parallel_", "nnodes", "node_rank", "master_", "dcp_", "numa_bind", "device_ids")
    ) or argument.endswith(("_parallel_size", "_expert_parallel", "_parallel_loading_workers"))


def _engine_args(path: Path) -> dict[str, Any]:
    """Return the fields of the dataclasses EngineArgs and AsyncEngineArgs, and their types."""
    return {
        statement.target.id: _type(statement.annotation)
        for node in _parsed(path).body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not statement.target.id.startswith("_")
    }


_TYPES = {"bool": bool, "int": int, "float": float, "str": str}


def _type(annotation: ast.expr) -> Any:
    """Return the type that an annotation means, made of plain types; `Any` for every other."""
    match annotation:
        case ast.Name(name) if name in _TYPES:
            return _TYPES[name]
        case ast.Constant(None):
            return None
        case ast.Subscript(ast.Name("list"), item):
            return types.GenericAlias(list, _type(item))
        case ast.BinOp(left, ast.BitOr(), right):
            sides = _type(left), _type(right)
            return Any if Any in sides else sides[0] | sides[1]
    return Any


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
