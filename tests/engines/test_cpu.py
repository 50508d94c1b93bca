"""What a processor offers, what runs on it, and what is refused: tables over made-up machines."""

import ast
import importlib.util
import json
import os
import re
from pathlib import Path

import msgspec
import pytest

from config import ModelSettings
from engines import cpu
from engines.vocabulary import vocabulary
from router.cli import main
from tests.conftest import ROOT

AVX512 = "avx2 avx512f avx512bw avx512dq avx512vl"


def intel(name, flags):
    core = "vendor_id\t: GenuineIntel\nmodel name\t: {}\nflags\t\t: fpu sse4_2 {}\nbugs\t\t:\n"
    return "\n".join(f"processor\t: {n}\n" + core.format(name, flags) for n in range(2))


def arm(part, features, implementer="0x41"):
    core = (
        f"Features\t: fp {features} crc32\nCPU implementer\t: {implementer}\nCPU part\t: {part}\n"
    )
    return "\n".join(f"processor\t: {n}\nBogoMIPS\t: 50.00\n{core}" for n in range(2))


SERVER = "asimd asimdhp asimddp sve bf16 i8mm"
MACHINES = {
    "laptop": intel("Core i7-6700HQ", "avx2"),
    "new laptop": intel("Core Ultra 7", "avx2 avx_vnni"),
    "skylake": intel("Xeon Platinum 8175M", AVX512),
    "icelake": intel("Xeon Platinum 8375C", f"{AVX512} avx512_vnni"),
    "zen4": intel("EPYC 9R14", f"{AVX512} avx512_vnni avx512_bf16"),
    "sapphire": intel(
        "Xeon Platinum 8488C",
        f"{AVX512} avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16",
    ),
    "graviton2": arm("0xd0c", "asimd asimdhp asimddp"),
    "graviton3": arm("0xd40", SERVER),
    "axion": arm("0xd4f", f"{SERVER} sve2"),
    "power": "cpu\t\t: POWER10, altivec supported\n",
    "silent": "",
}


def machine(name):
    return cpu.features(MACHINES[name], cgroup=Path("/nonexistent"))


ON_X86 = ("laptop", "skylake", "icelake", "zen4", "sapphire")


# What is read from /proc/cpuinfo.


@pytest.mark.parametrize(
    ("name", "architecture", "model", "instructions"),
    [
        ("laptop", "x86_64", "Core i7-6700HQ", "avx2"),
        (
            "sapphire",
            "x86_64",
            "Xeon Platinum 8488C",
            f"{AVX512} avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16",
        ),
        ("graviton2", "aarch64", "Neoverse-N1", "neon fp16 dotprod"),
        ("graviton3", "aarch64", "Neoverse-V1", "neon fp16 dotprod bf16 i8mm sve"),
        ("axion", "aarch64", "Neoverse-V2", "neon fp16 dotprod bf16 i8mm sve sve2"),
    ],
)
def test_instruction_sets_have_the_field_s_names(name, architecture, model, instructions):
    found = machine(name)

    assert (found.architecture, found.model) == (architecture, model)
    assert found.instructions == tuple(instructions.split())


@pytest.mark.parametrize("name", ["power", "silent"])
def test_of_a_processor_that_linux_says_little_about_nothing_is_assumed(name):
    found = machine(name)

    assert found.architecture == os.uname().machine
    assert (found.model, found.instructions, found.library) == ("", (), None)


def test_an_arm_core_that_is_not_in_the_table_has_no_name():
    assert cpu.features(arm("0x001", "asimd", implementer="0x46")).model == ""


def test_only_what_every_core_has_counts():
    mixed = arm("0xd0b", "asimd asimddp") + arm("0xd08", "asimd")

    assert cpu.features(mixed).instructions == ("neon",)


def test_cores_are_those_that_this_process_may_use():
    assert cpu.features().cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({}, None),
    ],
)
def test_the_cgroup_s_limit_is_read_in_cores(tmp_path, files, quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert cpu.features("", cgroup=tmp_path).quota == quota


def test_features_can_be_shown_as_json_and_said_in_a_sentence():
    found = machine("axion")

    shown = msgspec.to_builtins(found)
    assert shown["architecture"] == "aarch64"
    assert "bf16" in shown["instructions"]
    assert str(found) == "aarch64, Neoverse-V2"
    assert str(machine("silent")) == os.uname().machine


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("laptop", "_C_AVX2"),
        ("skylake", "_C_AVX512"),
        ("icelake", "_C_AVX512"),
        ("zen4", "_C"),
        ("sapphire", "_C"),
        ("graviton2", "_C"),
    ],
)
def test_vllm_loads_the_library_for_the_processor(name, library):
    assert machine(name).library == library


# Which kernel runs.


def packed(bits, inputs, layout, **weights):
    weights = {"type": "int", "num_bits": bits, **weights}
    group = {
        "weights": weights,
        "input_activations": {"num_bits": inputs, "type": weights["type"]} if inputs else None,
    }
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"g": group}}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
W4A16 = packed(4, None, "pack-quantized")
W8A16 = packed(8, None, "pack-quantized")
W4A8 = packed(4, 8, "int-quantized")
W8A8 = packed(8, 8, "int-quantized")
FP8_CHANNEL = packed(8, 8, "float-quantized", type="float", strategy="channel")
FP8_BLOCK = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
FP8_TENSOR = {"quant_method": "fp8", "activation_scheme": "static"}

INT4 = "CPUWNA16LinearKernel"
INT8 = "CPUInt8ScaledMMLinearKernel"


@pytest.mark.parametrize(
    ("quantization", "name", "expected", "how"),
    [
        (None, "laptop", "onednn_mm", "oneDNN in float32; other types by PyTorch's plain loop"),
        (None, "skylake", "onednn_mm", "float32 and bfloat16; other types by PyTorch"),
        (None, "sapphire", "onednn_mm", "oneDNN in float32 and bfloat16 and float16"),
        (None, "axion", "onednn_mm", "oneDNN with Arm Compute Library"),
        ("awq", "skylake", INT4, "AVX-512"),
        (AWQ, "zen4", INT4, "AVX-512"),
        (AWQ, "sapphire", INT4, "AMX; in bfloat16 with the activations rounded to int8"),
        ({"quant_method": "awq", "w_bit": 4}, "zen4", INT4, "AVX-512"),
        (GPTQ, "icelake", INT4, "AVX-512"),
        ({**GPTQ, "desc_act": True, "group_size": -1}, "zen4", INT4, "AVX-512"),
        (W4A16, "zen4", INT4, "AVX-512"),
        (packed(4, 8, "pack-quantized"), "zen4", INT4, "AVX-512"),
        (W8A8, "laptop", INT8, "without VNNI"),
        (W8A8, "new laptop", INT8, "oneDNN with VNNI"),
        (W8A8, "skylake", INT8, "without VNNI"),
        (W8A8, "icelake", INT8, "oneDNN with VNNI"),
        (W8A8, "sapphire", INT8, "SGLang's kernel on AMX"),
        (W8A8, "graviton2", INT8, "Arm Compute Library"),
        (W4A8, "zen4", "Dynamic4bitLinearKernel", "slow"),
        (W4A8, "axion", "Dynamic4bitLinearKernel", "KleidiAI"),
        ({**W4A8, "quant_method": "compressed_tensors"}, "axion", "Dynamic4bitLinearKernel", ""),
        (FP8_CHANNEL, "laptop", "ChannelWiseTorchFP8ScaledMMLinearKernel", "PyTorch"),
        ("fp8_per_channel", "axion", "ChannelWiseTorchFP8ScaledMMLinearKernel", "PyTorch"),
        (FP8_BLOCK, "sapphire", "CPUFp8BlockScaledMMKernel", "AMX"),
        ("fp8_per_block", "sapphire", "CPUFp8BlockScaledMMKernel", "AMX"),
        (FP8_TENSOR, "zen4", "PerTensorTorchFP8ScaledMMLinearKernel", "stored as one"),
        (FP8_TENSOR, "sapphire", "CPUFp8PerTensorScaledMMLinearKernel", "stored as one"),
    ],
)
def test_the_kernel_that_runs(quantization, name, expected, how):
    found = cpu.kernel(quantization, machine(name))

    assert (found.name, found.instead) == (expected, "")
    assert how in found.reason


NOT_FOR_ARM = f"its kernel {INT4} is not compiled for Arm"
NEEDS_AVX512 = f"its kernel {INT4} needs AVX-512"
NEEDS_AMX = "its kernel CPUFp8BlockScaledMMKernel needs AMX"
NOWHERE = "vLLM has no kernel for it on any CPU"
ON_ARM = "int4 weights and dynamic int8 activations (W4A8) in the format `int-quantized`"
ON_AVX2 = "an unquantised checkpoint, or a compressed-tensors one with int8"
ON_AVX512 = "an AWQ or GPTQ checkpoint with 4 bits"


@pytest.mark.parametrize(
    ("quantization", "name", "reason", "instead"),
    [
        ("awq", "graviton2", NOT_FOR_ARM, ON_ARM),
        (AWQ, "axion", NOT_FOR_ARM, ON_ARM),
        (AWQ, "laptop", NEEDS_AVX512, ON_AVX2),
        (GPTQ, "laptop", NEEDS_AVX512, ON_AVX2),
        ("gptq_marlin", "axion", NOT_FOR_ARM, ON_ARM),
        (W4A16, "axion", NOT_FOR_ARM, ON_ARM),
        # The same numbers in this format go to the kernel that Arm lacks.
        (packed(4, 8, "pack-quantized"), "axion", NOT_FOR_ARM, ON_ARM),
        (W8A16, "zen4", "vLLM runs it with 4 bits on CPUs, not with 8", ON_AVX512),
        ({**AWQ, "bits": 8}, "zen4", "vLLM runs it with 4 bits on CPUs, not with 8", ON_AVX512),
        ({**GPTQ, "bits": 8}, "axion", "vLLM runs it with 4 bits on CPUs, not with 8", ON_ARM),
        ({**GPTQ, "sym": False}, "zen4", "vLLM reads symmetric GPTQ only", ON_AVX512),
        ({**GPTQ, "desc_act": True}, "zen4", "activation ordering (desc_act)", ON_AVX512),
        ("awq_marlin", "zen4", "this name of AWQ works on GPUs only", "the name `awq`"),
        (FP8_BLOCK, "zen4", NEEDS_AMX, ON_AVX512),
        (FP8_BLOCK, "axion", NEEDS_AMX, ON_ARM),
        (packed(8, None, "float-quantized", type="float", strategy="block"), "zen4", NEEDS_AMX, ""),
        ("fp8_per_block", "zen4", NEEDS_AMX, "`fp8_per_channel`"),
        ("fp8_per_tensor", "sapphire", "an operator that no CPU build has", "`fp8_per_channel`"),
        (
            packed(8, None, "float-quantized", type="float", strategy="channel"),
            "sapphire",
            "vLLM has no kernel for fp8 weights alone on any CPU",
            ON_AVX512,
        ),
        (packed(4, 4, "nvfp4-pack-quantized", type="float"), "sapphire", NOWHERE, ON_AVX512),
        (packed(8, 8, "x", type="float", strategy="group"), "sapphire", NOWHERE, ON_AVX512),
        ("mxfp8", "sapphire", NOWHERE, ON_AVX512),
        ("modelopt_fp4", "axion", NOWHERE, ON_ARM),
    ],
)
def test_what_nothing_runs_is_refused_with_what_works(quantization, name, reason, instead):
    found = cpu.kernel(quantization, machine(name))

    assert found.name == ""
    assert reason in found.reason
    assert instead in found.instead
    assert found.instead


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ("compressed-tensors", "axion"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "axion"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 1}}, "axion"),
        (packed(2, 8, "int-quantized"), "axion"),
        (packed(4, None, "marlin-24"), "axion"),
        ("fp8", "laptop"),
        ("quark", "laptop"),
        ({}, "laptop"),
        # The experts of mixtures have kernels of their own.
        ("mxfp4", "laptop"),
        ("experts_int8", "laptop"),
        ("awq", "silent"),
        ("awq", "power"),
    ],
)
def test_what_only_the_load_can_tell_is_not_refused(quantization, name):
    found = cpu.kernel(quantization, machine(name))

    assert (found.name, found.instead) == ("", "")


def test_one_group_of_layers_without_a_kernel_is_enough():
    packed_group = {**W4A16["config_groups"]["g"], "format": "pack-quantized"}
    mixed = {**W8A8, "config_groups": {"a": W8A8["config_groups"]["g"], "b": packed_group}}

    assert NOT_FOR_ARM in cpu.kernel(mixed, machine("axion")).reason
    assert cpu.kernel(mixed, machine("zen4")).name == INT8


@pytest.mark.parametrize("name", [*ON_X86, "graviton2", "axion"])
def test_what_is_advised_instead_runs_there(name):
    here = machine(name)
    advice = cpu.kernel(W8A16, here).instead

    advised = {"W8A8": W8A8, "W4A8": W4A8, "AWQ": "awq", "GPTQ": "gptq", "unquantised": None}
    named = [quantization for word, quantization in advised.items() if word in advice]
    assert len(named) >= 2
    assert all(cpu.kernel(quantization, here).name for quantization in named)


def test_the_list_of_kernels_has_every_format():
    on_arm = cpu.kernels(machine("axion"))

    assert list(on_arm) == list(cpu.FORMATS)
    assert [name for name, kernel in on_arm.items() if kernel.instead] == [
        "awq",
        "gptq",
        "compressed-tensors W4A16",
        "fp8 per block",
    ]


def test_vllm_s_names_are_refused_where_nothing_runs_them():
    names = frozenset({"awq", "gptq", "fp8", "compressed-tensors", "mxfp8"})

    assert set(cpu.unsupported(names, machine("zen4"))) == {"mxfp8"}
    assert set(cpu.unsupported(names, machine("laptop"))) == {"awq", "gptq", "mxfp8"}
    assert cpu.unsupported(frozenset({"awq"}), machine("axion"))["awq"] == (
        "`awq` does not run on this CPU (aarch64, Neoverse-V2): its kernel CPUWNA16LinearKernel is "
        "not compiled for Arm; use a compressed-tensors checkpoint with int4 weights and dynamic "
        "int8 activations (W4A8) in the format `int-quantized`, or with int8 for both (W8A8), or "
        "an unquantised one (docs/cpu.md)"
    )


# Which type `auto` takes.


@pytest.mark.parametrize(
    ("name", "declared", "quantization", "dtype", "reason"),
    [
        # Where the CPU computes in bfloat16, everything runs in it.
        ("zen4", "float16", "awq", "bfloat16", "this CPU computes in bfloat16 (avx512_bf16)"),
        ("sapphire", "float16", "awq", "bfloat16", "this CPU computes in bfloat16 (amx_bf16)"),
        ("axion", "float16", None, "bfloat16", "this CPU computes in bfloat16 (bf16)"),
        ("axion", "float32", None, "bfloat16", "this CPU computes in bfloat16 (bf16)"),
        ("zen4", "bfloat16", None, "bfloat16", "this CPU computes in bfloat16 (avx512_bf16)"),
        ("zen4", None, None, "bfloat16", "this CPU computes in bfloat16 (avx512_bf16)"),
        # Where it does not, converting would lose bits and gain nothing.
        ("skylake", "float16", "awq", "float16", "no instructions for bfloat16"),
        ("laptop", "float16", None, "float16", "no instructions for bfloat16"),
        ("laptop", "bfloat16", None, "bfloat16", "no instructions for bfloat16"),
        ("laptop", "float32", None, "float32", "no instructions for bfloat16"),
        ("graviton2", "float32", "compressed-tensors", "float32", "no instructions"),
        # Unless the format or the model cannot.
        ("skylake", "float32", "gptq", "bfloat16", "gptq runs in 16 bits only"),
        ("laptop", None, None, "auto", "the checkpoint declares none"),
    ],
)
def test_the_type_that_auto_takes(name, declared, quantization, dtype, reason):
    chosen, why = cpu.choose_dtype(declared, quantization, machine(name))

    assert chosen == dtype
    assert reason in why


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [("gemma3", "bfloat16"), ("gemma3_text", "bfloat16"), ("llama", "float16")],
)
def test_a_model_that_overflows_in_float16_does_not_get_it(model_type, dtype):
    assert cpu.choose_dtype("float16", None, machine("laptop"), model_type)[0] == dtype


# What a checkpoint declares.


def checkpoint(directory, **config):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("config", "dtype", "method", "model_type"),
    [
        ({"torch_dtype": "float16", "model_type": "llama"}, "float16", None, "llama"),
        ({"dtype": "torch.bfloat16"}, "bfloat16", None, ""),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "bfloat16", None, ""),
        ({"dtype": "float8_e4m3fn"}, None, None, ""),
        ({"quantization_config": {"quant_method": "AWQ"}}, None, "awq", ""),
        ({"quantization_config": {}}, None, None, ""),
        ({"quantization_config": "awq"}, None, None, ""),
        (
            {"compression_config": {"quant_method": "compressed_tensors"}},
            None,
            "compressed-tensors",
            "",
        ),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, None, "gptq", ""),
        ({"text_config": 5}, None, None, ""),
        ({}, None, None, ""),
    ],
)
def test_a_checkpoint_s_type_and_format_are_read(tmp_path, config, dtype, method, model_type):
    found = cpu.declared(checkpoint(tmp_path, **config))

    assert (found.dtype, found.method, found.model_type) == (dtype, method, model_type)


@pytest.mark.parametrize("text", ["[]", "{", None])
def test_a_checkpoint_that_cannot_be_read_declares_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    assert cpu.declared(tmp_path) == cpu.Declared()


def settings(**changes):
    return ModelSettings(name="m", source="./m", **changes)


def test_auto_says_so_when_it_takes_another_type_than_the_declared(tmp_path):
    directory = checkpoint(tmp_path, torch_dtype="float16", quantization_config=AWQ)

    assert cpu.resolve_dtype(settings(), directory, machine("zen4")) == (
        "bfloat16",
        "dtype auto: bfloat16 instead of the declared float16: this CPU computes in bfloat16 "
        "(avx512_bf16)",
    )
    assert cpu.resolve_dtype(settings(), directory, machine("skylake")) == ("float16", None)


def test_a_type_that_the_operator_wrote_stays(tmp_path):
    directory = checkpoint(tmp_path, torch_dtype="bfloat16")

    assert cpu.resolve_dtype(settings(dtype="float32"), directory, machine("zen4")) == (
        "float32",
        None,
    )


def test_a_checkpoint_that_declares_no_type_gets_bfloat16_or_what_vllm_finds(tmp_path):
    directory = checkpoint(tmp_path)

    dtype, line = cpu.resolve_dtype(settings(), directory, machine("axion"))
    assert dtype == "bfloat16"
    assert line.startswith("dtype auto: bfloat16; the checkpoint declares none, and this CPU")
    assert cpu.resolve_dtype(settings(), directory, machine("laptop")) == ("auto", None)


# What is objected to.


@pytest.mark.parametrize(
    ("config", "changes", "name", "expected"),
    [
        ({"quantization_config": AWQ}, {}, "axion", "`awq` does not run on this CPU (aarch64, Neo"),
        (
            {"quantization_config": AWQ},
            {},
            "laptop",
            "`awq` does not run on this CPU (x86_64, Core",
        ),
        ({"quantization_config": AWQ}, {}, "zen4", None),
        ({"quantization_config": AWQ}, {"engine": "echo"}, "axion", None),
        ({}, {}, "axion", None),
        ({}, {"quantization": "fp8_per_tensor"}, "zen4", "`fp8_per_tensor` does not run"),
        # The name alone does not say; the checkpoint does.
        ({"quantization_config": W4A16}, {"quantization": "compressed-tensors"}, "axion", INT4),
        ({"quantization_config": W4A8}, {"quantization": "compressed-tensors"}, "axion", None),
        (
            {"quantization_config": AWQ},
            {"dtype": "float32"},
            "zen4",
            "`awq` runs in 16 bits only, not in `dtype: float32`; use `dtype: auto`",
        ),
        ({"quantization_config": W8A8}, {"dtype": "float32"}, "zen4", None),
        ({}, {"dtype": "float32"}, "zen4", None),
    ],
)
def test_what_is_objected_to(tmp_path, config, changes, name, expected):
    said = cpu.objection(settings(**changes), checkpoint(tmp_path, **config), machine(name))

    assert (said is None) if expected is None else expected in said


@pytest.fixture
def on_arm(monkeypatch):
    here = machine("axion")
    monkeypatch.setattr(cpu, "features", lambda: here)
    vocabulary.cache_clear()
    yield
    vocabulary.cache_clear()


def test_check_refuses_a_format_by_its_name_in_the_file(tmp_path, capsys, on_arm):
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models:\n  - {name: a, source: ./later, quantization: awq}\nrouting: {default: a}\n"
    )

    assert main(["check", str(path)]) == 1

    said = capsys.readouterr().err
    assert "  line 2: models[0].quantization: `awq` does not run on this CPU (aarch64, Neo" in said


def test_check_refuses_what_the_checkpoint_on_disk_declares(tmp_path, capsys, on_arm):
    checkpoint(tmp_path / "model", quantization_config=AWQ)
    path = tmp_path / "axion.yaml"
    path.write_text("models: [{name: a, source: ./model}]\nrouting: {default: a}\n")

    assert main(["check", str(path)]) == 1

    said = capsys.readouterr().err
    assert said.startswith(
        f"{path} has 1 problem:\n  models[0].source: `awq` does not run on this CPU (aarch64, "
        "Neoverse-V2): its kernel CPUWNA16LinearKernel is not compiled for Arm; use a compressed-"
    )


def test_check_accepts_what_runs_and_what_is_not_on_disk(tmp_path, capsys, on_arm):
    checkpoint(tmp_path / "model", quantization_config=W8A8)
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models:\n  - {name: a, source: ./model}\n  - {name: b, source: ./later}\n"
        "  - {name: c, source: own/er/s, engine: echo}\nrouting: {default: a}\n"
    )

    assert main(["check", str(path)]) == 0


def test_check_refuses_a_source_that_cannot_be_a_hub_id(tmp_path, capsys):
    path = tmp_path / "axion.yaml"
    path.write_text("models: [{name: a, source: a/b/c}]\nrouting: {default: a}\n")

    assert main(["check", str(path)]) == 1

    assert (
        "  line 1: models[0].source: is not a hub id (owner/name), and" in capsys.readouterr().err
    )


# The installed vLLM is the one that these tables were read from.


def vllm_source():
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return Path(spec.origin).parent / "model_executor"


def test_vllm_has_every_kernel_that_is_named():
    named = {
        cpu.kernel(quantization, machine(name)).name
        for name in (*ON_X86, "axion")
        for quantization in [*cpu.FORMATS.values(), FP8_TENSOR]
    } - {""}
    kernels = vllm_source() / "kernels" / "linear"
    known = {
        node.name
        for path in kernels.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }

    assert named - {"onednn_mm"} <= known
    assert "ops.onednn_mm(" in (vllm_source() / "layers" / "utils.py").read_text()


def test_the_formats_that_take_float32_are_those_in_vllm_s_source():
    taking = {
        path.stem.replace("_", "-")
        for path in (vllm_source() / "layers" / "quantization").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_act_dtypes"
        if "torch.float32" in ast.unparse(node)
    }

    assert taking == set(cpu._TAKE_FLOAT32)


def test_the_models_that_overflow_in_float16_are_those_in_vllm_s_source():
    text = (vllm_source().parent / "config" / "model.py").read_text()
    table = re.search(r"_FLOAT16_NOT_SUPPORTED_MODELS = \{(.*?)\}", text, re.DOTALL)[1]

    assert tuple(re.findall(r'"(\w+)":', table)) == cpu._NOT_IN_FLOAT16


def test_the_page_has_every_kernel_and_every_instruction_set():
    page = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8")
    named = {
        kernel.name for name in (*ON_X86, "axion") for kernel in cpu.kernels(machine(name)).values()
    }

    for word in {*named, *cpu._X86, *cpu._ARM.values()} - {""}:
        assert f"`{word}`" in page
