"""What the engine of one model takes, before it is started: the parts of its footprint.

Sizes come from the headers of the model's files, never from its name. What cannot be read there was
measured; `docs/memory.md` compares the sums with real engines.
"""

import math
from pathlib import Path

from msgspec import Struct

from config import ModelSettings
from engines.checkpoint import inspect
from engines.cpu import resolve_dtype
from engines.kv_cache import BATCH, KvCache, kv_cache
from engines.memory import GIB, Tensor, tensors

_PROCESS_BYTES = int(0.22 * GIB)
"""What an engine process has of its own, beside what it shares with the one it is forked from."""

_TOKENIZER_BYTES = 800
"""Of a tokenizer, for each entry of the vocabulary; an engine has one for structured answers."""

_SERVER_BYTES = 1000
"""The same of the server, which has a second one to render several prompts at a time."""

_COMPUTING_FACTOR = 2.7
"""Between what the layers hand to each other in one step and what computing takes at its peak."""

_COMPILED_BYTES = int(0.12 * GIB)
"""What compiling leaves in the process."""

_VISION_CACHE_GB = 4.0
"""vLLM's default for `mm_processor_cache_gb`: images that an engine keeps, up to this many GiB."""

_CONTEXT = 2048
"""vLLM's context for a model whose files do not say what it was made for."""

_FLOATS = {"F64", "F32", "F16", "BF16"}
_TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "lm_head.weight")


class NotHere(Exception):
    """The model's files are not on this disk, or not all of them: its need is unknown."""


class Unknown(ValueError):
    """The files do not say enough; the message says what to set."""


class Need(Struct, frozen=True, kw_only=True):
    """What one engine takes, in bytes.

    Attributes
    ----------
    weights_bytes
        The tensors as they are in memory: cast to the type that is computed in, and with the copies
        of embedding and output layer that vLLM makes for the CPU's kernels.
    kv_cache_bytes
        What is reserved for the KV cache.
    overhead_bytes
        The process itself, its tokenizer, and what computing takes at its peak.
    total_bytes
        The sum: the model's footprint.
    server_bytes
        What the server takes for the model besides, loaded or not: its tokenizer.
    max_model_len, max_num_seqs
        The context and the number of requests that it was computed for.
    kv_cache
        The layout of the KV cache, or None for an architecture that is not known here.
    """

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    total_bytes: int
    server_bytes: int
    max_model_len: int
    max_num_seqs: int
    kv_cache: KvCache | None

    @property
    def longest(self) -> int:
        """The longest context that the KV cache holds, in tokens: `max_model_len`, or less."""
        if self.kv_cache is None:
            return self.max_model_len
        return self.kv_cache.longest(self.kv_cache_bytes, self.max_model_len)


def need(model: ModelSettings, directory: Path) -> Need:
    """Return what the engine of `model` will take.

    Raises
    ------
    NotHere
        Files are missing in `directory`.
    Unknown
        A file is damaged, or `kv_cache_gb` is not set and cannot be derived.
    """
    files = _Files(model, directory)
    weights, cache, overhead = files.weights_bytes(), files.kv_cache_bytes(), files.overhead_bytes()
    return Need(
        weights_bytes=weights,
        kv_cache_bytes=cache,
        overhead_bytes=overhead,
        total_bytes=weights + cache + overhead,
        server_bytes=_SERVER_BYTES * files.vocabulary,
        max_model_len=files.context,
        max_num_seqs=model.max_num_seqs,
        kv_cache=files.kv_cache,
    )


def kv_cache_bytes(model: ModelSettings, directory: Path) -> int:
    """Return what to reserve for the KV cache: `kv_cache_gb`, or enough for all `max_num_seqs`.

    Raises Unknown when it is not set and cannot be derived.
    """
    return _Files(model, directory).kv_cache_bytes()


class _Files:
    """A model as it is configured, and its files."""

    def __init__(self, model: ModelSettings, directory: Path) -> None:
        self._model, self._directory, self._facts = model, directory, inspect(directory)
        # dtype `auto` never ends at a wider type than the checkpoint's, which is 16 bits wide.
        self._number = 4 if resolve_dtype(model, directory)[0] == "float32" else 2
        self.vocabulary = self._facts.vocabulary
        self.context = model.max_model_len or self._facts.max_position or _CONTEXT
        attention = self._facts.attention
        self.kv_cache = kv_cache(model, attention, self._number) if attention else None

    def kv_cache_bytes(self) -> int:
        if self._model.kv_cache_gb is not None:
            return int(self._model.kv_cache_gb * GIB)
        if self.kv_cache is None:
            raise Unknown(
                "the KV cache of its architecture cannot be derived from its config.json: set "
                "kv_cache_gb"
            )
        return self.kv_cache.bytes_for(self.context, self._model.max_num_seqs)

    def weights_bytes(self) -> int:
        """Return the size of the tensors in memory, with the copies of the two largest tables.

        vLLM repacks embedding and output layer for the CPU's kernels and keeps the originals; where
        the two are one (`tie_word_embeddings`), it repacks that one twice.
        """
        total, tables = 0, 0
        try:
            for tensor in tensors(self._directory):
                size = self._size(tensor)
                if tensor.name.endswith(_TABLES):
                    output = tensor.name.endswith("lm_head.weight")
                    if self._facts.tied and output:
                        continue  # stored, but not read
                    tables += size * (2 if self._facts.tied else 1)
                total += size
        except FileNotFoundError as error:
            raise NotHere(f"{error.filename} is missing") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unknown(f"its weights cannot be read: {error}") from None
        if total == 0:
            raise NotHere(f"{self._directory} has no *.safetensors")
        return total + tables

    def _size(self, tensor: Tensor) -> int:
        """Return the size of a tensor in memory: ordinary numbers are cast, packed ones are not."""
        return tensor.numbers * self._number if tensor.dtype in _FLOATS else tensor.size

    def overhead_bytes(self) -> int:
        """Return what the process takes besides weights and KV cache, at its peak."""
        facts, model = self._facts, self._model
        # A prompt is computed in steps of so many tokens, and each layer hands on so many numbers.
        step = model.max_num_batched_tokens or BATCH
        if not model.chunked_prefill:
            step = max(step, self.context)
        widths = 3 * facts.intermediate + 4 * facts.hidden
        images = model.engine_args.get("mm_processor_cache_gb", _VISION_CACHE_GB)
        return int(
            _PROCESS_BYTES
            + _TOKENIZER_BYTES * self.vocabulary
            + _COMPUTING_FACTOR * step * widths * self._number
            + (0 if model.enforce_eager else _COMPILED_BYTES)
            + (float(images) * GIB if facts.vision else 0)
        )


def too_small(found: Need, room_bytes: int | None = None) -> str | None:
    """Return why vLLM would not start with this KV cache, and what to change; None: it is enough.

    The cache has to hold one request of `max_model_len` tokens.

    Parameters
    ----------
    room_bytes
        What the model may take, where that is known: what takes more is not proposed.
    """
    layout, context, longest = found.kv_cache, found.max_model_len, found.longest
    if layout is None or longest == context:
        return None
    least = layout.bytes_for(context)
    changes = [f"max_model_len {longest}"] if longest else []
    if room_bytes is None or found.total_bytes - found.kv_cache_bytes + least <= room_bytes:
        changes.append(f"kv_cache_gb {at_least(least)}")
    return (
        f"a KV cache of {gib(found.kv_cache_bytes)} GiB holds {longest} tokens of a "
        f"request, but max_model_len is {context}, which takes {at_least(least)} GiB"
        + (f". Set {', or '.join(changes)}" if changes else "")
    )


def gib(size: int) -> str:
    """Return a size in GiB for people."""
    return f"{size / GIB:.2f}"


def at_least(size: int) -> str:
    """Return a number of GiB for a setting, never less than `size`."""
    return f"{math.ceil(size / GIB * 100) / 100:g}"


def at_most(size: int) -> str:
    """Return a number of GiB for a setting, never more than `size`."""
    return f"{math.floor(size / GIB * 100) / 100:g}"
