"""What a model's files say about it."""

import json

import pytest

from engines.checkpoint import Attention, Checkpoint, inspect
from tests.hollow import GEMMA_3_27B, LLAMA


def write(directory, config):
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text)
    return inspect(directory)


def attention(full, windowed=0, window=0, *, kv_heads=4, head_dim=128):
    return Attention(
        full_layers=full,
        window_layers=windowed,
        window=window,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"max_position_embeddings": 2048}', Checkpoint(max_position=2048)),
        (
            '{"text_config": {"max_position_embeddings": 8192}, "vision_config": {}}',
            Checkpoint(max_position=8192, vision=True),
        ),
        ("{}", Checkpoint()),
        ("[]", Checkpoint()),
        ("{", Checkpoint()),
        ('{"max_position_embeddings": "many"}', Checkpoint()),
        ('{"model_type": "../../etc/passwd"}', Checkpoint()),
    ],
)
def test_context_and_vision_are_read_from_config_json(tmp_path, config, expected):
    assert write(tmp_path, config) == expected


def test_without_a_config_nothing_is_known(tmp_path):
    assert inspect(tmp_path) == Checkpoint()


def test_widths_are_read_and_what_is_left_out_has_the_default_of_its_type(tmp_path):
    assert write(tmp_path, LLAMA) == Checkpoint(
        max_position=8192,
        attention=attention(16),
        hidden=1536,
        intermediate=4096,
        vocabulary=49152,
        tied=False,
    )
    assert write(tmp_path, GEMMA_3_27B) == Checkpoint(
        max_position=131072,
        vision=True,
        attention=attention(10, 52, 1024, kv_heads=16),
        hidden=5376,
        intermediate=21504,
        vocabulary=262208,
        tied=True,
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"num_key_value_heads": None}, attention(16, kv_heads=12), id="all heads"),
        pytest.param({"head_dim": 64}, attention(16, head_dim=64), id="a head_dim of its own"),
        pytest.param(
            {"model_type": "mistral"}, attention(0, 16, 4096), id="Mistral 0.1 by its default"
        ),
        pytest.param(
            {"model_type": "mistral", "sliding_window": None}, attention(16), id="Mistral 0.2"
        ),
        pytest.param(
            {"model_type": "phi3", "sliding_window": 262144},
            attention(0, 16, 262144),
            id="Phi-4-mini: one window for all",
        ),
        pytest.param(
            {"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": False},
            attention(16),
            id="Qwen2.5: a window that is not used",
        ),
        pytest.param(
            {
                "model_type": "qwen2",
                "sliding_window": 4096,
                "use_sliding_window": True,
                "max_window_layers": 12,
            },
            attention(12, 4, 4096),
            id="Qwen2: windows above a layer",
        ),
        pytest.param(
            {"model_type": "gemma2", "sliding_window": 4096},
            attention(8, 8, 4096, head_dim=256),
            id="Gemma 2: every other layer",
        ),
        pytest.param(
            {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 4},
            attention(4, 12, 512, head_dim=256),
            id="a pattern in the file",
        ),
        pytest.param(
            {
                "model_type": "ministral",
                "sliding_window": 4096,
                "layer_types": ["sliding_attention"] * 12 + ["full_attention"] * 4,
            },
            attention(4, 12, 4096),
            id="layers by name",
        ),
        pytest.param({"kv_lora_rank": 512}, None, id="multi-head latent attention"),
        pytest.param({"attention_chunk_size": 8192}, None, id="chunked attention"),
        pytest.param(
            {"layer_types": ["linear_attention"] * 16}, None, id="layers with a state instead"
        ),
        pytest.param(
            {"model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"},
            None,
            id="a pattern not known here",
        ),
        pytest.param({"num_hidden_layers": 0}, None, id="no layers"),
    ],
)
def test_the_shape_of_the_kv_cache(tmp_path, changes, expected):
    assert write(tmp_path, {**LLAMA, **changes}).attention == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 32768),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 8192),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 8192),
        (
            {
                "rope_scaling": {"type": "longrope"},
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
            },
            4096,
        ),
        ({"rope_scaling": None}, 8192),
    ],
)
def test_the_context_is_the_one_that_vllm_derives(tmp_path, changes, expected):
    assert write(tmp_path, {**LLAMA, **changes}).max_position == expected
