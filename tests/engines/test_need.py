"""What one engine takes, from the headers of its files."""

import json

import httpx
import pytest

from config import ModelSettings
from engines import need as module
from engines.memory import GIB
from engines.need import NotHere, Unknown, kv_cache_bytes, need, too_small
from tests.hollow import LLAMA, write_gemma, write_model, write_weights

MIB = 2**20
LAYERS = {"model.layers.0.mlp.down_proj.weight": ("BF16", 1024, 1024)}  # 2 MiB
TABLE = {"model.embed_tokens.weight": ("BF16", 512, 1024)}  # 1 MiB
HEAD = {"lm_head.weight": ("BF16", 512, 1024)}  # 1 MiB


def model(**settings) -> ModelSettings:
    return ModelSettings(name="a", source="./a", **settings)


def stored_as(tensors, dtype):
    return {name: (dtype, *shape) for name, (_, *shape) in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "tied", "dtype", "mib"),
    [
        pytest.param(LAYERS | TABLE | HEAD, False, "bfloat16", 6, id="both tables once more"),
        pytest.param(LAYERS | TABLE, True, "bfloat16", 5, id="a table that is both, twice more"),
        pytest.param(LAYERS | TABLE | HEAD, True, "bfloat16", 5, id="a head that is not read"),
        pytest.param(LAYERS, False, "float32", 4, id="cast to a wider type"),
        pytest.param(stored_as(LAYERS, "F32"), False, "bfloat16", 2, id="to a narrower one"),
        pytest.param(stored_as(LAYERS, "F16"), False, "bfloat16", 2, id="to one as wide"),
        pytest.param(
            {"model.layers.0.mlp.down_proj.qweight": ("I32", 1024, 128)},
            False,
            "bfloat16",
            0.5,
            id="packed numbers stay as they are",
        ),
    ],
)
def test_weights_are_counted_as_they_will_be_in_memory(tmp_path, tensors, tied, dtype, mib):
    write_model(tmp_path, {**LLAMA, "tie_word_embeddings": tied}, tensors)

    assert need(model(dtype=dtype), tmp_path).weights_bytes == mib * MIB


def test_the_kv_cache_is_what_is_set_or_enough_for_all_requests(tmp_path):
    write_model(tmp_path, LLAMA, LAYERS)
    block = 4 * MIB  # 16 layers, 128 tokens, 2 x 4 heads of 128 numbers of 2 bytes

    for settings, expected in [
        ({"kv_cache_gb": 0.3}, int(0.3 * GIB)),
        ({"max_model_len": 1024, "max_num_seqs": 2}, (1 + 2 * 8) * block),
        ({"max_num_seqs": 1}, (1 + 64) * block),  # 8192 tokens: the model's own context
        ({"max_model_len": 1024, "max_num_seqs": 2, "dtype": "float32"}, (1 + 2 * 8) * 2 * block),
    ]:
        assert kv_cache_bytes(model(**settings), tmp_path) == expected
        assert need(model(**settings), tmp_path).kv_cache_bytes == expected


def test_the_footprint_is_the_sum(tmp_path):
    found = need(model(max_model_len=2048), write_model(tmp_path, LLAMA, LAYERS))

    parts = (found.weights_bytes, found.kv_cache_bytes, found.overhead_bytes)
    assert found.total_bytes == sum(parts)
    assert (found.max_model_len, found.max_num_seqs) == (2048, 8)


def test_computing_takes_more_in_longer_steps_and_a_prompt_without_chunks_is_one(tmp_path):
    write_model(tmp_path, LLAMA, LAYERS)

    def overhead(**settings):
        return need(model(max_model_len=8192, **settings), tmp_path).overhead_bytes

    per_token = (overhead(max_num_batched_tokens=4096) - overhead()) / 2048
    widths = 3 * LLAMA["intermediate_size"] + 4 * LLAMA["hidden_size"]
    assert per_token == pytest.approx(module._COMPUTING_FACTOR * 2 * widths)
    assert overhead(chunked_prefill=False) == overhead(max_num_batched_tokens=8192)


def test_a_model_that_sees_keeps_images(tmp_path):
    write_gemma(tmp_path)

    seeing = need(model(max_model_len=2048), tmp_path).overhead_bytes
    less = {"mm_processor_cache_gb": 1}
    assert seeing - need(model(max_model_len=2048, engine_args=less), tmp_path).overhead_bytes == (
        3 * GIB
    )


def test_files_that_are_not_here_are_said_to_be_missing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(NotHere, match=r"has no \*\.safetensors"):
        need(model(), tmp_path)

    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write_weights(tmp_path / "model-1.safetensors", LAYERS)
    with pytest.raises(NotHere, match=r"model-2\.safetensors is missing"):
        need(model(), tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")

    with pytest.raises(Unknown, match=r"its weights cannot be read: .*model\.safetensors is not"):
        need(model(), tmp_path)


def test_an_architecture_that_is_not_known_needs_kv_cache_gb(tmp_path):
    write_model(tmp_path, {**LLAMA, "kv_lora_rank": 512}, LAYERS)

    with pytest.raises(Unknown, match=r"cannot be derived from its config\.json: set kv_cache_gb"):
        need(model(), tmp_path)
    found = need(model(kv_cache_gb=0.5), tmp_path)
    assert found.kv_cache_bytes == GIB // 2
    assert too_small(found) is None


@pytest.mark.parametrize(
    ("settings", "room_gib", "expected"),
    [
        # the production case, and what fits instead
        pytest.param(
            {"max_model_len": 65536, "kv_cache_gb": 4},
            None,
            "a KV cache of 4.00 GiB holds 33024 tokens of a request, but max_model_len is 65536,"
            " which takes 6.48 GiB. Set max_model_len 33024, or kv_cache_gb 6.48",
            id="too short",
        ),
        pytest.param(
            {"max_model_len": 65536, "kv_cache_gb": 4},
            66,
            "a KV cache of 4.00 GiB holds 33024 tokens of a request, but max_model_len is 65536,"
            " which takes 6.48 GiB. Set max_model_len 33024",
            id="and no room for more",
        ),
        pytest.param(
            {"max_model_len": 65536, "kv_cache_gb": 4},
            80,
            "a KV cache of 4.00 GiB holds 33024 tokens of a request, but max_model_len is 65536,"
            " which takes 6.48 GiB. Set max_model_len 33024, or kv_cache_gb 6.48",
            id="and room for more",
        ),
        pytest.param(
            {"max_model_len": 65536, "kv_cache_gb": 0.01},
            None,
            "a KV cache of 0.01 GiB holds 0 tokens of a request, but max_model_len is 65536,"
            " which takes 6.48 GiB. Set kv_cache_gb 6.48",
            id="not even one block",
        ),
        pytest.param({"max_model_len": 65536, "kv_cache_gb": 6.48}, None, None, id="enough"),
        pytest.param({"max_model_len": 65536}, None, None, id="derived"),
        pytest.param(
            {
                "max_model_len": 65536,
                "kv_cache_gb": 24,
                "engine_args": {"disable_hybrid_kv_cache_manager": True},
            },
            None,
            "a KV cache of 24.00 GiB holds 50560 tokens of a request, but max_model_len is 65536"
            ", which takes 31.07 GiB. Set max_model_len 50560, or kv_cache_gb 31.07",
            id="with a whole context for every layer",
        ),
    ],
)
def test_a_kv_cache_too_small_for_one_request_is_refused(tmp_path, settings, room_gib, expected):
    found = need(model(**settings), write_gemma(tmp_path))

    assert too_small(found, room_gib and room_gib * GIB) == expected


@pytest.mark.real
def test_an_engine_takes_what_is_planned_within_a_tenth(service):
    body = {"model": "phi4_fast", "prompt": "memory " * 1500, "max_tokens": 4}
    httpx.post(f"{service.url}/v1/completions", json=body, timeout=60).raise_for_status()

    engines = httpx.get(f"{service.url}/v1/system").json()["engines"]

    (engine,) = [each for each in engines if each["model"] == "phi4_fast"]
    assert engine["resident_bytes"] == pytest.approx(engine["footprint_bytes"], rel=0.1)
