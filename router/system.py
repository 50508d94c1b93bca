"""What `GET /v1/system` tells an operator: the processor, the memory, and every engine."""

from pathlib import Path
from typing import Any

import msgspec
import psutil

from config import ModelSettings, Settings
from engines import cores, cpu
from engines.memory import available_bytes
from engines.plan import Entry, Plan, make_plan
from engines.pool import Pool
from engines.sources import local_directory
from engines.words import Snapshot
from router import VERSION
from router.forecast import Forecast, Mean, Speed


def describe_system(
    settings: Settings,
    base: Path,
    pool: Pool,
    snapshots: list[Snapshot],
    forecast: Forecast,
) -> dict[str, Any]:
    """Return the machine and the engines as they are now. Loads nothing; blocks for milliseconds.

    `running` counts the requests that hold a place on an engine, `computing` those that the engine
    itself knows of, so that one which has ended and is still computed would show. Memory is in
    bytes; `resident_bytes` is what an engine's processes really hold, without the pages that they
    share with others.
    """
    processor = cpu.features()
    models = {model.name: model for model in settings.models}
    return {
        "version": VERSION,
        "cpu": {
            **msgspec.to_builtins(processor),
            "usable_cores": cores.usable(),
            "kernels": msgspec.to_builtins(cpu.kernels(processor)),
        },
        "memory": {
            "total_bytes": psutil.virtual_memory().total,
            "available_bytes": available_bytes(),
            "budget_bytes": pool.budget_bytes,
        },
        "engines": [
            _engine(models[snapshot.model], base, snapshot, pool, processor)
            for snapshot in snapshots
        ],
        "forecast": {model.name: _speed(forecast.known(model.name)) for model in settings.models},
        "plan": _plan(make_plan(settings, base, budget=pool.budget_bytes)),
    }


def _speed(known: Speed) -> dict[str, Any]:
    """Return what was measured of a model's speed; nothing of one that has not answered yet."""
    return {
        "prefill_tokens_per_s": _rounded(known.prefill),
        "decode_tokens_per_s": {
            str(at_once): _rounded(mean) for at_once, mean in sorted(known.decode.copy().items())
        },
        "error": _rounded(known.error),
    }


def _rounded(mean: Mean | None) -> float | None:
    return round(mean.value, 3) if mean else None


def _plan(plan: Plan) -> dict[str, Any]:
    """Return who fits into the budget, and who leaves for whom."""
    return {
        "service_bytes": plan.service_bytes,
        "models": [_entry(entry) for entry in plan.models],
        "together": plan.together,
        "problems": plan.problems,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    """Return what one model takes; null where that is not known, as of a model that is not here."""
    need = entry.need
    return {
        "model": entry.model,
        "here": entry.here,
        "weights_bytes": need.weights_bytes if need else None,
        "kv_cache_bytes": need.kv_cache_bytes if need else entry.kv_cache_bytes,
        "process_bytes": need.overhead_bytes if need else None,
        "total_bytes": need.total_bytes if need else None,
        "max_model_len": need.max_model_len if need else entry.max_model_len,
        "leave": entry.leave,
        "problem": entry.problem,
    }


def _engine(
    model: ModelSettings, base: Path, snapshot: Snapshot, pool: Pool, processor: cpu.Features
) -> dict[str, Any]:
    engine = pool.engine(model.name)
    return {
        **msgspec.to_builtins(snapshot),
        "computing": engine.running if engine else 0,
        "pids": engine.pids if engine else [],
        "resident_bytes": sum(_private_bytes(pid) for pid in engine.pids) if engine else 0,
        "pinned": model.pin,
        **_numbers(model, base, processor),
    }


def _numbers(model: ModelSettings, base: Path, processor: cpu.Features) -> dict[str, Any]:
    """Return in which type the model computes, and with which code; None while it is not here."""
    directory = local_directory(model.source, base) if model.engine == "vllm" else None
    if directory is None:
        return {"dtype": None, "dtype_reason": None, "kernel": None}
    dtype, reason = cpu.resolve_dtype(model, directory, processor)
    format_ = cpu.declared(directory).quantization or model.quantization
    return {"dtype": dtype, "dtype_reason": reason, "kernel": cpu.kernel(format_, processor).name}


def _private_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0  # it has just ended
