"""Quantised twins of a checkpoint, made in seconds, for tests that need one."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's order of the eight 4-bit numbers in a 32-bit word: the first is in the lowest bits."""


def awq_twin(source: Path, target: Path, group: int = 64) -> Path:
    """Write an AWQ int4 twin of the checkpoint in `source` into `target`, as AutoAWQ stores it.

    Embeddings, which are the head too, and norms stay in 16 bits; like the checkpoints on the hub,
    it declares float16. The numbers are rounded to the nearest, without AWQ's search for better
    scales: the twin is a little worse than a real one, and runs by the same kernels.

    Parameters
    ----------
    source, target
        Directories; `target` is made.
    group
        How many inputs share a scale.
    """
    target.mkdir(parents=True)
    for path in source.glob("*.json"):
        shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    config["torch_dtype"] = "float16"
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
    }
    (target / "config.json").write_text(json.dumps(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small matrices take longer with two on a busy machine
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            layer = name.removesuffix("weight")
            tensors |= {layer + part: value for part, value in _awq(weight.float(), group).items()}
        else:
            tensors[name] = weight.half()
    torch.set_num_threads(threads)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _awq(weight: torch.Tensor, group: int) -> dict[str, torch.Tensor]:
    """Return `weight` (outputs, inputs) as qweight, qzeros and scales, inputs first."""
    outputs, inputs = weight.shape
    groups = weight.T.contiguous().reshape(inputs // group, group, outputs)
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    scales = ((high - low).clamp(min=1e-5) / 15).half()
    step = scales.float()
    zeros = (-low / step).round().clamp(0, 15)
    numbers = (groups / step[:, None]).round().add(zeros[:, None]).clamp(0, 15)
    return {
        "qweight": _packed(numbers.reshape(inputs, outputs)),
        "qzeros": _packed(zeros),
        "scales": scales,
    }


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    """Return the 4-bit `numbers` (rows, columns) as 32-bit words (rows, columns / 8)."""
    eights = numbers.to(torch.uint8).reshape(numbers.shape[0], -1, 8)[:, :, list(_PACK_ORDER)]
    pairs = eights[:, :, 0::2] | (eights[:, :, 1::2] << 4)  # bytes, the lowest first
    return pairs.reshape(numbers.shape[0], -1).contiguous().view(torch.int32)
