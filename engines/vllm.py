"""Engines that run a model with vLLM (0.32) on the CPU.

The engine object lives in this process; its core, with the weights and the KV cache, is a child
process, so unloading really returns the memory and a crash stays with one model.
Children are forked from a template process that has imported everything (`engines.template`).
Everything slow happens in threads: the event loop only ever awaits.
"""

import asyncio
import contextlib
import gc
import importlib.util
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import warnings
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import psutil

from config import ModelSettings
from engines import child, cores, cpu
from engines.memory import weights_bytes
from engines.need import kv_cache_bytes
from engines.process import Process
from engines.protocol import Answer, Endpoint, EngineFailed, Refused, Reply, Stream
from engines.request import grammar_of, no_grammar, read_request, refusal

log = logging.getLogger("axion.vllm")

_NOT_IMPLEMENTED = 501

_CLOSE_S = 1.5
"""Seconds that an engine's process has to end by itself; its memory is wanted back."""

# Variables that the operator has set in the environment stay as they are.
_ENVIRONMENT = {
    # The worker lives inside the core process: starts in 10 s instead of 16, generates a third
    # faster (docs/engines.md).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # By default vLLM keeps one core for its own server; on two cores that halves the speed.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    # The ahead-of-time compile cache of 0.32 fails to load and compiles anew at each start.
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # Its warnings are about GPUs, Triton and allocators; operators read ours instead.
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # How long a waiting thread spins before it sleeps. By default it is so long that, when anything
    # else wants the core, each of a token's hundreds of waits may cost a slice of the scheduler.
    "GOMP_SPINCOUNT": "10000",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}


def _prepare() -> None:
    """Import all of vLLM now, in this thread, so that no later load stalls the event loop.

    Takes 5 to 10 s. Imports hold the interpreter for up to 0.3 s at a time, and a full garbage
    collection over their million objects for 0.1 s; after this neither happens while serving.
    """
    if os.environ["VLLM_LOGGING_LEVEL"] == _ENVIRONMENT["VLLM_LOGGING_LEVEL"]:
        # In this process its errors are ours to tell: they reach the client and our own log.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.entrypoints.anthropic.serving
        import vllm.entrypoints.generate.api_router
        import vllm.entrypoints.generate.structured_decisions.api_router
        import vllm.entrypoints.launchers.api_server.app_state
        import vllm.entrypoints.launchers.cli_args
        import vllm.entrypoints.openai.chat_completion.batch_serving
        import vllm.entrypoints.openai.completion.serving
        import vllm.entrypoints.openai.responses.serving
        import vllm.entrypoints.scale_out.factories
        import vllm.entrypoints.serve.exception_handling.error_response
        import vllm.v1.engine.async_llm  # noqa: F401

    gc.collect()
    gc.freeze()


class VllmStarter:
    """Starts vLLM engines. Making one imports vLLM, which takes 5 to 10 s."""

    def __init__(self) -> None:
        self._template = _Template()  # imports in its own process, at the same time as this one
        _prepare()
        _parser()
        self._template.serve_vllm()
        # One at a time: vLLM reads the process environment while it starts an engine.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="axion-start")
        self._launches: dict[str, _Launch] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def warm(self, model: ModelSettings, directory: Path) -> None:
        """Read the model's tokenizer and chat template into vLLM's caches. Blocks; never raises.

        Parsing a tokenizer holds the interpreter for 0.1 s (49,000 entries) to 0.5 s (262,000), and
        a load does it several times: done before the service listens, it stalls nobody.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.renderers.hf import resolve_chat_template
        from vllm.tokenizers.hf import maybe_make_thread_pool
        from vllm.tokenizers.registry import cached_tokenizer_from_config

        try:
            args = AsyncEngineArgs.from_cli_args(_arguments(model, directory))
            config = args.create_model_config()
            tokenizer = cached_tokenizer_from_config(config)
            maybe_make_thread_pool(tokenizer, config.renderer_num_workers + 1)
            resolve_chat_template(tokenizer, None, None, model_config=config)
        except Exception:  # the load will say what is wrong
            log.debug("%s: the tokenizer could not be read ahead", model.name, exc_info=True)

    async def start(self, model: ModelSettings, directory: Path) -> "VllmEngine":
        """Return a running engine for the model in `directory`. Cancelling ends its process."""
        if objection := cpu.objection(model, directory):
            raise EngineFailed(objection)
        if changed := cpu.resolve_dtype(model, directory)[1]:
            log.info("%s: %s", model.name, changed)
        try:
            weights = weights_bytes(directory)
        except (OSError, ValueError) as error:
            raise EngineFailed(str(error)) from error
        launch = self._launches[model.name] = _Launch(model, weights)
        try:
            return await self._launch(launch, directory)
        finally:
            launch.forget_sockets()
            del self._launches[model.name]

    async def _launch(self, launch: "_Launch", directory: Path) -> "VllmEngine":
        job = self._thread.submit(self._start, launch, directory)
        starting = asyncio.wrap_future(job)
        try:
            llm, args = await asyncio.shield(starting)
        except asyncio.CancelledError:
            if not job.cancel():
                ending = asyncio.create_task(_end(launch, starting))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
                await asyncio.shield(ending)  # goes on by itself if this is cancelled once more
            raise
        engine = VllmEngine(launch, llm)
        try:
            await llm.collective_rpc("end_of_load")  # its answer has come through the sockets
            await engine.open(args)
        except BaseException:
            await engine.close()
            raise
        return engine

    def progress(self, model: ModelSettings) -> float | None:
        """Return which part of the weights a start under way has read, 0 to 1; None: unknown."""
        launch = self._launches.get(model.name)
        return launch.progress() if launch else None

    def _start(self, launch: "_Launch", directory: Path) -> tuple[Any, Namespace]:
        """Start the engine process and wait until it has loaded the model. Blocks for seconds."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            args = _arguments(launch.model, directory)
            config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
                UsageContext.ENGINE_CONTEXT
            )
            with self._template.launching(launch), launch.sockets():
                return AsyncLLM.from_vllm_config(config, disable_log_stats=True), args
        except Exception as error:
            raise EngineFailed(launch.cause() or _clause(error)) from error
        finally:
            launch.last_words.close()  # the process has its own end


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).kill()


async def _end(launch: "_Launch", starting: "asyncio.Future[Any]") -> None:
    """End a start that nobody waits for any more.

    Its thread cannot be cancelled, but without its process it fails and ends at once.
    """
    while not starting.done():
        launch.kill()
        await asyncio.wait({starting}, timeout=0.05)
    with contextlib.suppress(Exception):
        await asyncio.to_thread(starting.result()[0].shutdown)


class _Launch:
    """One start of an engine: what its process is given, and how to end it."""

    def __init__(self, model: ModelSettings, weights: int) -> None:
        self.model = model
        self.process: BaseProcess | None = None
        self._weights = weights
        self._cause: str | None = None
        self._private = 0  # bytes of its own that the process had when it was first looked at
        self._directory: str | None = None
        self._heard, self.last_words = multiprocessing.Pipe(duplex=False)
        self.threads = multiprocessing.get_context("forkserver").RawValue(
            "i", model.threads or cores.usable()
        )

    def progress(self) -> float | None:
        """Return which part of the weights is in the process's own memory, 0 to 1."""
        if self.process is None or self.process.pid is None:
            return None
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        private = 1024 * int(status.partition("RssAnon:")[2].split()[0])
        self._private = self._private or private
        return min((private - self._private) / max(self._weights, 1), 1.0)

    def surroundings(self) -> child.Surroundings:
        # vLLM sets some of these only while it makes an engine's configuration.
        names = [name for name in os.environ if name.startswith(("VLLM_", "TORCHINDUCTOR_"))]
        return child.Surroundings(
            title=f"axion:{self.model.name}",
            environment={name: os.environ[name] for name in names},
        )

    @contextlib.contextmanager
    def sockets(self) -> Iterator[None]:
        """Have vLLM make its sockets in a directory of this launch meanwhile.

        It would leave two files in the directory for temporary files with every start.
        """
        place = os.environ.get("VLLM_RPC_BASE_PATH")
        self._directory = tempfile.mkdtemp(prefix="axion-", dir=place)
        os.environ["VLLM_RPC_BASE_PATH"] = self._directory
        try:
            yield
        finally:
            if place is None:
                del os.environ["VLLM_RPC_BASE_PATH"]
            else:
                os.environ["VLLM_RPC_BASE_PATH"] = place

    def forget_sockets(self) -> None:
        """Remove the sockets' directory. Both ends must have connected, or have ended."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def cause(self) -> str | None:
        """Return why the process ended, in one clause, if it has said so."""
        if self._cause is None:
            try:
                if self._heard.poll():
                    self._cause = self._heard.recv()
                    log.debug("%s: %s", self.model.name, self._heard.recv())
            except (EOFError, OSError):
                pass
        return self._cause

    def forget(self) -> None:
        """Hear no more from the process."""
        self._heard.close()

    def kill(self) -> None:
        """End the process if it has been started."""
        if self.process is not None and self.process.pid is not None:
            self.process.kill()


class _Template:
    """The process that engines are forked from. If it dies, the next start makes another."""

    def __init__(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._preload = os.environ.get("LD_PRELOAD") or _openmp()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["engines.template"])
        self._here = threading.local()  # .launch: the one that this thread is making
        self._ensure_running()

    def _ensure_running(self) -> None:
        """Start the template unless it runs, with the OpenMP that its engines are to have."""
        before = os.environ.get("LD_PRELOAD")
        os.environ["LD_PRELOAD"] = self._preload
        # Ctrl-C at a terminal goes to the template too until it has a group of its own; it is born
        # deaf to it, and hears again when it has (`engines.template`).
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
            if before is None:
                del os.environ["LD_PRELOAD"]
            else:
                os.environ["LD_PRELOAD"] = before

    def serve_vllm(self) -> None:
        """Have vLLM fork its engine cores from the template."""
        import vllm.v1.engine.utils

        vllm.v1.engine.utils.get_mp_context = lambda: self

    @contextlib.contextmanager
    def launching(self, launch: _Launch) -> Iterator[None]:
        """Give `launch` the process that vLLM starts in this thread meanwhile."""
        self._ensure_running()
        self._here.launch = launch
        try:
            yield
        finally:
            del self._here.launch

    def Process(  # noqa: N802 - the name in a multiprocessing context
        self, *, target: Callable[..., None], name: str, kwargs: dict[str, Any]
    ) -> BaseProcess:
        """Return the launch's process; vLLM starts it."""
        launch: _Launch = self._here.launch
        launch.process = Process(
            target=child.run,
            name=name,
            args=(launch.surroundings(), launch.threads, launch.last_words, target),
            kwargs=kwargs,
        )
        return launch.process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _arguments(model: ModelSettings, directory: Path) -> Namespace:
    """Return vLLM's own arguments for `model`: its defaults, then ours, then the operator's."""
    args: Namespace = _parser().parse_args(["--model", str(directory)])
    chosen = {
        "served_model_name": [model.name],
        "dtype": cpu.resolve_dtype(model, directory)[0],
        "quantization": model.quantization,
        "max_model_len": model.max_model_len,
        "max_num_seqs": model.max_num_seqs,
        "max_num_batched_tokens": model.max_num_batched_tokens,
        "kv_cache_memory_bytes": kv_cache_bytes(model, directory),
        "enable_chunked_prefill": model.chunked_prefill,
        "enable_prefix_caching": model.prefix_caching,
        "enforce_eager": model.enforce_eager,
        "tool_call_parser": model.tool_parser,
        "enable_auto_tool_choice": model.tool_parser is not None,
        "reasoning_parser": model.reasoning_parser or "",
        "distributed_executor_backend": "uni",
        "worker_extension_cls": "engines.worker.Extension",
        "scheduling_policy": "priority",  # as in the pool's queue
        "disable_log_stats": True,
        "enable_prompt_tokens_details": True,
        "use_tqdm_on_load": False,
        **model.engine_args,
    }
    for name, value in chosen.items():
        setattr(args, name, value)
    return args


@cache
def _parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def _openmp() -> str:
    """Return the OpenMP library that engines preload: PyTorch's own, under one name for all.

    Without it vLLM's kernels and PyTorch's would each have a team of threads. Intel's, which also
    comes with the installation, was measured too, and is no better alone and slower when two
    engines are busy (`docs/engines.md`).
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    package = Path(spec.origin).parent
    places = (package / "lib", package.parent / "torch.libs")
    return next((str(path) for place in places for path in place.glob("libgomp*.so*")), "")


class VllmEngine:
    """A model that vLLM runs. See `engines.protocol.Engine`."""

    def __init__(self, launch: _Launch, llm: Any) -> None:
        self._name = launch.model.name
        self._launch = launch
        self._llm = llm
        self._max_model_len = int(llm.model_config.max_model_len)
        self._closing: asyncio.Task[None] | None = None
        self._serving: dict[Endpoint, Callable[[Any], Any]] = {}

    @property
    def failure(self) -> str | None:
        """See `Engine.failure`."""
        if self._closing is not None:
            return "the engine was closed"
        if not self._llm.errored:
            return None
        cause = self._launch.cause()
        return f"its process ended: {cause}" if cause else "its process ended"

    @property
    def running(self) -> int:
        """See `Engine.running`."""
        llm = self._llm  # another thread may ask
        return int(llm.output_processor.get_num_unfinished_requests()) if llm else 0

    @property
    def max_model_len(self) -> int:
        """See `Engine.max_model_len`."""
        return self._max_model_len

    @property
    def pids(self) -> list[int]:
        """See `Engine.pids`."""
        llm = self._llm  # another thread may ask
        manager = llm.engine_core.resources.engine_manager if llm else None
        return [process.pid for process in manager.processes] if manager else []

    def use_threads(self, count: int) -> None:
        """See `Engine.use_threads`."""
        self._launch.threads.value = count

    async def open(self, args: Namespace) -> None:
        """Build vLLM's OpenAI layer on top of the engine."""
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        tasks = await self._llm.get_supported_tasks()
        state = State()
        # It warms up templates for 0.1 s and more, and awaits nothing of the engine's.
        await asyncio.to_thread(lambda: asyncio.run(init_app_state(self._llm, state, args, tasks)))
        if state.openai_serving_chat is None:
            raise EngineFailed("this model does not generate text")
        self._serving = {
            "chat": state.openai_serving_chat.create_chat_completion,
            "completions": state.openai_serving_completion.create_completion,
        }

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._shut_down())
        await asyncio.shield(self._closing)

    async def _shut_down(self) -> None:
        pids = self.pids
        try:
            if handler := self._llm.output_handler:
                handler.cancel()  # else it logs the end of the process as a failure
            ending = asyncio.ensure_future(asyncio.to_thread(self._llm.shutdown))
            await asyncio.wait({ending}, timeout=_CLOSE_S)
            _kill(pids)
            await asyncio.wait({ending}, timeout=_CLOSE_S)
            if ending.done():
                ending.result()
        except Exception:
            log.exception("%s: the shutdown failed", self._name)
        self._launch.forget()
        self._serving = {}  # it holds the engine object,
        self._llm = None  # whose finaliser would complain at interpreter exit

    async def generate(self, endpoint: Endpoint, body: bytes, request_id: str) -> Reply:
        """See `Engine.generate`."""
        if self.failure is not None:
            raise self._broken()
        request = read_request(endpoint, body, self._max_model_len)
        request.model = self._name
        request.request_id = request_id
        try:
            reply = await self._serving[endpoint](request)
        except Exception as error:
            raise self._translated(error, endpoint, body) from error
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # vLLM answers a cancellation with an error object
        if isinstance(reply, AsyncGenerator):
            return Stream(self._events(reply, endpoint, body))
        if hasattr(reply, "error"):
            raise self._from_envelope(dict(reply.error), endpoint, body)
        return Answer(reply.model_dump_json().encode())

    async def _events(
        self, reply: AsyncGenerator[str, None], endpoint: Endpoint, body: bytes
    ) -> AsyncGenerator[bytes, None]:
        """Pass vLLM's events on; turn its error events back into exceptions."""
        async with contextlib.aclosing(reply):
            async for event in reply:
                if event.startswith('data: {"error"'):
                    error = msgspec.json.decode(event[len("data: ") :])["error"]
                    raise self._from_envelope(error, endpoint, body)
                yield event.encode()

    def _broken(self) -> EngineFailed:
        return EngineFailed(f"The engine of `{self._name}` failed: {self.failure}.")

    def _translated(self, error: Exception, endpoint: Endpoint, body: bytes) -> Exception:
        """Return our exception for one of vLLM's."""
        from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

        info = create_error_response(error).error
        return self._from_envelope(dict(info), endpoint, body)

    def _from_envelope(
        self, envelope: dict[str, Any], endpoint: Endpoint, body: bytes
    ) -> Exception:
        """Return our exception for the contents of vLLM's error object."""
        if self.failure is not None:
            return self._broken()
        message, status = str(envelope["message"]), int(envelope["code"])
        fields = msgspec.json.decode(body)
        asked = grammar_of(fields)
        if status >= 500 and status != _NOT_IMPLEMENTED and not asked:
            # The engine is sound, so it is no use to tell the client to try again.
            return RuntimeError(
                f"{self._name}: vLLM could not answer: {message or 'no reason given'}"
            )
        if re.search("maximum context length|max_model_len", message):
            field = "messages" if endpoint == "chat" else "prompt"
            return Refused(message, param=field, code="context_length_exceeded")
        if status >= 500 and asked:
            return no_grammar(asked)  # an endless one, say; the engine is sound
        return refusal(message, envelope["param"], fields)


def _clause(error: Exception) -> str:
    """Return what went wrong in one clause."""
    findings = getattr(error, "errors", None)  # pydantic writes a page; its first finding says it
    if not callable(findings):
        return child.clause(type(error).__name__, str(error))
    first = findings()[0]
    argument = ".".join(str(part) for part in first["loc"])
    text = child.clause(type(error).__name__, str(first["msg"]))
    return f"{argument}: {text}" if argument else text
