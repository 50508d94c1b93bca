"""Checkpoints without numbers: headers that claim any size, in files that take none."""

import json
import math
from pathlib import Path
from typing import Any

WIDTHS = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1}

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}

GEMMA_3_27B = {  # as on the hub: most keys are left to the defaults of the model's type
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}

GEMMA_3_27B_TENSORS = {
    "language_model.model.embed_tokens.weight": ("BF16", 262208, 5376),
    "the_rest": ("BF16", 26_022_596_608),  # 54.9 GB in all
}

Tensors = dict[str, tuple[Any, ...]]
"""A dtype and a shape for each name."""


def write_weights(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file; its numbers are a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, *shape) in tensors.items():
        begin, end = end, end + WIDTHS[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_model(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Write a checkpoint into `directory`, which is made, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_weights(directory / "model.safetensors", tensors)
    return directory


def write_gemma(directory: Path) -> Path:
    """Write a Gemma-3-27b."""
    return write_model(directory, GEMMA_3_27B, GEMMA_3_27B_TENSORS)
