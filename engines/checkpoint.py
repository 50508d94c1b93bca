"""What a model's files say about it, without loading it and without importing vLLM."""

import ast
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct


class Attention(Struct, frozen=True, kw_only=True):
    """Which keys and values a model remembers of a context.

    Attributes
    ----------
    full_layers
        Layers that look at the whole context.
    window_layers
        Layers that look at the last `window` tokens only.
    window
        In tokens, or 0 where there are no such layers.
    kv_heads, head_dim
        Of every layer: vectors per token, and numbers per vector.
    """

    full_layers: int
    window_layers: int = 0
    window: int = 0
    kv_heads: int
    head_dim: int


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The facts of a checkpoint that routing and the memory plan need.

    Attributes
    ----------
    max_position
        The context that vLLM takes unless told otherwise, in tokens; 0 when the files do not say.
    vision
        Whether it reads images.
    attention
        The shape of its KV cache, or None for an architecture that this module does not know.
    hidden, intermediate, vocabulary
        Widths of the layers and of the answer, in numbers per token; 0 when the files do not say.
    tied
        Whether the output layer is the embedding once more.
    """

    max_position: int = 0
    vision: bool = False
    attention: Attention | None = None
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    tied: bool = False


def inspect(directory: Path) -> Checkpoint:
    """Return the facts in `directory/config.json`; the defaults where it cannot be read."""
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        # Multimodal checkpoints keep the language model's numbers in a section of their own.
        own = config.get("text_config") or config
        # A key that is left out has the default of the model's type: Gemma 3 leaves out most.
        text = {**_defaults(str(own.get("model_type") or "")), **own}
        return Checkpoint(
            max_position=_max_position(text),
            vision="vision_config" in config,
            attention=_attention(text),
            hidden=int(text.get("hidden_size") or 0),
            intermediate=int(text.get("intermediate_size") or 0),
            vocabulary=int(text.get("vocab_size") or 0),
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return Checkpoint()


_ALREADY_SCALED = {
    "default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling",
}  # fmt: skip


def _max_position(text: dict[str, Any]) -> int:
    """Return the context that vLLM derives (`vllm.config.model._get_and_verify_max_len`)."""
    longest = int(text.get("max_position_embeddings") or 0)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "longrope":
        return int(text.get("original_max_position_embeddings") or longest)
    if kind not in _ALREADY_SCALED and "gemma3" not in str(text.get("model_type")):
        longest = int(longest * float(rope.get("factor") or 1))
    return longest


_UNKNOWN = ("kv_lora_rank", "attention_chunk_size", "num_kv_shared_layers", "block_configs")
"""Keys of architectures whose KV cache has another shape: MLA, chunked or shared attention."""

_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "olmo3": 4, "gpt_oss": 2}
"""Every how manieth layer looks at the whole context, where config.json leaves that to the type."""


def _attention(text: dict[str, Any]) -> Attention | None:
    """Return the shape of the KV cache, or None where it is not plain attention in every layer."""
    layers = int(text.get("num_hidden_layers") or 0)
    heads = int(text.get("num_attention_heads") or 0)
    head_dim = int(text.get("head_dim") or (text.get("hidden_size") or 0) // max(heads, 1))
    windowed = _window_layers(text, layers)
    if not (layers and heads and head_dim) or windowed is None:
        return None
    if any(text.get(key) for key in _UNKNOWN):
        return None
    return Attention(
        full_layers=layers - windowed,
        window_layers=windowed,
        window=int(text["sliding_window"]) if windowed else 0,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=head_dim,
    )


def _window_layers(text: dict[str, Any], layers: int) -> int | None:
    """Return how many layers look at a window only; None where the files do not say."""
    kinds, model_type = text.get("layer_types"), str(text.get("model_type"))
    if kinds and not set(kinds) <= {"full_attention", "sliding_attention"}:
        return None
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return 0
    if kinds:
        return list(kinds).count("sliding_attention")
    if model_type.startswith("qwen"):
        return max(0, layers - int(text.get("max_window_layers") or 0))
    pattern = text.get("sliding_window_pattern") or _PATTERNS.get(model_type)
    if isinstance(pattern, int):
        return layers - layers // pattern
    return None if "layer_types" in text else layers


@cache
def _defaults(model_type: str) -> dict[str, Any]:
    """Return the defaults of a model type, from the source of the installed transformers.

    Importing its class instead would import PyTorch, which takes seconds.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not model_type.isidentifier():
        return {}
    folder = model_type.removesuffix("_text")
    path = Path(spec.origin).parent / "models" / folder / f"configuration_{folder}.py"
    try:
        nodes = ast.parse(path.read_text("utf-8")).body
    except (OSError, SyntaxError):
        return {}
    classes = (_fields(node) for node in nodes if isinstance(node, ast.ClassDef))
    return next((fields for fields in classes if fields.get("model_type") == model_type), {})


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    """Return the attributes of a class that are plain values."""
    fields: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            first = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(first, ast.Name) and isinstance(statement.value, ast.Constant):
                fields[first.id] = statement.value.value
    return fields
