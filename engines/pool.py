"""Engines that share one machine: does what `engines.lifecycle` decides.

Every event goes to the life cycle, and what comes back is carried out here: files are found,
engines started and stopped, and those who wait are told.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from config import ModelSettings, PoolSettings
from engines import cores
from engines.lifecycle import Lifecycle
from engines.memory import available_bytes
from engines.protocol import Endpoint, Engine
from engines.words import Grant, Locate, Refuse, Snapshot, Start, Stop, Ticket, Unavailable

log = logging.getLogger("axion.pool")


class Loader(Protocol):
    """Turns settings into a running engine; what the pool needs of the outside world."""

    async def locate(self, model: ModelSettings) -> Path:
        """Return the directory of the model's files, downloading them if need be."""

    def footprint_bytes(self, model: ModelSettings, directory: Path) -> int:
        """Return what the engine will take, in bytes."""

    def check(self, model: ModelSettings, endpoint: Endpoint, body: bytes) -> None:
        """Raise Refused if no engine of the model's kind could run this request."""

    async def start(self, model: ModelSettings, directory: Path) -> Engine:
        """Start the engine. Cancelling ends what was started."""

    def progress(self, model: ModelSettings) -> float | None:
        """Return which part of the weights a start under way has read, 0 to 1; None: unknown."""


class Pool:
    """All engines of the service.

    Parameters
    ----------
    models
        In the order of the configuration.
    settings
        Waits and bounds.
    loader
        How engines come to be.
    budget_bytes
        What all loaded engines together may take.
    available
        Returns what the machine has available now, in bytes.
    """

    def __init__(
        self,
        models: list[ModelSettings],
        settings: PoolSettings,
        loader: Loader,
        budget_bytes: int,
        available: Callable[[], int] = available_bytes,
        footprints: Mapping[str, int] = {},
    ) -> None:
        self._models = {model.name: model for model in models}
        self.budget_bytes = budget_bytes
        self._settings = settings
        self._loader = loader
        self._clock = time.monotonic
        self._lifecycle = Lifecycle(
            models, settings, budget_bytes, self._clock, available, footprints
        )
        self._directories: dict[str, Path] = {}
        self._engines: dict[str, Engine] = {}
        self._gone: dict[str, asyncio.Event] = {}  # of the engine that starts, runs or stops
        self._grants: dict[Ticket, asyncio.Future[Engine]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}  # one for each model, at most
        self._background: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._preloading = [model.name for model in models if model.preload]
        self._closing = False

    def __repr__(self) -> str:
        return f"<Pool [{self._lifecycle!r}]>"

    def snapshots(self) -> list[Snapshot]:
        """Return every model as it looks now. Loads nothing and touches no timer."""
        self._notice_deaths()
        return self._lifecycle.snapshots()

    def engine(self, name: str) -> Engine | None:
        """Return the model's engine if it is loaded, to look at."""
        return self._engines.get(name)

    def check(self, name: str, endpoint: Endpoint, body: bytes) -> None:
        """Raise Refused if the model could not run this request, before it is loaded for it."""
        self._loader.check(self._models[name], endpoint, body)

    @contextlib.asynccontextmanager
    async def lease(self, ticket: Ticket) -> AsyncGenerator[Engine, None]:
        """Hold the right to use a model's engine, loading it first if need be.

        The engine stays loaded until the block is left. Leaving it in any way gives the place back.

        Raises
        ------
        Unavailable
            The queue is full, the load failed, there is no memory for it, or the wait took longer
            than `load_wait_s` or the ticket's deadline.
        """
        granted = self._grants[ticket] = asyncio.get_running_loop().create_future()
        self._lifecycle.ask(ticket)
        try:
            self._advance()
            yield await granted
        finally:
            del self._grants[ticket]
            if granted.done() and not granted.cancelled():
                granted.exception()  # seen, also when the client left at the same moment
            self._lifecycle.leave(ticket)
            self._advance()

    def waits_for(self, ticket: Ticket) -> str:
        """Return what a ticket that waits waits for, for people."""
        text = self._lifecycle.waits_for(ticket)
        if text.startswith("loading"):
            part = self._loader.progress(self._models[ticket.model])
            text += "" if part is None else f", weights {part:.0%}".replace("%", " %")
        return text

    async def load(self, name: str) -> None:
        """Return once the model is in memory. Raises Unavailable like `lease`."""
        if self._is(name, "ready"):
            return
        async with self.lease(Ticket(name)):
            pass

    def begin_load(self, name: str) -> None:
        """Load the model for later requests, unless that was already begun. Never raises."""
        title = f"begin load {name}"

        async def load() -> None:
            with contextlib.suppress(Unavailable):  # it is in the states and in the log
                await self.load(name)

        if title not in (task.get_name() for task in self._background) and not self._closing:
            task = asyncio.create_task(load(), name=title)
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def unload(self, name: str) -> None:
        """Return once the model is out of memory; its start and its running requests end first.

        It may be loaded again by then, for those who wait for it.

        Raises
        ------
        Unavailable
            They did not end within `load_wait_s`. It leaves when they do.
        """
        gone = self._gone.get(name)
        self._lifecycle.unload(name)
        self._advance()
        if gone is None:
            return
        seconds = self._settings.load_wait_s
        try:
            async with asyncio.timeout(seconds):
                await gone.wait()
        except TimeoutError:
            raise Unavailable(
                f"`{name}` still loads or has running requests after {seconds:g} s. It leaves "
                "memory when they end.",
                "load_timeout",
                30,
            ) from None

    @property
    def to_preload(self) -> tuple[str, ...]:
        """The models marked `preload` that are neither ready yet nor refused for a reason."""
        return tuple(self._preloading)

    async def preload(self) -> None:
        """Load the models marked `preload`, one after another; failures are kept as states."""
        while self._preloading:
            try:
                async with self.lease(Ticket(self._preloading[0], preload=True)):
                    pass
            except Unavailable as refusal:
                log.warning("preload: %s", refusal.message)
            del self._preloading[0]

    async def close(self) -> None:
        """End every load and every engine. Idempotent."""
        self._closing = True
        self._lifecycle.shut()
        self._advance()
        for task in self._tasks.values():
            if task.get_name().startswith("load"):
                task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(self._stop(name, "shutting down") for name in [*self._engines]))
        if self._alarm is not None:
            self._alarm.cancel()

    def _is(self, name: str, state: str) -> bool:
        return any(each.state == state for each in self.snapshots() if each.model == name)

    # --- doing what is decided ---

    def _advance(self) -> None:
        self._notice_deaths()
        for effect in self._lifecycle.advance():
            match effect:
                case Locate(name):
                    self._run(f"load {name}", self._locate(name))
                case Start(name):
                    self._gone[name] = asyncio.Event()
                    self._run(f"load {name}", self._start(name))
                case Stop(name, why):
                    self._run(f"unload {name}", self._stop(name, why))
                case Grant(ticket):
                    granted = self._grants[ticket]
                    if not granted.done():  # else its client has just left
                        granted.set_result(self._engines[ticket.model])
                case Refuse(ticket, reason):
                    granted = self._grants[ticket]
                    if not granted.done():
                        granted.set_exception(reason)
        self._share_cores()
        self._set_alarm()

    def _share_cores(self) -> None:
        """Give the engines that are busy a part of the cores each."""
        busy = [each.model for each in self._lifecycle.snapshots() if each.running]
        wishes = {name: self._models[name].threads for name in busy if name in self._engines}
        for name, threads in cores.shares(wishes, cores.usable()).items():
            self._engines[name].use_threads(threads)

    def _notice_deaths(self) -> None:
        for name, engine in self._engines.items():
            if engine.failure is not None:
                self._lifecycle.died(name, engine.failure)

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._lifecycle.wake_at is not None and not self._closing:
            delay = max(0.0, self._lifecycle.wake_at - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(delay, self._advance)

    def _run(self, title: str, work: Coroutine[Any, Any, None]) -> None:
        """Do one model's work in a task of its own; the life cycle never asks for two at a time."""
        name = title.split()[-1]
        task = asyncio.create_task(work, name=title)
        self._tasks[name] = task

        def forget(_: asyncio.Task[None]) -> None:
            if self._tasks.get(name) is task:
                del self._tasks[name]

        task.add_done_callback(forget)

    async def _locate(self, name: str) -> None:
        log.info("%s: loading", name)
        model = self._models[name]
        with self._failures_of(name):
            async with asyncio.timeout(self._settings.load_timeout_s):
                directory = await self._loader.locate(model)
                footprint = self._loader.footprint_bytes(model, directory)
            self._directories[name] = directory
            self._lifecycle.located(name, footprint)
        self._advance()

    async def _start(self, name: str) -> None:
        began = self._clock()
        try:
            with self._failures_of(name):
                async with asyncio.timeout(self._settings.load_timeout_s):
                    model, directory = self._models[name], self._directories[name]
                    self._engines[name] = await self._loader.start(model, directory)
                self._lifecycle.started(name)
                log.info("%s: ready after %.1f s", name, self._clock() - began)
        finally:
            if name not in self._engines:
                self._gone.pop(name).set()
        self._advance()

    @contextlib.contextmanager
    def _failures_of(self, name: str) -> Iterator[None]:
        """Tell the life cycle when a load fails."""
        try:
            yield
        except asyncio.CancelledError:
            self._lifecycle.cancelled(name)
            raise
        except Exception as error:
            reason = _cause(error)
            if isinstance(error, TimeoutError):
                reason = f"it took longer than load_timeout_s = {self._settings.load_timeout_s:g}"
            log.error("%s: could not be loaded: %s", name, reason)
            log.debug("%s: the load failed", name, exc_info=True)
            self._lifecycle.failed(name, reason)

    async def _stop(self, name: str, why: str) -> None:
        log.info("%s: unloading (%s)", name, why)
        if engine := self._engines.pop(name, None):
            await engine.close()
            self._gone.pop(name).set()
        self._lifecycle.stopped(name)
        self._advance()


def _cause(error: BaseException) -> str:
    """Return the first line of what went wrong, without a full stop."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")
