"""Hold the memory plan against real engines: `python -m tests.benchmarks.memory [CASE ...]`.

Each case is a model with its settings, run by the real service: loaded, then kept busy with eight
prompts at once and with one as long as the context. Printed is a row for `docs/memory.md`: what the
plan said, and what the engine's process had of its own at its highest, while loading and after.

The larger checkpoints have the shapes of real models and random numbers, which take as much memory
as good ones. They are written to a temporary directory: 7 GB.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from safetensors.torch import save_file

from config import read
from engines import quickstart
from engines.memory import GIB
from engines.plan import make_plan
from tests.checkpoints import awq_twin
from tests.service import RunningService

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
}
QWEN = {  # of Qwen2.5-0.5B
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
GEMMA = {  # of Gemma-3-1b
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": ("smollm2", {"kv_cache_gb": 0.25}),
    "smollm2-small-cache": ("smollm2", {"kv_cache_gb": 0.05}),
    "smollm2-large-cache": ("smollm2", {"kv_cache_gb": 1}),
    "smollm2-short-steps": ("smollm2", {"kv_cache_gb": 0.25, "max_num_batched_tokens": 512}),
    "smollm2-long-steps": (
        "smollm2",
        {"kv_cache_gb": 0.25, "max_num_batched_tokens": 8192, "max_model_len": 8192},
    ),
    "smollm2-long-context": ("smollm2", {"kv_cache_gb": 0.25, "max_model_len": 8192}),
    "smollm2-float32": ("smollm2", {"kv_cache_gb": 0.25, "dtype": "float32"}),
    "smollm2-compiled": ("smollm2", {"kv_cache_gb": 0.25, "enforce_eager": False}),
    "llama": ("llama", {}),
    "llama-compiled": ("llama", {"enforce_eager": False}),
    "llama-stored-in-float32": ("llama-float32", {}),
    "llama-awq": ("llama-awq", {}),
    "qwen2": ("qwen2", {}),
    "gemma3": ("gemma3", {"max_model_len": 8192, "max_num_seqs": 2}),
}
"""Name of a case: its checkpoint and its settings; a context of 2048 unless it says otherwise."""


def main() -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    names = parser.parse_args().cases or list(CASES)
    with tempfile.TemporaryDirectory(prefix="axion-memory-") as folder:
        base = Path(folder)
        for checkpoint in dict.fromkeys(CASES[name][0] for name in names):
            write_checkpoint(checkpoint, base)
        config = base / "cases.json"
        config.write_text(json.dumps(configuration(names)))
        plan = make_plan(read(config), base)
        service = RunningService(config, base / "log")
        try:
            say(f"the service alone: {service.memory_bytes() / GIB:.2f} GiB")
            say("| case | weights | KV cache | process | planned | highest | difference "
                "| while loading | afterwards |")  # fmt: skip
            say("| --- " * 9 + "|")
            for name, entry in zip(names, plan.models, strict=True):
                say(row(name, entry.need, measure(service, name)))
        finally:
            service.stop()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def configuration(names: list[str]) -> dict[str, Any]:
    """Return the configuration file with a model for each case."""
    models = [
        {
            "name": name,
            "source": quickstart.SOURCE if CASES[name][0] == "smollm2" else f"./{CASES[name][0]}",
            "max_model_len": 2048,
            "enforce_eager": True,
            **CASES[name][1],
        }
        for name in names
    ]
    return {"models": models, "routing": {"default": names[0]}, "pool": {"load_wait_s": 900}}


def measure(service: RunningService, name: str) -> dict[str, int]:
    """Return what the engine's process has of its own, in bytes, at three moments."""
    with httpx.Client(base_url=service.url, timeout=900) as client:
        with highest(service, name) as loading:
            client.post(f"/v1/models/{name}/load").raise_for_status()
            ask(client, name, 8)
        (pid,) = service.engine_pids(name)
        shared = anonymous_bytes(pid) - private_bytes(pid)  # with the process it was forked from
        options = CASES[name][1]
        step = options.get("max_num_batched_tokens", 2048)
        with highest(service, name) as computing, ThreadPoolExecutor(8) as pool:
            for _ in range(2):
                list(pool.map(lambda _: ask(client, name, step // 8), range(8)))
            ask(client, name, options.get("max_model_len", 2048) - 8)
        after = private_bytes(pid)
        client.post(f"/v1/models/{name}/unload").raise_for_status()
    top = max(loading[0], computing[0]) - shared
    return {"highest": top, "loading": loading[0] - shared, "afterwards": after}


def ask(client: httpx.Client, name: str, tokens: int) -> None:
    """Have a random prompt of so many tokens answered."""
    prompt = [random.randrange(100, 40_000) for _ in range(tokens)]  # noqa: S311 - not a secret
    body = {"model": name, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
    client.post("/v1/completions", json=body).raise_for_status()


@contextmanager
def highest(service: RunningService, name: str) -> Iterator[list[int]]:
    """Watch the memory of the engine's process meanwhile; the item is the most it had, in bytes."""
    found, done = [0], threading.Event()

    def watch() -> None:
        pids: list[int] = []
        while not done.wait(0.02):
            pids = pids or service.engine_pids(name)
            found[0] = max(found[0], *(anonymous_bytes(pid) for pid in pids), 0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that is no file's; a look that costs it nothing."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def private_bytes(pid: int) -> int:
    """Return what a process shares with no other."""
    return int(psutil.Process(pid).memory_full_info().uss)


def row(name: str, need: Any, measured: dict[str, int]) -> str:
    """Return a row of the table, in GiB."""
    planned = (need.weights_bytes, need.kv_cache_bytes, need.overhead_bytes, need.total_bytes)
    off = need.total_bytes / measured["highest"] - 1
    cells = [f"{size / GIB:.2f}" for size in (*planned, measured["highest"])]
    rest = [f"{measured[moment] / GIB:.2f}" for moment in ("loading", "afterwards")]
    return "| " + " | ".join([name, *cells, f"{off:+.1%}".replace("%", " %"), *rest]) + " |"


def write_checkpoint(name: str, base: Path) -> None:
    """Write the checkpoint called `name` below `base`, unless it is the quickstart's."""
    if name == "smollm2":
        quickstart.fetch(say)
    elif name == "llama-awq":
        write_random(LLAMA, torch.bfloat16, base / "llama-for-awq")
        awq_twin(base / "llama-for-awq", base / name, group=128)
        shutil.rmtree(base / "llama-for-awq")
    elif name == "llama-float32":
        write_random(LLAMA, torch.float32, base / name)
    else:
        shape = {"llama": LLAMA, "qwen2": QWEN, "gemma3": GEMMA}[name]
        write_random(shape, torch.bfloat16, base / name)


def write_random(shape: dict[str, Any], dtype: torch.dtype, target: Path) -> None:
    """Write a checkpoint of random numbers, with a tokenizer that is as large as its vocabulary."""
    target.mkdir()
    write_tokenizer(shape["vocab_size"], target)
    config = {**shape, "torch_dtype": str(dtype).removeprefix("torch."), "eos_token_id": 2}
    (target / "config.json").write_text(json.dumps(config))
    numbers = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(size).normal_(0, 0.02, generator=numbers).to(dtype)
        if len(size) == 2
        else torch.ones(size, dtype=dtype)
        for name, size in sizes(shape).items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(size: int, target: Path) -> None:
    """Write the quickstart model's tokenizer with invented entries until it has `size` of them."""
    source = quickstart.fetch(say)
    shutil.copy(source / "tokenizer_config.json", target)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    entries, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    as_pairs = isinstance(merges[0], list)
    words = [word for word in entries if word.isascii() and word.isalpha()]
    pairs = ((first, second) for first in words for second in words)
    number = max(entries.values())
    while number < size - 1:
        first, second = next(pairs)
        if first + second not in entries:
            number += 1
            entries[first + second] = number
            merges.append([first, second] if as_pairs else f"{first} {second}")
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))


def sizes(shape: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model of one of the three architectures above."""
    wide, inner, vocabulary = (
        shape[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    head = shape.get("head_dim", wide // shape["num_attention_heads"])
    queries, keys = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, wide),
        "model.norm.weight": (wide,),
    }
    if not shape["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocabulary, wide)
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, wide),
        "self_attn.k_proj.weight": (keys, wide),
        "self_attn.v_proj.weight": (keys, wide),
        "self_attn.o_proj.weight": (wide, queries),
        "mlp.gate_proj.weight": (inner, wide),
        "mlp.up_proj.weight": (inner, wide),
        "mlp.down_proj.weight": (wide, inner),
        "input_layernorm.weight": (wide,),
        "post_attention_layernorm.weight": (wide,),
    }
    if shape["model_type"] == "qwen2":
        layer |= {"self_attn.q_proj.bias": (queries,)}
        layer |= {f"self_attn.{name}_proj.bias": (keys,) for name in "kv"}
    if shape["model_type"] == "gemma3_text":
        layer |= {f"{name}_feedforward_layernorm.weight": (wide,) for name in ("pre", "post")}
        layer |= {f"self_attn.{name}_norm.weight": (head,) for name in "qk"}
    for index in range(shape["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}": size for name, size in layer.items()}
    return found


if __name__ == "__main__":
    main()
