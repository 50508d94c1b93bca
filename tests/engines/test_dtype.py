"""The type that `auto` takes loses next to nothing, and vLLM is what the tables say: measured."""

import json
import logging
from statistics import fmean

import pytest

from config import ModelSettings
from engines import cpu, quickstart
from engines.protocol import EngineFailed
from tests.checkpoints import awq_twin

pytestmark = pytest.mark.real

PROMPTS = [
    "The capital of France is Paris, and the river that runs through it is called the Seine.",
    "Water boils at one hundred degrees at sea level; on a mountain it boils earlier, because",
    "def reverse(text):\n    return text[::-1]\n\n\ndef is_palindrome(text):\n    return text ==",
    "La fotosíntesis es el proceso por el cual las plantas convierten la luz del sol en energía.",
    "Q: A train travels 120 km in two hours. How fast is it?\nA: Its speed is 120 divided by",
    "Dear Ms Jones,\n\nthank you for your letter of the third of May. We are sorry that your",
    "SELECT name, count(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY count(*)",
    "Once upon a time there was a small fox who lived at the edge of a dark forest, and every",
]


class Run:
    """What a model says of the prompts: at each of their tokens, and as the next one."""

    def __init__(self, reply):
        choices = json.loads(reply.body)["choices"]
        self.logprobs = []  # of the prompts' own tokens
        self.best = []  # the most likely token at each place, and its log-probability
        self.next = []
        for choice in choices:
            found = choice["logprobs"]
            *_, last = found["tokens"]
            self.next.append(last)
            self.logprobs += found["token_logprobs"][1:-1]  # nothing precedes the first
            self.best += [
                max(place.items(), key=lambda item: item[1])
                for place in found["top_logprobs"][1:-1]
            ]


@pytest.fixture(scope="module")
async def run(quickstart_loader):
    """Return a function that runs a checkpoint in a type and returns what it says."""

    async def run(directory, dtype):
        model = ModelSettings(
            name="tested",
            source="./tested",
            dtype=dtype,
            max_model_len=512,
            kv_cache_gb=0.1,
            enforce_eager=True,
            threads=1,  # on a busy machine two threads wait for each other
        )
        engine = await quickstart_loader.start(model, directory)
        try:
            body = {"prompt": PROMPTS, "max_tokens": 1, "temperature": 0}
            body |= {"model": "tested", "echo": True, "logprobs": 1}
            return Run(await engine.generate("completions", json.dumps(body).encode(), dtype))
        finally:
            await engine.close()

    return run


def difference(one, other):
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))


async def test_int4_weights_say_the_same_in_the_type_that_auto_takes(run, tmp_path, caplog):
    """The type costs an order of magnitude less than the int4 weights themselves."""
    processor = cpu.features()
    if not processor.bfloat16 or not cpu.kernel("awq", processor).name:
        pytest.skip(f"on this CPU ({processor}) auto keeps the declared type, or AWQ does not run")
    plain = quickstart.cached()
    twin = awq_twin(plain, tmp_path / "awq")

    declared = await run(twin, "float16")
    with caplog.at_level(logging.INFO, "axion.vllm"):
        auto = await run(twin, "auto")
    unquantised = await run(plain, "auto")

    assert [record.getMessage() for record in caplog.records if record.name == "axion.vllm"] == [
        "tested: dtype auto: bfloat16 instead of the declared float16: this CPU computes in "
        f"bfloat16 ({processor.bfloat16})"
    ]
    # In nats, of each token of the prompts; measured on AVX512-BF16: 0.056, 0.769, 0.002, 0.036.
    by_type = difference(declared.logprobs, auto.logprobs)
    by_weights = difference(declared.logprobs, unquantised.logprobs)
    worse = fmean(declared.logprobs) - fmean(auto.logprobs)
    of_the_best = difference([p for _, p in declared.best], [p for _, p in auto.best])
    # On AMX the activations are rounded to int8 too; that alone costs a quarter of the weights'.
    share = 1 / 2 if processor.amx else 1 / 5
    assert 0.1 < by_weights < 1.5  # the twin is a quantised model, and not noise
    assert 0 < by_type < share * by_weights
    assert of_the_best < share * by_weights
    assert worse < 0.05
    assert sum(a == b for a, b in zip(declared.next, auto.next, strict=True)) >= 6  # 8 of 8


async def test_what_the_cpu_cannot_run_is_refused_before_anything_starts(quickstart_loader):
    model = ModelSettings(name="tested", source="./tested", quantization="fp8_per_tensor")

    with pytest.raises(EngineFailed, match=r"`fp8_per_tensor` does not run on this CPU .* use"):
        await quickstart_loader.start(model, quickstart.cached())


def test_vllm_s_library_has_what_the_table_says(quickstart_loader):
    import torch
    import vllm._custom_ops  # noqa: F401 - loads it

    processor = cpu.features()

    assert hasattr(torch.ops._C, "onednn_mm")
    assert hasattr(torch.ops._C, "cpu_gemm_wna16") == bool(cpu.kernel("awq", processor).name)
    if processor.architecture == "x86_64":
        assert (processor.library != "_C_AVX2") == torch.cpu._is_avx512_supported()
        assert (processor.library == "_C") == torch.cpu._is_avx512_bf16_supported()
        assert processor.amx == torch.cpu._is_amx_tile_supported()
