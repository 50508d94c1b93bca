"""Engines that share one machine: load on demand, lease, evict, recover.

The life of a model: `cold -> loading -> ready -> draining -> cold`, and `failed` with a reason.
Decisions are synchronous methods on plain state, so nothing can come between; the few `await`s are
in `lease`, `_load`, `_make_room` and `_unload`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from config import ModelSettings, PoolSettings
from engines.memory import GIB, RESERVE_BYTES, available_bytes
from engines.protocol import Engine

log = logging.getLogger("axion.pool")

State = Literal["cold", "loading", "ready", "draining", "failed"]

_BACK_OFF_FIRST_S, _BACK_OFF_MAX_S = 1.0, 60.0


class Unavailable(Exception):
    """The model cannot take this request now; later it may.

    Attributes
    ----------
    message
        Why, in one sentence.
    code
        `queue_full`, `load_failed`, `load_timeout`, `no_memory` or `shutting_down`.
    retry_after_s
        When to try again, in seconds.
    """

    def __init__(self, message: str, code: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s


class Status(Struct, frozen=True, kw_only=True):
    """A model as it looks now.

    Attributes
    ----------
    held
        Requests that run on it or wait for it.
    footprint_bytes
        What it takes when loaded, or 0 while that is not known.
    failure
        Why it failed, in one clause, or None.
    """

    model: str
    state: State
    held: int
    footprint_bytes: int
    failure: str | None


class Loader(Protocol):
    """Turns settings into a running engine; what the pool needs of the outside world."""

    async def locate(self, model: ModelSettings) -> Path:
        """Return the directory of the model's files, downloading them if need be."""

    def footprint_bytes(self, model: ModelSettings, directory: Path) -> int:
        """Return what the engine will take, in bytes."""

    async def start(self, model: ModelSettings, directory: Path) -> Engine:
        """Start the engine. Cancelling ends what was started."""


class _Slot:
    """One model's place in the pool."""

    def __init__(self, model: ModelSettings) -> None:
        self.model = model
        self.engine: Engine | None = None
        self.phase: State = "cold"
        self.failure: str | None = None
        self.held = 0
        self.footprint_bytes = 0
        self.reserved_bytes = 0
        self.idle_since = 0.0
        self.load: asyncio.Task[None] | None = None
        self.unload: asyncio.Task[None] | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self.failures_in_a_row = 0
        self.retry_at = 0.0

    @property
    def state(self) -> State:
        if self.phase == "ready" and self.engine is not None and self.engine.failure is not None:
            return "failed"
        return self.phase

    def fail(self, reason: str) -> None:
        self.phase = "failed"
        self.reserved_bytes = 0
        self.failure = reason
        wait_s = min(_BACK_OFF_FIRST_S * 2**self.failures_in_a_row, _BACK_OFF_MAX_S)
        self.failures_in_a_row += 1
        self.retry_at = time.monotonic() + wait_s


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
    """

    def __init__(
        self,
        models: list[ModelSettings],
        settings: PoolSettings,
        loader: Loader,
        budget_bytes: int,
    ) -> None:
        self._slots = {model.name: _Slot(model) for model in models}
        self._settings = settings
        self._loader = loader
        self._budget_bytes = budget_bytes
        self._changed = asyncio.Event()
        self._room = asyncio.Lock()
        self._to_preload = [model.name for model in models if model.preload]
        self._closing = False

    def __repr__(self) -> str:
        parts = [f"{name}: {slot.state}, {slot.held} held" for name, slot in self._slots.items()]
        return f"<Pool [{' | '.join(parts)}]>"

    def statuses(self) -> list[Status]:
        """Return every model as it looks now. Loads nothing and touches no timer."""
        return [
            Status(
                model=name,
                state=slot.state,
                held=slot.held,
                footprint_bytes=slot.footprint_bytes,
                failure=slot.failure or (slot.engine.failure if slot.engine else None),
            )
            for name, slot in self._slots.items()
        ]

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[Engine, None]:
        """Hold the right to use a model's engine, loading it first if need be.

        The engine stays loaded until the block is left. Leaving it in any way gives the slot back.

        Raises
        ------
        Unavailable
            The queue is full, the load failed or took longer than `load_wait_s`, or there is no
            memory for it.
        """
        slot = self._slots[name]
        if self._closing:
            raise self._shutting_down()
        if slot.held >= self._settings.queue_max:
            raise Unavailable(
                f"`{name}` already has {slot.held} requests, as many as queue_max allows.",
                "queue_full",
                1,
            )
        slot.held += 1
        if slot.idle_timer is not None:
            slot.idle_timer.cancel()
            slot.idle_timer = None
        try:
            yield await self._ready(slot)
        finally:
            slot.held -= 1
            if slot.held == 0:
                self._idle(slot)
            self._notify()

    @property
    def to_preload(self) -> tuple[str, ...]:
        """The models marked `preload` that have not been tried yet."""
        return tuple(self._to_preload)

    async def preload(self) -> None:
        """Load the models marked `preload`, one after another; failures are kept as states."""
        while self._to_preload:
            with contextlib.suppress(Unavailable):
                async with self.lease(self._to_preload[0]):
                    pass
            del self._to_preload[0]

    async def close(self) -> None:
        """End every load and every engine. Idempotent."""
        self._closing = True
        loads = [slot.load for slot in self._slots.values() if slot.load is not None]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await asyncio.gather(*(self._unloading(slot) for slot in self._slots.values()))

    # --- from a name to an engine ---

    async def _ready(self, slot: _Slot) -> Engine:
        """Return the slot's engine, loaded and sound; wait for it at most `load_wait_s`."""
        name = slot.model.name
        try:
            async with asyncio.timeout(self._settings.load_wait_s):
                while True:
                    if slot.state == "ready" and slot.engine is not None:
                        return slot.engine
                    load = self._loading(slot)
                    try:
                        await asyncio.shield(load)
                    except asyncio.CancelledError:
                        if load.cancelled() and self._closing:
                            raise self._shutting_down() from None
                        raise
        except TimeoutError:
            raise Unavailable(
                f"`{name}` is still loading after {self._settings.load_wait_s:g} s.",
                "load_timeout",
                30,
            ) from None

    def _loading(self, slot: _Slot) -> asyncio.Task[None]:
        """Return the one load that is going on for this slot, starting it if there is none."""
        if slot.load is None:
            if slot.phase == "failed" and time.monotonic() < slot.retry_at:
                raise self._load_failed(slot)
            slot.load = asyncio.create_task(self._load(slot), name=f"load {slot.model.name}")
            slot.load.add_done_callback(lambda _: self._load_ended(slot))
        return slot.load

    def _load_ended(self, slot: _Slot) -> None:
        if slot.load is not None and not slot.load.cancelled():
            slot.load.exception()  # waiters have it; without waiters it is in the slot and the log
        slot.load = None
        if slot.held == 0 and slot.phase == "ready":
            self._idle(slot)

    async def _load(self, slot: _Slot) -> None:
        """Bring one model from any resting state to `ready`."""
        name = slot.model.name
        began = time.monotonic()
        if slot.engine is not None:  # it broke, or is on its way out: first away with it
            if slot.engine.failure is not None and slot.unload is None:
                log.warning("%s: restarting (%s)", name, slot.engine.failure)
            await asyncio.shield(self._unloading(slot))
        slot.failure = None
        slot.phase = "loading"
        log.info("%s: loading", name)
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                directory = await self._loader.locate(slot.model)
                slot.footprint_bytes = self._loader.footprint_bytes(slot.model, directory)
            # Waiting for room is not the model's fault, so it does not count as loading.
            async with self._room:
                await self._make_room(slot)
            async with asyncio.timeout(self._settings.load_timeout_s):
                slot.engine = await self._loader.start(slot.model, directory)
        except TimeoutError:
            slot.fail(f"it took longer than load_timeout_s = {self._settings.load_timeout_s:g}")
        except (Unavailable, asyncio.CancelledError):
            slot.phase = "cold"  # nothing is wrong with the model itself
            slot.reserved_bytes = 0
            raise
        except Exception as error:
            slot.fail(_cause(error))
            log.debug("%s: load failed", name, exc_info=True)
        else:
            slot.phase = "ready"
            slot.failures_in_a_row = 0
            log.info("%s: ready after %.1f s", name, time.monotonic() - began)
            return
        finally:
            self._notify()
        log.error("%s: could not be loaded: %s", name, slot.failure)
        raise self._load_failed(slot)

    @staticmethod
    def _shutting_down() -> Unavailable:
        return Unavailable("The service is shutting down.", "shutting_down", 5)

    @staticmethod
    def _load_failed(slot: _Slot) -> Unavailable:
        message = f"`{slot.model.name}` could not be loaded: {slot.failure}."
        return Unavailable(message, "load_failed", max(slot.retry_at - time.monotonic(), 1))

    # --- room ---

    async def _make_room(self, slot: _Slot) -> None:
        """Unload idle models until `slot` fits; wait for busy ones; refuse what can never fit."""
        need = slot.footprint_bytes
        if need > self._budget_bytes:
            raise Unavailable(
                f"`{slot.model.name}` takes {need / GIB:.2f} GiB; the memory budget is "
                f"{self._budget_bytes / GIB:.2f} GiB. Raise pool.memory_budget_gb or lower "
                "kv_cache_gb.",
                "no_memory",
                60,
            )
        while (missing := self._missing_bytes(slot)) > 0:
            victim = self._victim(slot)
            if victim is not None:
                log.info(
                    "%s: unloading %s to make room (%.2f GiB missing)",
                    slot.model.name,
                    victim.model.name,
                    missing / GIB,
                )
                await asyncio.shield(self._unloading(victim))
            elif slot.held and any(self._may_leave(other, slot) for other in self._slots.values()):
                await self._changed.wait()
            else:
                raise Unavailable(
                    f"There is no memory for `{slot.model.name}`: {missing / GIB:.2f} GiB are "
                    "missing and no other model may be unloaded.",
                    "no_memory",
                    30,
                )
        slot.reserved_bytes = need

    def _missing_bytes(self, slot: _Slot) -> int:
        """Return how many bytes must be freed before `slot` fits; 0 or less when it fits."""
        others = [other for other in self._slots.values() if other is not slot]
        promised = sum(other.reserved_bytes for other in others)
        # What is loading has not taken its memory yet, so the machine still shows it as available.
        coming = sum(other.reserved_bytes for other in others if other.phase == "loading")
        over = max(promised - self._budget_bytes, coming + RESERVE_BYTES - available_bytes())
        return slot.footprint_bytes + over

    @staticmethod
    def _may_leave(other: _Slot, slot: _Slot) -> bool:
        return other is not slot and other.reserved_bytes > 0 and not other.model.pin

    def _victim(self, slot: _Slot) -> _Slot | None:
        """Return the idle model that was used longest ago, or None when all are busy."""
        idle = [
            other
            for other in self._slots.values()
            if self._may_leave(other, slot) and other.held == 0 and other.phase == "ready"
        ]
        return min(idle, key=lambda other: other.idle_since, default=None)

    # --- unloading ---

    def _idle(self, slot: _Slot) -> None:
        """Note the end of the last request, and set the timer that unloads."""
        slot.idle_since = time.monotonic()
        seconds = slot.model.idle_unload_s
        if seconds is not None and not slot.model.pin and not self._closing:
            loop = asyncio.get_running_loop()
            slot.idle_timer = loop.call_later(seconds, self._unload_idle, slot)

    def _unload_idle(self, slot: _Slot) -> None:
        slot.idle_timer = None
        if slot.held == 0 and slot.phase == "ready":
            log.info("%s: idle for %g s, unloading", slot.model.name, slot.model.idle_unload_s)
            self._unloading(slot)

    def _unloading(self, slot: _Slot) -> asyncio.Task[None]:
        """Return the one unload that is going on for this slot, starting it if there is none."""
        if slot.unload is None:
            slot.unload = asyncio.create_task(self._unload(slot), name=f"unload {slot.model.name}")
        return slot.unload

    async def _unload(self, slot: _Slot) -> None:
        if slot.idle_timer is not None:
            slot.idle_timer.cancel()
            slot.idle_timer = None
        if slot.engine is not None:
            slot.phase = "draining"
            await slot.engine.close()
            slot.engine = None
            slot.reserved_bytes = 0
            slot.phase = "cold"
        slot.unload = None
        self._notify()

    def _notify(self) -> None:
        """Wake those who wait for a change; those who come later wait for the next one."""
        self._changed.set()
        self._changed = asyncio.Event()


def _cause(error: BaseException) -> str:
    """Return the first line of what went wrong, without a full stop."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")
