"""What this processor offers, and which of vLLM's kernels really run on it.

Read from the source of vLLM 0.32, from the operators that its libraries for x86-64 and Arm hold,
and tried where a machine was at hand: `docs/cpu.md` says which is which. Paths in the comments
start at `vllm/`. Nothing here imports vLLM.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from config import ModelSettings


class Features(Struct, frozen=True, kw_only=True):
    """A processor as one process sees it.

    Attributes
    ----------
    architecture
        `x86_64`, `aarch64`, or what the system calls it.
    model
        The maker's name for it; empty when it is not known.
    cores
        How many cores this process may run on.
    quota
        How many cores' worth of time its cgroup gets, or None when that is not limited.
    instructions
        The instruction sets that matter here and that every core has, by the field's names; empty
        when the system does not tell.
    """

    architecture: str
    model: str = ""
    cores: int = 1
    quota: float | None = None
    instructions: tuple[str, ...] = ()

    def has(self, *names: str) -> bool:
        """Tell whether the processor has all of these instruction sets."""
        return set(names) <= set(self.instructions)

    @property
    def bfloat16(self) -> str | None:
        """The best instruction set by which it computes in bfloat16 itself; None: it has none."""
        return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if self.has(name)), None)

    @property
    def amx(self) -> bool:
        """Whether vLLM's AMX kernels run: they are in the library for AVX512-BF16."""
        return self.library == "_C" and self.has("amx_tile")

    @property
    def library(self) -> str | None:
        """The library of kernels that vLLM loads (`platforms/cpu.py`, import_kernels)."""
        if not self.instructions:
            return None
        if self.architecture == "aarch64":
            return "_C"
        if self.architecture != "x86_64":
            return None
        if not self.has("avx512f", "avx512vl", "avx512bw", "avx512dq"):
            return "_C_AVX2"
        return "_C" if self.has("avx512_bf16") else "_C_AVX512"

    def __str__(self) -> str:
        return ", ".join(part for part in (self.architecture, self.model) if part)


_X86 = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)

_ARM = {
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
"""Linux's name of each Arm instruction set, and the field's."""

_ARM_CORES = {
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd8e"): "Neoverse-N3",
    ("0xc0", "0xac3"): "Ampere-1",
    ("0xc0", "0xac4"): "Ampere-1a",
}
"""Arm's cpuinfo has the maker's numbers only (implementer, part)."""


def features(cpuinfo: str | None = None, cgroup: Path = Path("/sys/fs/cgroup")) -> Features:
    """Return the features of the processor that `cpuinfo` describes; of this one by default.

    Parameters
    ----------
    cpuinfo
        Contents of Linux's `/proc/cpuinfo`.
    cgroup
        Where cgroups are mounted.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            cpuinfo = ""
    lines = [line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line]
    fields = [(name.strip(), value.strip()) for name, value in lines]
    first = dict(reversed(fields))
    if "flags" in first:
        shared = _shared(fields, "flags")
        architecture, model = "x86_64", first.get("model name", "")
        instructions = tuple(name for name in _X86 if name in shared)
    elif "Features" in first:
        shared = _shared(fields, "Features")
        architecture = "aarch64"
        maker = (first.get("CPU implementer", ""), first.get("CPU part", ""))
        model = _ARM_CORES.get(maker, "")
        instructions = tuple(ours for linux, ours in _ARM.items() if linux in shared)
    else:
        architecture, model, instructions = platform.machine(), "", ()
    return Features(
        architecture=architecture,
        model=model,
        cores=len(os.sched_getaffinity(0)),
        quota=_quota(cgroup),
        instructions=instructions,
    )


def _shared(fields: list[tuple[str, str]], name: str) -> set[str]:
    """Return what all cores have: Arm chips mix cores, and a thread may run on any of them."""
    return set.intersection(*(set(value.split()) for key, value in fields if key == name))


def _quota(cgroup: Path) -> float | None:
    """Return the cgroup's limit in cores: v2 `cpu.max`, v1 `cpu.cfs_quota_us`."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max": not limited
    return cores if cores > 0 else None  # v1 writes -1 for no limit


class Kernel(Struct, frozen=True):
    """What computes a model's linear layers.

    Attributes
    ----------
    name
        vLLM's name of the code; empty when none runs, or when only the load can tell.
    reason
        How it computes, or why it does not.
    instead
        What works here; empty unless nothing runs.
    """

    name: str
    reason: str
    instead: str = ""


Quantization = str | Mapping[str, Any] | None
"""vLLM's name of a format, or the `quantization_config` of a checkpoint; None: ordinary numbers."""


def kernel(quantization: Quantization, processor: Features) -> Kernel:
    """Return the kernel that will run `quantization` on this processor.

    Only what certainly fails is refused (`Kernel.instead`). It speaks of linear layers; the experts
    of a mixture have kernels of their own.
    """
    if processor.library is None:
        return Kernel("", "nothing is known of this processor")
    if quantization is None:
        return _unquantised(processor)
    config = {"quant_method": quantization} if isinstance(quantization, str) else quantization
    method = _method(config)
    if method in ("awq", "gptq", "auto_gptq", "gptq_marlin"):
        return _int4(processor, _obstacle(method, config))
    if method in ("awq_marlin", "auto_awq"):
        # On a CPU vLLM does not rename awq (auto_awq.py, override_quantization_method), and
        # then finds that the two names differ.
        return Kernel("", "this name of AWQ works on GPUs only", "the name `awq`")
    if method == "compressed-tensors":
        return _compressed_tensors(config, processor)
    if method == "fp8" and "activation_scheme" in config:
        return _fp8("block" if config.get("weight_block_size") else "tensor", processor)
    if method in _FP8_ONLINE:
        return _fp8_online(method, processor)
    if method in _NOT_FOR_CPU:
        return Kernel("", "vLLM has no kernel for it on any CPU", _instead(processor))
    return Kernel("", "only the load can tell")


def _method(config: Mapping[str, Any]) -> str:
    return str(config.get("quant_method", "")).lower().replace("_tensors", "-tensors")


def _unquantised(processor: Features) -> Kernel:
    """Return the kernel for ordinary numbers, `model_executor/layers/utils.py`."""
    if processor.architecture == "aarch64":
        return Kernel("onednn_mm", "oneDNN with Arm Compute Library")
    types = ["float32"]
    types += ["bfloat16"] if processor.has("avx512f") else []
    types += ["float16"] if processor.has("avx512_fp16") else []
    others = "" if len(types) == 3 else "; other types by PyTorch's plain loop"
    return Kernel("onednn_mm", f"oneDNN in {' and '.join(types)}{others}")


_NOT_FOR_CPU = ("humming", "modelopt_fp4", "modelopt_mxfp8", "mxfp8")
"""Their tables of kernels have no entry for CPUs (`model_executor/kernels/linear/__init__.py`)."""


def _instead(processor: Features) -> str:
    """Return what runs well on this processor, best first."""
    if processor.architecture == "aarch64":
        # dynamic_4bit.py; the same scheme in the format pack-quantized goes to the kernel for
        # AVX-512 (compressed_tensors.py, _get_scheme_from_parts).
        return (
            "a compressed-tensors checkpoint with int4 weights and dynamic int8 activations (W4A8) "
            "in the format `int-quantized`, or with int8 for both (W8A8), or an unquantised one"
        )
    if processor.library == "_C_AVX2":
        return (
            "an unquantised checkpoint, or a compressed-tensors one with int8 weights and "
            "activations (W8A8)"
        )
    return (
        "an AWQ or GPTQ checkpoint with 4 bits, or a compressed-tensors one with int8 weights and "
        "activations (W8A8)"
    )


def _obstacle(method: str, config: Mapping[str, Any]) -> str:
    """Return what in an AWQ or GPTQ checkpoint no CPU runs; empty when nothing does."""
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4:
        # marlin_utils.py, _query_cpu_marlin_supported_quant_types; auto_awq.py, TYPE_MAP.
        return f"vLLM runs it with 4 bits on CPUs, not with {bits}"
    if method == "awq":
        return ""
    if config.get("sym") is False:
        return "vLLM reads symmetric GPTQ only"  # auto_gptq.py, TYPE_MAP
    if config.get("desc_act") and config.get("group_size") != -1:
        return "vLLM no longer reads GPTQ with activation ordering (desc_act)"  # gptq_utils.py
    return ""


def _int4(processor: Features, obstacle: str = "") -> Kernel:
    """Return the kernel for int4 weights, `model_executor/kernels/linear/mixed_precision/cpu.py`.

    It says that it can on every CPU, but its operator `cpu_gemm_wna16` is compiled for AVX-512 only
    (`csrc/cpu/torch_bindings.cpp`): elsewhere the engine loads and dies at the first request.
    """
    name = "CPUWNA16LinearKernel"
    if not obstacle and processor.architecture == "aarch64":
        obstacle = f"its kernel {name} is not compiled for Arm"
    if not obstacle and processor.library == "_C_AVX2":
        obstacle = f"its kernel {name} needs AVX-512"
    if obstacle:
        return Kernel("", obstacle, _instead(processor))
    if processor.amx:
        return Kernel(
            name,
            "AMX; in bfloat16 with the activations rounded to int8, unless VLLM_CPU_INT4_W4A8=0",
        )
    return Kernel(name, "AVX-512, with the activations in their own type")


def _compressed_tensors(config: Mapping[str, Any], processor: Features) -> Kernel:
    """Return the kernel of the first group of layers, or of the first that has none."""
    groups = config.get("config_groups")
    found = [
        _scheme(group, str(group.get("format") or config.get("format")), processor)
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    if not found:
        return Kernel("", "only the checkpoint can tell")
    return next((kernel for kernel in found if kernel.instead), found[0])


def _scheme(group: Mapping[str, Any], layout: str, processor: Features) -> Kernel:
    """Follow `compressed_tensors.py`, _get_scheme_from_parts."""
    weights, inputs = group["weights"], group.get("input_activations")
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    if weights.get("type") == "float":
        if bits != 8 or strategy == "group":
            return Kernel("", "vLLM has no kernel for it on any CPU", _instead(processor))
        if not inputs and strategy != "block":
            return Kernel(
                "", "vLLM has no kernel for fp8 weights alone on any CPU", _instead(processor)
            )
        return _fp8(str(strategy), processor)
    if layout == "pack-quantized":
        return _int4(
            processor, "" if bits == 4 else f"vLLM runs it with 4 bits on CPUs, not with {bits}"
        )
    if isinstance(inputs, Mapping) and inputs.get("num_bits") == 8:
        if bits == 8:
            return _w8a8(processor)
        if bits == 4:
            return _w4a8(processor)
    return Kernel("", "only the load can tell")


def _w8a8(processor: Features) -> Kernel:
    """Return the kernel for int8 weights and activations, `scaled_mm/cpu.py`."""
    name = "CPUInt8ScaledMMLinearKernel"
    if processor.architecture == "aarch64":
        return Kernel(name, "oneDNN with Arm Compute Library")
    if processor.amx:
        return Kernel(name, "SGLang's kernel on AMX")
    if processor.has("avx512_vnni") or processor.has("avx_vnni"):
        return Kernel(name, "oneDNN with VNNI")
    # Without VNNI oneDNN adds pairs of products in 16 bits, and large ones overflow: measured.
    return Kernel(name, "oneDNN without VNNI, which loses up to as much again as the rounding did")


def _w4a8(processor: Features) -> Kernel:
    """Return the kernel for int4 weights and dynamic int8 activations, `dynamic_4bit.py`."""
    how = (
        "PyTorch with KleidiAI"
        if processor.architecture == "aarch64"
        else "PyTorch's plain loop: correct, and slow"
    )
    return Kernel("Dynamic4bitLinearKernel", how)


def _fp8(strategy: str, processor: Features) -> Kernel:
    """Return the kernel for 8-bit floating point, `scaled_mm/cpu.py` and `scaled_mm/pytorch.py`."""
    if strategy == "block":
        if processor.amx:
            return Kernel("CPUFp8BlockScaledMMKernel", "AMX, with the activations in bfloat16")
        reason = "its kernel CPUFp8BlockScaledMMKernel needs AMX"
        return Kernel("", reason, _instead(processor))
    if strategy == "channel":
        return Kernel("ChannelWiseTorchFP8ScaledMMLinearKernel", "PyTorch")
    # q, k and v stored apart have to be rounded again to one scale, by an operator that CPUs lack
    # (w8a8_utils.py, requantize_with_max_scale): only checkpoints that store them as one load.
    name = "CPUFp8PerTensor" if processor.amx else "PerTensorTorchFP8"
    return Kernel(f"{name}ScaledMMLinearKernel", "loads only if q, k and v are stored as one")


def _packed(bits: int, inputs: int | None, layout: str) -> Mapping[str, Any]:
    """Return what a compressed-tensors checkpoint with integer weights declares."""
    group = {
        "weights": {"type": "int", "num_bits": bits},
        "input_activations": {"type": "int", "num_bits": inputs} if inputs else None,
    }
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"all": group}}


FORMATS: Mapping[str, Quantization] = {
    "unquantised": None,
    "awq": "awq",
    "gptq": "gptq",
    "compressed-tensors W4A16": _packed(4, None, "pack-quantized"),
    "compressed-tensors W4A8": _packed(4, 8, "int-quantized"),
    "compressed-tensors W8A8": _packed(8, 8, "int-quantized"),
    "fp8 per channel": "fp8_per_channel",
    "fp8 per block": "fp8_per_block",
}
"""The formats that people ask for, by a name for people."""


def kernels(processor: Features) -> dict[str, Kernel]:
    """Return the kernel of each of `FORMATS` on this processor."""
    return {name: kernel(quantization, processor) for name, quantization in FORMATS.items()}


_FP8_ONLINE = ("fp8_per_tensor", "fp8_per_block", "fp8_per_channel")
"""Names by which vLLM makes an unquantised checkpoint fp8 while it loads it."""


def _fp8_online(method: str, processor: Features) -> Kernel:
    if method == "fp8_per_tensor":
        # It rounds by static_scaled_fp8_quant, which is an empty entry in the CPU libraries.
        return Kernel("", "it needs an operator that no CPU build has", "`fp8_per_channel`")
    found = _fp8(method.removeprefix("fp8_per_"), processor)
    return Kernel(found.name, found.reason, "`fp8_per_channel`" if found.instead else "")


def unsupported(names: frozenset[str], processor: Features) -> dict[str, str]:
    """Return those of vLLM's `names` of formats that this processor cannot run, and why."""
    found = {name: kernel(name, processor) for name in sorted(names)}
    return {name: _refusal(name, it, processor) for name, it in found.items() if it.instead}


def _refusal(name: str, found: Kernel, processor: Features) -> str:
    return (
        f"`{name}` does not run on this CPU ({processor}): {found.reason}; use {found.instead} "
        "(docs/cpu.md)"
    )


_TAKE_FLOAT32 = ("compressed-tensors", "torchao")
"""All other methods compute in 16 bits only (get_supported_act_dtypes of each)."""

_NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Model types that overflow in float16 (`config/model.py`, _FLOAT16_NOT_SUPPORTED_MODELS)."""


def choose_dtype(
    declared: str | None, quantization: str | None, processor: Features, model_type: str = ""
) -> tuple[str, str]:
    """Return the fastest correct type for a checkpoint, by vLLM's name, and why it is that.

    Never a wider one than the checkpoint's: what a model takes in memory is known from its files.

    Parameters
    ----------
    declared
        The type that the checkpoint declares; None when it does not, and then the answer may be
        `auto`: vLLM looks at the tensors.
    quantization
        vLLM's name of the weight format; None for ordinary numbers.
    processor
        The processor.
    model_type
        The architecture's name in `config.json`.
    """
    if by := processor.bfloat16:
        # Every method of vLLM's takes bfloat16 (get_supported_act_dtypes of each). oneDNN has a
        # kernel for float16 only where there is AVX512-FP16; without it PyTorch's loop computes.
        return "bfloat16", f"this CPU computes in bfloat16 ({by})"
    if declared is None:
        return "auto", "the checkpoint declares none; vLLM looks at its tensors"
    if declared == "float16" and model_type in _NOT_IN_FLOAT16:
        return "bfloat16", f"{model_type} overflows in float16"
    if declared == "float32" and quantization is not None and quantization not in _TAKE_FLOAT32:
        return "bfloat16", f"{quantization} runs in 16 bits only"
    return declared, "the checkpoint declares it, and this CPU has no instructions for bfloat16"


class Declared(Struct, frozen=True, kw_only=True):
    """What a checkpoint says about its numbers.

    Attributes
    ----------
    dtype
        `float16`, `bfloat16` or `float32`; None when it does not say one of these.
    quantization
        Its `quantization_config`; None when it has none.
    model_type
        The architecture's name; empty when it does not say.
    """

    dtype: str | None = None
    quantization: Mapping[str, Any] | None = None
    model_type: str = ""

    @property
    def method(self) -> str | None:
        """The name of its weight format."""
        return _method(self.quantization) if self.quantization else None


def declared(directory: Path) -> Declared:
    """Return what `directory/config.json` declares; nothing where it cannot be read."""
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        text = config.get("text_config") or {}  # of multimodal checkpoints
        named = (part.get(key) for part in (config, text) for key in ("dtype", "torch_dtype"))
        dtype = str(next(filter(None, named), "")).removeprefix("torch.")
        formats = (
            part.get(key)
            for part in (config, text)
            for key in ("quantization_config", "compression_config")
        )
        return Declared(
            dtype=dtype if dtype in ("float16", "bfloat16", "float32") else None,
            quantization=next((it for it in formats if isinstance(it, dict) and it), None),
            model_type=str(config.get("model_type") or ""),
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return Declared()


def resolve_dtype(
    model: ModelSettings, directory: Path, processor: Features | None = None
) -> tuple[str, str | None]:
    """Return vLLM's `dtype` for a model, and a line for the operator if `auto` changed the type."""
    if model.dtype != "auto":
        return model.dtype, None
    found = declared(directory)
    method = found.method or model.quantization
    dtype, reason = choose_dtype(found.dtype, method, processor or features(), found.model_type)
    if dtype in ("auto", found.dtype):
        return dtype, None
    if found.dtype is None:
        return dtype, f"dtype auto: {dtype}; the checkpoint declares none, and {reason}"
    return dtype, f"dtype auto: {dtype} instead of the declared {found.dtype}: {reason}"


def objection(
    model: ModelSettings, directory: Path, processor: Features | None = None
) -> str | None:
    """Return why this processor cannot run the model in `directory`, and what works; None: it can.

    Never raises; a checkpoint that says nothing is not objected to.
    """
    if model.engine != "vllm":
        return None
    found = declared(directory)
    method = found.method or model.quantization
    if method is None:
        return None
    processor = processor or features()
    computing = kernel(found.quantization or model.quantization, processor)
    if computing.instead:
        return _refusal(method, computing, processor)
    if model.dtype == "float32" and method not in _TAKE_FLOAT32:
        return f"`{method}` runs in 16 bits only, not in `dtype: float32`; use `dtype: auto`"
    return None
