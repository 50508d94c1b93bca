"""Runs inside every engine process, in vLLM's worker: loading leaves no freed memory behind.

vLLM repacks every matrix for the CPU's kernels and frees the original. On glibc's heap these leave
holes that are never given back: 0.1 to 0.4 GiB for models of 0.3 to 1.9 GiB (`docs/memory.md`).
While a model is loaded, large blocks therefore come from the system one by one and go back to it;
when it computes, they come from the heap again, which spares it a page fault for every page of
every step.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def _set(parameter: int, value: int) -> None:
    """Call glibc's `mallopt`; another C library has none and goes on as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


class Extension:
    """What vLLM adds to its worker (`worker_extension_cls`)."""

    def end_of_load(self) -> None:
        """Take memory for computing from the heap, with what glibc itself arrives at in time."""
        _set(_M_MMAP_THRESHOLD, 32 * 2**20)
        _set(_M_TRIM_THRESHOLD, 64 * 2**20)
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


_set(_M_MMAP_THRESHOLD, 2**20)  # vLLM imports this module right before it loads the model
