"""What the template process imports: everything that an engine needs, and nothing is started.

Engines are forked from this process, so that none of them imports vLLM and PyTorch again: a load
takes 2 s instead of 12 s, and all engines share the pages of these imports (`docs/engines.md`).
Forking is safe as long as this process has one thread, so nothing here may run a computation.
"""

import atexit
import ctypes
import gc
import logging
import os
import signal
import warnings

# Ctrl-C at a terminal goes to every process of its group. Only the server is to hear it, and to let
# the running answers finish. First of all, because the imports take seconds; until here the signal
# was held back (`engines.vllm`).
os.setpgid(0, 0)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, signal.default_int_handler)

# The fork server would notice the end of the server only after these imports.
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

# vLLM sets up its loggers only later; until then Python would print its warnings as they are.
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.testing._internal.distributed.fake_pg  # noqa: F401
    import vllm.model_executor.model_loader
    import vllm.model_executor.models.llama
    import vllm.multimodal
    import vllm.transformers_utils.config
    import vllm.v1.attention.backends.cpu_attn
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.structured_output
    import vllm.v1.worker.cpu_worker  # noqa: F401

# A collection in a child would write to the header of every object and so copy every shared page.
gc.collect()
gc.freeze()

# An ordinary exit would fill the operator's terminal with pages about leaks of vLLM's libraries.
atexit.register(os._exit, 0)
