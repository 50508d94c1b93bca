"""How large a KV cache vLLM needs. What is expected was said or done by vLLM 0.32 itself."""

import pytest

from config import ModelSettings
from engines.checkpoint import Attention
from engines.kv_cache import KvCache, kv_cache
from engines.memory import GIB

LLAMA = Attention(full_layers=16, kv_heads=4, head_dim=128)
GEMMA_1B = Attention(full_layers=4, window_layers=22, window=512, kv_heads=1, head_dim=256)
GEMMA_27B = Attention(full_layers=10, window_layers=52, window=1024, kv_heads=16, head_dim=128)
MISTRAL = Attention(full_layers=0, window_layers=4, window=1024, kv_heads=2, head_dim=64)


def layout(attention, number_bytes=2, **settings) -> KvCache:
    model = ModelSettings(name="a", source="./a", **settings)
    return kv_cache(model, attention, number_bytes)


@pytest.mark.parametrize(
    ("attention", "settings", "context", "block_bytes", "blocks"),
    [
        pytest.param(LLAMA, {}, 2048, 4 * 2**20, 16, id="every layer remembers everything"),
        pytest.param(LLAMA, {}, 2049, 4 * 2**20, 17, id="one token more, one block more"),
        # "Maximum concurrency for 65,536 tokens per request: 1.61x" with 1024 blocks
        pytest.param(GEMMA_1B, {}, 65536, 524288, 638, id="six groups see a window only"),
        # "Maximum concurrency for 4,096 tokens per request: 11.91x" with 1024 blocks
        pytest.param(
            GEMMA_1B, {"max_num_batched_tokens": 512}, 4096, 524288, 86, id="in shorter steps"
        ),
        # "Maximum concurrency for 32,768 tokens per request: 1.60x" with 40 blocks
        pytest.param(MISTRAL, {}, 32768, 262144, 25, id="all layers see a window only"),
        pytest.param(MISTRAL, {}, 128, 262144, 2, id="a context inside the window"),
        pytest.param(
            MISTRAL,
            {"max_num_batched_tokens": 129},
            4096,
            262144,
            10,
            id="1023 and 129 are 9 blocks",
        ),
        pytest.param(
            MISTRAL, {"chunked_prefill": False}, 4096, 262144, 33, id="a prompt is one step"
        ),
        pytest.param(GEMMA_27B, {}, 65536, 10 * 2**20, 662, id="Gemma 3 27B"),
        pytest.param(
            GEMMA_27B,
            {"engine_args": {"disable_hybrid_kv_cache_manager": True}},
            65536,
            62 * 2**20,
            512,
            id="Gemma 3 27B as if its windows were whole contexts",
        ),
        pytest.param(LLAMA, {"engine_args": {"block_size": 64}}, 2048, 2 * 2**20, 32, id="64"),
        pytest.param(
            LLAMA, {"engine_args": {"kv_cache_dtype": "fp8_e5m2"}}, 2048, 2 * 2**20, 16, id="fp8"
        ),
        pytest.param(
            Attention(full_layers=13, window_layers=12, window=128, kv_heads=1, head_dim=64),
            {},
            2048,
            13 * 128 * 2 * 64 * 2,
            16 + 17,
            id="about as many of both kinds: two groups",
        ),
    ],
)
def test_what_one_request_takes(attention, settings, context, block_bytes, blocks):
    found = layout(attention, **settings)

    assert (found.block_bytes, found.blocks(context)) == (block_bytes, blocks)
    assert found.bytes_for(context, 3) == (1 + 3 * blocks) * block_bytes  # one stays empty


def test_numbers_of_32_bits_take_twice_as_much():
    assert layout(LLAMA, 4).block_bytes == 2 * layout(LLAMA, 2).block_bytes


@pytest.mark.parametrize(
    ("attention", "size", "limit", "requests", "expected"),
    [
        # It says "the estimated maximum model length is 1664".
        pytest.param(GEMMA_1B, 0.05 * GIB, 65536, 1, 1664, id="as vLLM estimates"),
        # It says "0.25 GiB KV cache is needed, which is larger than the available KV cache memory
        # (0.25 GiB)", and "the estimated maximum model length is 8064".
        pytest.param(LLAMA, 0.25 * GIB, 8192, 1, 8064, id="the block that stays empty is missing"),
        pytest.param(LLAMA, 0.25 * GIB + 4 * 2**20, 8192, 1, 8192, id="and here it is not"),
        pytest.param(LLAMA, 0.25 * GIB, 8192, 4, 1920, id="for four at once"),
        pytest.param(LLAMA, 0.25 * GIB, 1000, 1, 1000, id="no more than is asked for"),
        pytest.param(LLAMA, 4 * 2**20, 8192, 1, 0, id="nothing fits"),
        pytest.param(MISTRAL, 0.01 * GIB, 10**6, 1, 10**6, id="a window has an end"),
    ],
)
def test_the_longest_context_that_fits(attention, size, limit, requests, expected):
    found = layout(attention)

    assert found.longest(int(size), limit, requests) == expected
    if 0 < expected < limit:
        assert found.bytes_for(expected, requests) <= size
        assert found.bytes_for(expected + 1, requests) > size
