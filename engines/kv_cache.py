"""How large a KV cache vLLM 0.32 needs on a CPU, computed as vLLM itself does.

Its own code, `vllm/v1/core/kv_cache_utils.py`, runs only in an engine that has read its weights.
"""

import math

from msgspec import Struct

from config import ModelSettings
from engines.checkpoint import Attention

BLOCK = 128
"""Tokens in a block on a CPU, unless `engine_args` has a `block_size`."""

BATCH = 2048
"""vLLM's tokens in one step, unless `max_num_batched_tokens` is set."""


class KvCache(Struct, frozen=True, kw_only=True):
    """The layout of one engine's KV cache: blocks, each for some tokens of some of the layers.

    Layers are put into groups of about the same number, so that a block of each group has the same
    size. A request holds blocks of every group: of full attention for all of its tokens, of sliding
    windows for those in the window and in the current step.

    Attributes
    ----------
    block
        Tokens in a block.
    block_bytes
        Its size.
    full_groups, window_groups
        Groups of layers, by kind of attention.
    window, batch
        In tokens: what a window layer sees, and what is computed in one step.
    """

    block: int
    block_bytes: int
    full_groups: int
    window_groups: int
    window: int
    batch: int

    def blocks(self, context: int) -> int:
        """Return how many blocks one request of `context` tokens may hold."""
        kept = min(self.window - 1 + self.batch, context)  # a window may begin inside a block: + 1
        return self.full_groups * math.ceil(context / self.block) + self.window_groups * (
            math.ceil(kept / self.block) + 1
        )

    def bytes_for(self, context: int, requests: int = 1) -> int:
        """Return the size that holds `requests` of `context` tokens each, in bytes."""
        return (
            1 + requests * self.blocks(context)
        ) * self.block_bytes  # vLLM keeps one block empty

    def longest(self, room_bytes: int, limit: int, requests: int = 1) -> int:
        """Return the longest context that `room_bytes` hold: `limit`, or whole blocks, or 0."""
        if self.bytes_for(limit, requests) <= room_bytes:
            return limit
        low, high = 0, limit // self.block + 1  # in blocks: low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            if self.bytes_for(middle * self.block, requests) <= room_bytes:
                low = middle
            else:
                high = middle
        return low * self.block


def kv_cache(model: ModelSettings, attention: Attention, number_bytes: int) -> KvCache:
    """Return the layout for a model as it is configured.

    Parameters
    ----------
    number_bytes
        Size of one number in the type that is computed in.
    """
    if str(model.engine_args.get("kv_cache_dtype", "auto")).startswith("fp8"):
        number_bytes = 1
    block = int(model.engine_args.get("block_size") or BLOCK)
    full, windowed = attention.full_layers, attention.window_layers
    if full and model.engine_args.get("disable_hybrid_kv_cache_manager"):
        full, windowed = full + windowed, 0
    size = _group_size(full, windowed)
    full_groups, window_groups = math.ceil(full / size), math.ceil(windowed / size)
    layers = max(_widest(full, full_groups), _widest(windowed, window_groups))
    # Without chunks a prompt is one step, however long it is.
    batch = model.max_num_batched_tokens or (BATCH if model.chunked_prefill else 2**31)
    return KvCache(
        block=block,
        block_bytes=layers * block * 2 * attention.kv_heads * attention.head_dim * number_bytes,
        full_groups=full_groups,
        window_groups=window_groups,
        window=attention.window,
        batch=batch,
    )


def _group_size(full: int, windowed: int) -> int:
    """Return vLLM's choice of layers in a group, where there are both kinds and where not."""
    few, many = sorted((full, windowed))
    return many if many < 1.5 * few or few == 0 else few


def _widest(layers: int, groups: int) -> int:
    return math.ceil(layers / groups) if groups else 0
